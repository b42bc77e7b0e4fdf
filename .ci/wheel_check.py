"""The installed wheel, with no extra and no network, takes a tiny model the whole road.

Run from an empty directory by the Python that the wheel is installed for, with ``.ci/offline`` on PYTHONPATH.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path


def blocked() -> bool:
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def workload():
    import numpy as np
    import torch

    import paretune

    rng = np.random.default_rng(0)
    images = rng.normal(size=(1000, 1, 8, 8)).astype(np.float32)
    labels = (images[:, 0, :, :4].mean((1, 2)) > images[:, 0, :, 4:].mean((1, 2))).astype(np.int64)

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 2)
    )  # fmt: skip
    items = list(zip(images, labels, strict=True))
    return paretune.Workload("tiny", net.eval(), train=items[:400], heldout=items[400:])


def quantised(target: str) -> dict:
    steps = ["torch_to_onnx", "onnx_fold", "onnx_int8_static", *(["onnx_to_openvino"] if target == "openvino" else [])]
    return {"recipe": [{"technique": name} for name in steps], "target": {"name": target}}


def main() -> None:
    if not blocked():
        sys.exit("sockets are not blocked: put .ci/offline on PYTHONPATH")
    import paretune

    if "site-packages" not in Path(paretune.__file__).parts:
        sys.exit(f"paretune was imported from {paretune.__file__}, not from the installed wheel")
    Path("recipes.json").write_text(json.dumps({"candidates": [quantised("onnxruntime"), quantised("openvino")]}))
    run = paretune.optimize(
        workload(), budget="size<=1MB", targets=["onnxruntime", "openvino"], recipes="recipes.json", out="run"
    )
    failed = [f"{one['title']}: {one['error']}" for one in run.result["candidates"] if one["status"] != "built"]
    if run.best is None or failed:
        sys.exit(f"not all was built, or nothing meets: {failed or run.why_none}")
    if not all((run.root / name).is_file() for name in ("result.json", "report.html", "bundle/bundle.json")):
        sys.exit("the run's directory is not whole")
    print(f"wheel: the best of {len(run.result['candidates'])} is {run.best.title}; sockets were blocked")


if __name__ == "__main__":
    main()
