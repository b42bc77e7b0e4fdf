"""What a bundle gives without paretune: its own runtime opens it, and answers and speed must be those in the report.

    python benchmarks/bare_runtime.py RUN/bundle --reference MODEL.onnx --batch 32

Prints accuracy over the whole CIFAR-10 test file, and how many times faster than onnxruntime FP32 the bundle is (p50,
with a 95 % interval over sessions, each a process of its own), as JSON. The first function is all that a user of a
bundle needs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def open_bundle(bundle: Path, batch: int):
    """A function from one batch of images to logits."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    options, threads = manifest["target"]["options"], manifest["settings"]["threads"]
    if manifest["target"]["name"] == "onnxruntime":
        return open_onnx(bundle / "model.onnx", threads)
    if manifest["target"]["name"] != "openvino":
        raise SystemExit(
            f"{bundle}: made for {manifest['target']['name']}; this opens onnxruntime and openvino bundles"
        )
    import openvino

    core = openvino.Core()
    model = core.read_model(bundle / "model.xml")
    if options["shape"] == "static":
        model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
    config = {"PERFORMANCE_HINT": options["hint"].upper(), "INFERENCE_NUM_THREADS": threads}
    if options["precision"] != "auto":
        config["INFERENCE_PRECISION_HINT"] = options["precision"]
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()

    def infer(images: np.ndarray) -> np.ndarray:
        # handed over without a copy; a call with a list copies the images first, which shows at batch 1
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data.copy()

    return infer


def open_onnx(path: Path, threads: int):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def test_images() -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [10000, 3, 32, 32] and labels int64 [10000]."""
    from PIL import Image
    from pyarrow import parquet

    folder = Path(os.environ.get("PARETUNE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    table = parquet.read_table(folder / "cifar10-jpeg-test.parquet").to_pydict()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["image"]])
    mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    images = (pixels.astype(np.float32) / 255 - mean) / deviation
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.array(table["label"])


def accuracy(model, images: np.ndarray, labels: np.ndarray, batch: int) -> float:
    """Full batches only, the last one overlapping: a model with a static batch takes no other."""
    predicted = np.empty_like(labels)
    for start in range(0, len(images), batch):
        start = min(start, len(images) - batch)
        predicted[start : start + batch] = model(images[start : start + batch]).argmax(1)
    return float((predicted == labels).mean())


def block(model, images: np.ndarray, seconds: float) -> list[float]:
    """Latencies in ms. A pause first: the other runtime's threads spin on for a while after its last call."""
    time.sleep(0.06)
    for _ in range(5):
        model(images)
    latencies, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(latencies) < 5:
        start = time.perf_counter()
        model(images)
        latencies.append((time.perf_counter() - start) * 1e3)
    return latencies


def compare(model, reference, images: np.ndarray, rounds: int, seconds: float) -> dict[str, float]:
    """The two in turn, round by round: medians in ms, and the median over rounds of how many times faster."""
    pairs = []
    for number in range(rounds):  # each is the first in half of the rounds
        found = {one: block((reference, model)[one], images, seconds) for one in ((0, 1), (1, 0))[number % 2]}
        pairs.append((found[0], found[1]))
    ratios = [np.median(theirs) / np.median(ours) for theirs, ours in pairs]
    theirs, ours = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return {
        "p50_ms": float(np.median(ours)),
        "reference_p50_ms": float(np.median(theirs)),
        "ratio": float(np.median(ratios)),
    }


def over_sessions(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of the sessions' ratios (of their logarithms), with Student's interval."""
    from scipy import stats

    logs = np.log([one["ratio"] for one in found])
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    ends = {"ratio": 0, "low": -half, "high": half}
    medians = {name: float(np.median([one[name] for one in found])) for name in ("p50_ms", "reference_p50_ms")}
    return medians | {name: float(np.exp(logs.mean() + off)) for name, off in ends.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="the FP32 model.onnx to compare with")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sessions", type=int, default=12, help="processes; with 1, only its ratio is printed")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each block")
    asked = parser.parse_args()
    threads = json.loads((asked.bundle / "bundle.json").read_text())["settings"]["threads"]
    images, labels = test_images()
    model, reference = open_bundle(asked.bundle, asked.batch), open_onnx(asked.reference, threads)
    if asked.sessions == 1:
        print(json.dumps(compare(model, reference, images[: asked.batch], asked.rounds, asked.seconds)))
        return
    right = accuracy(model, images, labels, asked.batch)
    del model, reference
    again = [sys.executable, *sys.argv, "--sessions", "1"]
    texts = [subprocess.run(again, check=True, stdout=subprocess.PIPE).stdout for _ in range(asked.sessions)]
    answer = {"bundle": str(asked.bundle), "batch": asked.batch, "accuracy": right}
    answer |= over_sessions([json.loads(text) for text in texts])
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
