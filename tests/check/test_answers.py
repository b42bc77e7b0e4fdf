"""Answers of all batches: scores of both kinds, kept whole and read again as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask.artifact import Artifact
from paretune.ask.score import named
from paretune.ask.set_score import SetScore
from paretune.check.answers import Answers, gathered
from paretune.check.jackknife import whole, whole_drop
from paretune.errors import DataError, MeasureError
from paretune.testing import samples

SCORES = {"z": "accuracy", "f1": "f1", "a": "top5", "mine": SetScore(lambda kept, labels: float(kept.mean()), best=9.0)}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return samples.artifact("onnx")


def batches(count: int = 40, size: int = 16, shift: int = 0) -> list[Any]:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(count, 4)).astype(np.float32), np.arange(count) % 4
    logits[np.arange(count), (labels + shift) % 4] += 1.5
    return [((logits[at : at + size],), labels[at : at + size]) for at in range(0, count, size)]


def same(array: np.ndarray) -> np.ndarray:
    return array


def test_what_is_saved_is_read_again_in_the_workloads_order(artifact: Artifact, tmp_path: Path) -> None:
    scores = named(SCORES)
    found = gathered(batches(), scores, artifact, same, "runtime")
    found.save(tmp_path / "answers.npz")
    again = Answers.read(tmp_path / "answers.npz", scores, "heldout")
    assert list(again.scores) == ["z", "a"]
    assert list(again.wholes) == ["f1", "mine"]
    assert all(np.array_equal(again.scores[name], found.scores[name]) for name in ("z", "a"))
    assert (again.data, len(again)) == ("heldout", 40)
    assert again.wholes["mine"].best == 9.0
    for name in ("f1", "mine"):
        assert whole(again.wholes[name]) == whole(found.wholes[name])
        assert whole_drop(again.wholes[name], found.wholes[name]).value == 0


def test_batches_make_no_difference(artifact: Artifact) -> None:
    one, other = (gathered(batches(size=size), named("f1"), artifact, same, "runtime") for size in (40, 7))
    assert whole(one.wholes["f1"]) == whole(other.wholes["f1"])


def test_a_score_of_the_whole_set_needs_labels_of_one_shape(artifact: Artifact) -> None:
    bare = [(arrays, None) for arrays, _ in batches()]
    with pytest.raises(DataError, match="score f1: has no labels"):
        gathered(bare, named("f1"), artifact, same, "runtime")
    rng = np.random.default_rng(0)
    ragged = [((rng.normal(size=(2, width)),), rng.normal(size=(2, width))) for width in (3, 5)]
    with pytest.raises(DataError, match="score rmse: batches differ in length"):
        gathered(ragged, named("rmse"), artifact, same, "runtime")


def test_texts_filled_up_batch_by_batch_do_not_count_what_fills(artifact: Artifact) -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(4, 3, width)), rng.integers(0, 3, (4, width))) for width in (5, 2)]
    found = gathered([((logits,), labels) for logits, labels in parts], named("f1"), artifact, same, "runtime")
    predicted, truth = (np.concatenate([part.reshape(-1) for part in side]) for side in (
        [logits.argmax(1) for logits, _ in parts], [labels for _, labels in parts]))  # fmt: skip
    from sklearn.metrics import f1_score

    assert found.wholes["f1"].value == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_answers_that_a_metric_is_not_defined_for_are_told(artifact: Artifact) -> None:
    alike = [((np.zeros_like(arrays[0][:, :1]),), labels.astype(float)) for arrays, labels in batches()]
    with pytest.raises(MeasureError, match="score pearson: is nan for the whole set of 40 examples"):
        gathered(alike, named("pearson"), artifact, same, "runtime")
    with pytest.raises(DataError, match="keep returned shape"):
        gathered(batches(), named(SetScore(np.mean, lambda outputs: outputs[:3])), artifact, same, "runtime")
