"""What trains is made beforehand, by one process or by two together, and a run takes it from the store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import paretune
from paretune.ask.event import Event
from paretune.ask.workload import load
from paretune.deliver.run import read_log
from paretune.errors import CallError, RecipeError

WORK = '''
"""A net with batch normalisation to be pruned and taught."""
import os

import numpy as np
import torch

from paretune import Workload


def net():
    layers = [torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers)


def unseeded():
    torch.seed()
    return net()


rows = np.random.default_rng(0).standard_normal((600, 6)).astype("float32")
items = [(x, np.int64(x[:3].argmax())) for x in rows]
work = Workload("small", net, train=items[:400], heldout=items[400:])


def loss(outputs, labels):
    if os.environ.get("RANK") == "1":
        raise RuntimeError("this one alone fails")
    return torch.nn.functional.cross_entropy(outputs, labels)


lonely = Workload("small", net, train=items[:400], heldout=items[400:], loss=loss)
other = Workload("small", unseeded, train=items[:400], heldout=items[400:])
'''
QUICK = {"epochs": 2, "batch": 32, "learning_rate": 0.02}
CHAIN = [
    {"technique": "torch_prune_channels", "knobs": {**QUICK, "macs_ratio": 0.7, "round_to": 1, "importance": "taylor"}},
    {"technique": "torch_distill", "knobs": QUICK},
]
TO_ONNX = {"technique": "torch_to_onnx"}
CANDIDATES = [
    {"recipe": [*CHAIN, TO_ONNX], "target": "onnxruntime"},
    {
        "recipe": [*CHAIN, TO_ONNX, {"technique": "onnx_fold"}, {"technique": "onnx_int8_static"}],
        "target": "onnxruntime",
    },
]


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.py").write_text(WORK)
    (tmp_path / "chain.json").write_text(json.dumps({"candidates": CANDIDATES}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def together(folder: Path, work: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """``paretune train`` as two processes on CPUs; ``accelerate launch`` starts several on GPUs only."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--master_port", port, "-m", "paretune", "train", f"small.py:{work}", "--recipe", "chain.json"]
    done = subprocess.run(
        [*command, "--store", "together", "--json"], cwd=folder, capture_output=True, text=True, timeout=280,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode == 0) == (expect == 0), done.stderr[-3000:]
    return done


def test_a_run_takes_what_was_trained_from_the_store(folder):
    work, heard = load("small.py:work"), Heard()
    (made,) = paretune.train(work, "chain.json", store="store", observers=[heard])  # two candidates, one training
    assert made.artifact is not None
    assert made.title.startswith("torch_prune_channels(")
    assert [event.data["cached"] for event in heard.events if event.kind == "step"] == [False, False]
    (again,) = paretune.train(work, "chain.json", store="store", observers=())
    assert again.artifact is not None
    assert again.artifact.digest == made.artifact.digest
    assert again.seconds == made.seconds
    paretune.optimize(
        work, "size<=1MB", recipes="chain.json", store="store", out="run", time="10m", threads=1, observers=()
    )
    built = [event for event in read_log(Path("run")) if event["event"] == "step" and event["step"] == "build"]
    trained = [event["cached"] for event in built if event["text"].startswith(("torch_prune", "torch_distill"))]
    assert trained
    assert all(trained)


def test_two_processes_make_it_together(folder):
    (told,) = json.loads(together(folder, "work").stdout)
    assert told["error"] is None
    assert told["parameters"] < 6 * 16 + 4 * 16 + 3 * 16 + 3
    (found,) = paretune.train(load("small.py:work"), "chain.json", store="together", observers=())
    assert found.artifact is not None
    assert found.artifact.digest == told["digest"]  # from the store: nothing is trained once more
    assert found.artifact.root == Path(told["path"])
    assert not list(Path("together", "unfinished").glob("*"))
    again = json.loads(together(folder, "work").stdout)
    assert [one["digest"] for one in again] == [told["digest"]]


def test_processes_with_different_models_are_refused(folder):
    done = together(folder, "other", expect=1)
    assert "the processes that were started together have different models" in done.stdout + done.stderr


def test_one_that_fails_alone_ends_all_and_nothing_is_remembered_as_failed(folder):
    simple = [{"technique": "torch_finetune", "knobs": QUICK}]
    Path("chain.json").write_text(json.dumps({"candidates": [{"recipe": simple, "target": "torch"}]}))
    done = together(folder, "lonely", expect=1)
    assert "this one alone fails" in done.stderr
    assert not list(Path("together").rglob("failed.json"))
    (made,) = paretune.train(load("small.py:lonely"), "chain.json", store="together", observers=())
    assert made.artifact is not None


def test_what_fails_is_told_and_remembered(folder):
    stuck = [{"technique": "torch_prune_blocks", "knobs": QUICK}]
    Path("bad.json").write_text(json.dumps({"candidates": [{"recipe": stuck, "target": "torch"}, CANDIDATES[0]]}))
    bad, good = paretune.train(load("small.py:work"), "bad.json", store="store", observers=())
    assert bad.artifact is None
    assert "no member of a Sequential or ModuleList" in bad.error
    assert good.artifact is not None
    assert not good.error


def test_recipes_without_training_are_refused(folder):
    Path("none.json").write_text(json.dumps([{"recipe": [{"technique": "torch_to_onnx"}], "target": "onnxruntime"}]))
    with pytest.raises(CallError, match="no recipe has a step that trains"):
        paretune.train(load("small.py:work"), "none.json", store="store")
    Path("reach.json").write_text(json.dumps([{**CANDIDATES[0], "reach": "p50@1<=1ms"}]))
    with pytest.raises(RecipeError, match="chosen by timing it on its target"):
        paretune.train(load("small.py:work"), "reach.json", store="store")
    assert not Path("store").exists()
