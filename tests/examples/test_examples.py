"""The examples build, their models take what their data gives, and (slow) reach the accuracy that they state."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paretune
from paretune.ask.data import Split
from paretune.ask.score import named
from paretune.ask.workload import Workload, load
from paretune.errors import WorkloadError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PARETUNE_DATA") or ROOT.parent / "shared" / "data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="set PARETUNE_DATA to the directory that holds the data")
IMAGES = ("cifar10.py:resnet20", "cifar10.py:resnet56")
TEXTS = ("sst2.py:encoder", "sst2.py:lstm")


def example(name: str) -> Workload:
    return load(f"{ROOT / 'examples' / name}")


def answers(net: torch.nn.Module, split: Split, size: int = 250) -> tuple[np.ndarray, np.ndarray]:
    outputs, labels = [], []
    with torch.inference_mode():
        for batch in split.batches(size):
            inputs = [torch.from_numpy(array) for array in batch.inputs]
            given = dict(zip(split.keys, inputs, strict=True)) if split.keys else None
            outputs.append((net(**given) if given else net(*inputs)).numpy())
            labels.append(batch.labels)
    return np.concatenate(outputs), np.concatenate(labels)


def mean_score(work: Workload, net: torch.nn.Module, split: Split) -> float:
    (score,) = named(work.score).values()
    return float(np.mean(score(*answers(net, split))))


def test_the_regression_is_far_better_than_the_mean() -> None:
    work = example("regression.py:friedman")
    assert isinstance(work, paretune.Workload)
    assert isinstance(work.model, Callable)
    split = Split.whole(work.heldout, work.collate, "heldout")
    assert len(split) == 3000
    spread = float(np.var([label for _, label in work.heldout]))
    assert -mean_score(work, work.model(), split) < 0.1 * spread


@needs_data
@pytest.mark.parametrize("name", IMAGES)
def test_the_given_weights_fit_the_residual_networks(name: str) -> None:
    work = example(name)
    assert (len(work.train), len(work.heldout)) == (50_000, 10_000)
    image, label = work.heldout[0]
    assert (image.shape, image.dtype, label.dtype) == ((3, 32, 32), np.float32, np.int64)
    sample = Split.whole(work.heldout, work.collate, "heldout").head(400)
    assert mean_score(work, work.model(), sample) > 0.8


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "right"), [(IMAGES[0], 0.8835), (IMAGES[1], 0.9037)])
def test_the_residual_networks_are_as_right_as_stated(name: str, right: float) -> None:
    work = example(name)
    assert mean_score(work, work.model(), Split.whole(work.heldout, None, "heldout")) == pytest.approx(right, abs=1e-9)


@needs_data
@pytest.mark.parametrize("name", TEXTS)
def test_sentences_come_padded_to_the_longest_of_their_batch(name: str) -> None:
    work = example(name)
    split = Split.whole(work.heldout, work.collate, "heldout")
    assert (len(work.train), len(split)) == (6920, 2693)
    batch = next(split.batches(16))
    assert all(array.dtype == np.int64 and len(array) == 16 for array in batch.inputs)
    lengths = (batch.inputs[0] != 0).sum(1)
    assert lengths.max() == batch.inputs[0].shape[1] > lengths.min()
    assert split.keys == (("input_ids", "attention_mask") if name == TEXTS[0] else None)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_read_alike_however_far_they_are_padded(name: str) -> None:
    work = example(name)
    net = work.model()
    split = Split.whole(work.heldout, work.collate, "heldout")
    together, labels = answers(net, split)
    assert (together.argmax(1) == labels).mean() > 0.75
    alone, _ = answers(net, split.head(20), size=1)
    np.testing.assert_allclose(alone, together[:20], atol=1e-4)


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_absent_data_is_told_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETUNE_DATA", str(tmp_path))
    with pytest.raises(WorkloadError, match="set PARETUNE_DATA") as told:
        example(name)
    assert "\n" not in str(told.value)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["regression.py:friedman", *TEXTS, IMAGES[0]])
def test_the_whole_road_ends_with_a_verdict(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"targets": ["onnxruntime", "openvino"], "time": "90s", "out": tmp_path / "run"}
    budget = "drop<=3%" if name.startswith("regression") else "drop<=2pp"
    run = paretune.optimize(example(name), budget=budget, heldout_limit=2000, **options)
    judged = {one["verdict"] for one in run.result["candidates"] if one["status"] == "built"}
    assert judged & {"meets", "breaks", "undecided"}
    assert (run.best is None) == (run.why_none is not None)
