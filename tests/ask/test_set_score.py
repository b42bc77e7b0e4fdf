"""Scores of whole sets: against their definitions by hand, on the shapes that models answer in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paretune.ask.outputs import first_tensor
from paretune.ask.score import BUILT_IN, UNBOUNDED, named
from paretune.ask.set_score import SET_SCORES, SetScore
from paretune.errors import DataError, WorkloadError

TWO = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.5], [4.0, 0.0]])  # classes 0 1 1 0
THREE = np.array([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]])  # classes 0 1 1 2


def of(name: str, outputs: object, labels: np.ndarray) -> float:
    score = SET_SCORES[name]
    return float(score.metric(first_tensor(outputs), labels))


def test_classes_count_as_many_as_the_model_has_and_negative_labels_do_not() -> None:
    # of three classes only 0 and 1 are among the labels: the mean over those two, whatever is predicted
    assert of("f1", THREE, np.array([0, 1, 1, 0])) == pytest.approx((2 / 3 + 1) / 2)
    assert of("f1", THREE, np.array([0, 1, -1, -100])) == 1
    assert of("matthews", THREE, np.array([0, 1, -1, -1])) == 1
    assert of("auc", TWO, np.array([0, 0, 1, -1])) == pytest.approx(1 / 2)
    per_token = np.stack([THREE, THREE], axis=2)  # [examples, classes, tokens]
    assert of("f1", per_token, np.array([[0, -1], [1, -1], [1, -1], [2, -1]])) == 1


def test_f1_of_two_classes_is_that_of_class_one() -> None:
    # one right yes, one wrong yes, no missed yes: precision 1/2, recall 1
    assert of("f1", TWO, np.array([0, 1, 0, 0])) == pytest.approx(2 / 3)
    assert of("f1", {"logits": TWO}, np.array([[0], [1], [0], [0]])) == pytest.approx(2 / 3)
    assert of("f1", TWO[:, 1] - TWO[:, 0], np.array([0, 1, 0, 0])) == pytest.approx(2 / 3)


def test_f1_of_several_classes_is_their_plain_mean() -> None:
    # class 0: 1; class 1: precision 1/2, recall 1; class 2: precision 1, recall 1/2
    assert of("f1", THREE, np.array([0, 1, 2, 2])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_matthews_is_one_for_all_right_and_turns_with_the_answers() -> None:
    labels = np.array([0, 1, 1, 0])
    assert of("matthews", TWO, labels) == pytest.approx(1)
    assert of("matthews", -TWO, labels) == pytest.approx(-1)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    # margins −1, 3, 0.5, −4; the yes at 0.5 lies above two of three noes
    assert of("auc", TWO, np.array([0, 0, 1, 0])) == pytest.approx(2 / 3)
    assert of("auc", (TWO[:, 1] - TWO[:, 0])[:, None], np.array([0, 0, 1, 0])) == pytest.approx(2 / 3)
    assert math.isnan(of("auc", TWO, np.zeros(4, int)))


def test_auc_of_several_classes_compares_probabilities_not_logits() -> None:
    labels = np.array([0, 1, 2, 2])
    logits = THREE + np.array([[100.0], [0], [50], [-100]])  # softmax does not see what a whole row gains
    assert of("auc", logits, labels) == pytest.approx(of("auc", THREE, labels))
    # class 0 first of all, class 1 half a tie below none: pairs (b, a), (b, c), (b, d) in order or tied
    assert of("auc", THREE, labels) == pytest.approx((1 + 2.5 / 3 + 0.75) / 3)


def test_average_precision_takes_yes_and_no_to_each_class() -> None:
    logits = np.array([[3.0, -1], [2.0, 5], [1.0, 0]])
    labels = np.array([[1, 0], [0, 1], [1, 0]])
    # first column: precision 1 at the first yes, 2/3 at the second; the other column is in perfect order
    assert of("average_precision", logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)


def test_rmse_and_correlations() -> None:
    values, labels = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.0, 2.0])
    assert of("rmse", values, labels) == pytest.approx(-math.sqrt(4 / 3))
    assert of("pearson", values, labels) == pytest.approx(np.corrcoef(values[:, 0], labels)[0, 1])
    assert of("spearman", values**3, values) == pytest.approx(1)
    assert "rmse" in UNBOUNDED


@pytest.mark.parametrize("name", sorted(SET_SCORES))
def test_labels_that_do_not_fit_are_told(name: str) -> None:
    with pytest.raises(DataError, match=f"score {name}: labels of shape"):
        of(name, TWO if name not in ("rmse", "pearson", "spearman") else TWO[:, 0], np.zeros(3, int))


def test_a_score_of_ones_own_is_named_after_its_metric() -> None:
    def recall(kept: np.ndarray, labels: np.ndarray) -> float:
        return float((kept == labels)[labels == 1].mean())

    assert list(named(SetScore(recall))) == ["recall"]
    assert named({"a": "f1", "b": SetScore(recall)})["a"] is BUILT_IN["f1"]
    with pytest.raises(WorkloadError, match=r"SetScore.metric: is a str, not a function"):
        SetScore("f1")  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match=r"SetScore.keep: is a str, not a function"):
        SetScore(recall, "logits")  # type: ignore[arg-type]
