"""Metrics of whole sets: covered, paired, and told apart from what cannot be bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from paretune.check.jackknife import Whole, leave_out, whole, whole_drop
from paretune.check.statistics import Estimate, drop, mean
from paretune.errors import DataError, MeasureError

QUICK = settings(max_examples=20, deadline=None)


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs == labels).mean())


def rmse(outputs: np.ndarray, labels: np.ndarray) -> float:
    return -float(np.sqrt(((outputs - labels) ** 2).mean()))


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    total = float(outputs.sum() + labels.sum())
    return 2 * float((outputs & labels).sum()) / total if total else 0.0


def set_drop(
    metric: Callable[..., Any],
    base: np.ndarray,
    trial: np.ndarray,
    labels: np.ndarray,
    level: float = 0.95,
    unit: str = "pp",
    parts: int = 1000,
    seed: int = 0,
) -> Estimate:
    ours, theirs = (leave_out(metric, side, labels, "score own", None, parts, seed) for side in (base, trial))
    return whole_drop(ours, theirs, unit, level)


def classified(seed: int, count: int, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    base = labels ^ (rng.random(count) < 0.1)
    return base, base ^ (rng.random(count) < rate), labels


def test_a_mean_is_bounded_as_the_mean_of_its_examples_is() -> None:
    rng = np.random.default_rng(0)
    labels, base = rng.normal(size=180), rng.normal(size=180)
    trial = base + rng.normal(size=180)
    found = set_drop(lambda outputs, truth: -float(np.abs(outputs - truth).mean()), base, trial, labels)
    wanted = drop(-np.abs(base - labels), -np.abs(trial - labels), "pp")
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high), rel=1e-6)


def test_f1_is_covered() -> None:
    """Simulated: 5 % of 200 yes-or-no answers flip; 400 intervals of 95 % miss at most 36 times (the 99.9 % bound)."""
    hits, truth = 0, None
    share, wrong, rate = 0.3, 0.1, 0.05
    both = [2 * share * (1 - w) / (2 * share * (1 - w) + w) for w in (wrong, wrong * (1 - rate) + (1 - wrong) * rate)]
    truth = 100 * (both[0] - both[1])
    for seed in range(400):
        found = set_drop(f1, *classified(seed, 200, rate))
        hits += found.low <= truth <= found.high
    assert 364 <= hits < 400


def test_metrics_of_a_library_are_taken() -> None:
    base, trial, labels = classified(1, 150, 0.1)
    found = set_drop(lambda outputs, truth: f1_score(truth, outputs), base, trial, labels)
    own = set_drop(f1, base, trial, labels)
    assert (found.value, found.low, found.high) == pytest.approx((own.value, own.low, own.high), rel=1e-9)


def test_a_score_alone_is_bounded_as_the_mean_of_its_examples_is() -> None:
    rng = np.random.default_rng(0)
    labels, values = rng.normal(size=180), rng.normal(size=180)
    found = whole(leave_out(lambda kept, truth: -float(np.abs(kept - truth).mean()), values, labels, "mae"), 0.9)
    wanted = mean(-np.abs(values - labels), 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high), rel=1e-6)


def test_all_right_is_no_proof_of_all_right() -> None:
    right = whole(leave_out(accuracy, np.arange(50) % 2, np.arange(50) % 2, "accuracy", best=1.0))
    assert right.value == right.high == 1
    assert 0.9 < right.low < 0.95  # Wilson's bound of 50 of 50 is 0.929


def test_what_is_perfect_on_both_sides_is_no_proof_of_no_drop() -> None:
    widths = []
    for count in (10, 100, 1000):
        labels = np.arange(count) % 2 == 0
        same = set_drop(f1, labels, labels, labels)
        assert same.value == 0
        assert same.low == pytest.approx(-same.high)
        widths.append(same.high)
    assert widths[0] > 10
    assert widths[0] > 5 * widths[1] > 25 * widths[2] > 0


def test_few_positives_prove_little() -> None:
    """Ten of ten found is compatible with a recall of 0.72 (Wilson), whatever the number of negatives."""
    labels = np.arange(1000) < 10
    found = whole(leave_out(f1, labels, labels, "f1", best=1.0))
    assert 0.7 < found.low < 0.9
    assert whole(leave_out(f1, labels[:100], labels[:100], "f1", best=1.0)).low == pytest.approx(found.low, abs=0.05)


def test_where_no_answer_can_be_made_wrong_nothing_is_bounded() -> None:
    ones = np.ones(30, bool)
    assert set_drop(f1, ones, ones, ones).high == math.inf
    assert whole(leave_out(f1, ones, ones, "f1", best=1.0)).low == -math.inf


def test_without_a_flip_as_much_may_be_unseen_as_an_example_counts() -> None:
    labels = np.arange(381) % 2
    outputs = np.where(np.arange(381) < 340, labels, 1 - labels)
    found = set_drop(accuracy, outputs, outputs, labels)
    assert found.value == 0
    assert found.high <= 1 + 1e-9 < set_drop(accuracy, outputs[:370], outputs[:370], labels[:370]).high


@given(st.integers(0, 2**20), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
@QUICK
def test_intervals_nest_hold_the_value_turn_around_and_ignore_order(seed: int, one: float, other: float) -> None:
    base, trial, labels = classified(seed, 60, 0.15)
    narrow, wide = (set_drop(f1, base, trial, labels, level) for level in sorted((one, other)))
    assert wide.low <= narrow.low + 1e-6
    assert narrow.low <= narrow.value + 1e-9
    assert narrow.value <= narrow.high + 1e-9
    assert narrow.high <= wide.high + 1e-6
    mixed = np.random.default_rng(seed).permutation(60)
    again = set_drop(f1, base[mixed], trial[mixed], labels[mixed], one)
    back = set_drop(f1, trial, base, labels, one)
    plain = set_drop(f1, base, trial, labels, one)
    assert (again.low, again.high) == pytest.approx((plain.low, plain.high), abs=1e-6)
    if (base != trial).any():
        assert (-back.high, -back.low) == pytest.approx((plain.low, plain.high), abs=1e-6)


def test_parts_of_many_examples_give_about_the_same() -> None:
    rng = np.random.default_rng(3)
    labels = rng.normal(size=2000)
    base = labels + rng.normal(0, 0.5, 2000)
    trial = base + rng.normal(0, 0.2, 2000)
    one, ten = (set_drop(rmse, base, trial, labels, unit="%", parts=parts) for parts in (2000, 200))
    assert one.value == ten.value
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.2)
    assert set_drop(rmse, base, trial, labels, seed=1, parts=200) != set_drop(rmse, base, trial, labels, parts=200)


def test_a_metric_that_is_undefined_for_a_part_is_not_bounded() -> None:
    labels = np.array([1] + [0] * 30)
    outputs = np.linspace(1, 0, 31)
    # without the only positive, scikit-learn warns or raises
    with np.errstate(all="ignore"):
        found = set_drop(_auc, outputs, outputs[::-1], labels)
    assert found.value == pytest.approx(100)
    assert (found.low, found.high) == (-math.inf, math.inf)


def _auc(outputs: np.ndarray, labels: np.ndarray) -> float:
    if len(set(labels.tolist())) < 2:
        raise ValueError("only one class")
    return float(roc_auc_score(labels, outputs))


def test_a_metric_that_cannot_do_without_a_part_or_changes_its_input_is_borne() -> None:
    labels = np.array([2] + [0, 1] * 10)

    def third(kept: np.ndarray, truth: np.ndarray) -> float:
        return float(np.bincount(truth[kept == truth])[2])

    assert whole(leave_out(third, labels, labels, "third")) == Estimate(1.0, -math.inf, math.inf)
    with pytest.raises(DataError, match="score sorting: failed"):
        leave_out(lambda kept, truth: kept.sort() or 1.0, labels, labels, "score sorting")


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(DataError, match="score own: there are 4 answers for 5 labels"):
        set_drop(f1, np.ones(5, bool), np.ones(4, bool), np.ones(5, bool))
    with pytest.raises(MeasureError, match="score own: is nan for the whole set"):
        set_drop(rmse, np.full(5, math.nan), np.ones(5), np.ones(5))
    with pytest.raises(DataError, match="failed"):
        set_drop(lambda outputs, truth: outputs.nonsense, np.ones(5), np.ones(5), np.ones(5))
    with pytest.raises(DataError, match="4 examples in 4 parts and 5 in 5 of the baseline"):
        whole_drop(Whole(0.5, np.zeros(5), 5), Whole(0.5, np.zeros(4), 4))


def test_no_share_of_nothing_and_no_bound_from_one() -> None:
    zero = np.zeros(5, bool)
    assert math.isnan(set_drop(f1, zero, zero, ~zero, unit="%").value)
    assert set_drop(accuracy, np.ones(1), np.ones(1), np.ones(1)).high == math.inf
