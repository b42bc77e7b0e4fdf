"""A real training in a real run is stopped by the time and by Ctrl-C, and ends as if it had never been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paretune import Run
from paretune.ask.workload import load, partition
from paretune.build.technique import Fit
from paretune.sources.torch_module import TorchModule
from paretune.techniques.torch_distill import TorchDistill

WORK = '''
"""A net to be taught, by a loss that takes as long as the environment says."""
import os
import time

import numpy as np
import torch
from torch.nn import functional

from paretune import Workload


def net():
    layers = [torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers)


def loss(outputs, labels):
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    return functional.cross_entropy(outputs, labels)


rows = np.random.default_rng(0).standard_normal((600, 6)).astype("float32")
items = [(x, np.int64(x[:3].argmax())) for x in rows]
work = Workload("slow", net, train=items[:400], heldout=items[400:], loss=loss)
'''
TAUGHT = TorchDistill(epochs=5, batch=32, learning_rate=0.02)
RECIPE = [{"recipe": [
    {"technique": "torch_distill", "knobs": {"epochs": 5, "batch": 32, "learning_rate": 0.02}},
    {"technique": "torch_to_onnx"},
], "target": "onnxruntime"}]  # fmt: skip


def run(root: Path, slow_s: float, limit: str, interrupt: bool = False) -> dict:
    """One run in its own process; with ``interrupt`` Ctrl-C is pressed in the midst of the training's second epoch."""
    command = [sys.executable, "-m", "paretune", "optimize", "slow.py:work", "--budget", "size<=1MB", "--resume"]
    command += ["--recipe", "recipe.json", "--time", limit, "--out", "run", "--threads", "1"]
    environment = {**os.environ, "SLOW_S": str(slow_s), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if interrupt:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None and not reached(root):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=150)[1]
    assert process.returncode in (0, 3), said
    result: dict = Run.open(root / "run").result
    return result


def taught(result: dict) -> dict:
    (entry,) = [entry for entry in result["candidates"] if entry["title"].startswith("torch_distill")]
    return entry


def reached(root: Path) -> int:
    """After how many steps the newest checkpoint was written."""
    return max((int(path.name[5:]) for path in (root / "run" / "store" / "unfinished").glob("*/step-*")), default=0)


@pytest.mark.slow
def test_a_training_is_stopped_by_ctrl_c_and_by_the_time_and_ends_in_the_same_bits(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(WORK)
    (tmp_path / "recipe.json").write_text(json.dumps({"candidates": RECIPE}))
    result = run(tmp_path, 0.5, "5m", interrupt=True)
    assert (result["stopped"], taught(result)["status"], taught(result)["error"]) == ("interrupted", "skipped", None)
    assert "torch_distill: stopped at " in taught(result)["why"]
    first = reached(tmp_path)
    assert 10 < first < 50, "epochs have ten steps, and it stopped within one"
    result = run(tmp_path, 1.0, "24s")
    assert (result["stopped"], taught(result)["status"]) == ("time", "skipped")
    assert "the time was over; --resume goes on from there" in taught(result)["why"]
    assert first < reached(tmp_path) < 50
    assert not list((tmp_path / "run" / "store").glob("??/*/failed.json"))
    result = run(tmp_path, 0.0, "60s")
    assert taught(result)["status"] == "built", taught(result)["error"]
    assert not list((tmp_path / "run" / "store" / "unfinished").iterdir())
    (found,) = list((tmp_path / "run" / "store").glob("??/*/out/model.safetensors"))
    assert found.read_bytes() == undisturbed(tmp_path, monkeypatch)


def undisturbed(root: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The parameters of the same training in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    work = load(f"{root / 'slow.py'}:work")
    data = partition(work).fit
    (root / "original").mkdir()
    original = TorchModule().read(work.model, data, root / "original")
    assert original is not None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = TAUGHT.apply(original, Fit(data, work.loss, original, 0, root / "scratch"))
    finally:
        torch.set_num_threads(before)
    return made.path(".safetensors").read_bytes()
