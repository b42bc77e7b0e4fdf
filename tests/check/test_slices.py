"""One bad slice that the average hides is found, and good ones are not accused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.check.slices import by_slice
from paretune.check.statistics import drop
from paretune.errors import DataError

QUICK = settings(max_examples=30, deadline=None)


def scores(rng: np.random.Generator, count: int, lose: float, win: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    base = (rng.random(count) < 0.9).astype(float)
    chance = np.where(base == 1, lose, win)
    return base, np.where(rng.random(count) < chance, 1 - base, base)


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten classes of a thousand; class 7 loses 8 %, the others as much as they win."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(10), 1000)
    base, trial = scores(rng, 10_000, 0.005, 0.045)
    bad = labels == 7
    trial[bad] = np.where(rng.random(1000) < 0.08, 0.0, base[bad])
    return base, trial, labels


def test_a_bad_slice_that_the_average_hides_is_found() -> None:
    found = 0
    for seed in range(20):
        base, trial, labels = planted(seed)
        assert drop(base, trial, "pp").high < 2, "the average is within the limit"
        report = by_slice(base, trial, 2.0, labels=labels)
        worst = report.slices[0]
        found += report.verdict == "breaks" and worst.name == "class 7" and worst.verdict == "breaks"
    assert found == 20


def test_slices_without_a_fault_are_seldom_accused() -> None:
    """Twenty slices exactly at the limit: without correction 40 % of reports would accuse one, half of the misses."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20), 300)
    accused = {"holm": 0, "plain": 0}
    for _ in range(150):
        base = np.ones(6000)
        trial = (rng.random(6000) >= 0.03).astype(float)
        report = by_slice(base, trial, 3.0, labels=labels)
        accused["holm"] += report.verdict == "breaks"
        accused["plain"] += any(one.plain.low > 3 for one in report.slices)
    assert accused["holm"] <= 10, "the 99 % bound of 2.5 %"
    assert accused["plain"] > 25


def test_counts_flips_and_agreement_are_those_of_the_slice() -> None:
    base, trial = np.array([1.0, 1, 0, 0, 1, 1]), np.array([0.0, 1, 1, 0, 1, 0])
    changed = np.array([True, False, True, True, False, True])
    report = by_slice(base, trial, 1.0, named={"head": np.arange(6) < 3, "none": np.zeros(6, bool)}, changed=changed)
    (head,) = report.slices
    assert (head.name, head.count, head.lost, head.won) == ("head", 3, 1, 1)
    assert head.agreement is not None
    assert head.agreement.value == pytest.approx(1 / 3)
    assert head.drop == drop(base[:3], trial[:3], "pp"), "a single slice needs no correction"
    assert json.loads(json.dumps(head.describe()))["verdict"] == "undecided"


def test_good_slices_meet_and_one_doubtful_leaves_all_undecided() -> None:
    base = np.ones(6000)
    named = {"first": np.arange(6000) < 3000, "second": np.arange(6000) >= 3000, "tiny": np.arange(6000) < 20}
    report = by_slice(base, base, 1.0, named={name: named[name] for name in ("first", "second")})
    assert report.verdict == "meets"
    doubtful = by_slice(base, base, 1.0, named=named)
    assert {one.name: one.verdict for one in doubtful.slices}["tiny"] == "undecided"
    assert doubtful.verdict == "undecided"


def test_a_clear_slice_leaves_more_for_the_others() -> None:
    """Holm: once one is decided, the rest are tested at a lower confidence than Bonferroni's."""
    base = np.ones(4000)
    trial = base.copy()
    trial[:500] = 0
    labels = np.repeat([0, 1], 2000)
    report = by_slice(base, trial, 1.0, labels=labels, confidence=0.9)
    assert {one.name: one.confidence for one in report.slices} == {"class 0": 0.95, "class 1": 0.95}
    trial[2000:2013] = 0
    report = by_slice(base, trial, 1.0, labels=labels, confidence=0.9)
    assert {one.name: round(one.confidence, 9) for one in report.slices} == {"class 0": 0.95, "class 1": 0.9}


def test_scores_that_are_no_classes_have_slices_too() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(900)
    mask = np.arange(900) < 300
    trial = base - np.where(mask, 0.1, 0.0) * rng.random(900)
    report = by_slice(base, trial, 1.0, labels=rng.random(900), named={"dark": mask, "light": ~mask})
    assert [one.name for one in report.slices] == ["dark", "light"]
    assert (report.slices[0].verdict, report.slices[0].lost) == ("breaks", 300)


@given(st.integers(0, 2**20), st.floats(0.8, 0.99))
@QUICK
def test_order_does_not_matter_and_deciding_intervals_hold_the_plain_ones(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    base, trial = scores(rng, 300, 0.1, 0.1)
    labels = rng.integers(0, 4, 300)
    mixed = rng.permutation(300)
    report = by_slice(base, trial, 1.0, labels=labels, confidence=level)
    assert report == by_slice(base[mixed], trial[mixed], 1.0, labels=labels[mixed], confidence=level)
    for one in report.slices:
        assert one.drop.low <= one.plain.low + 1e-9
        assert one.plain.high <= one.drop.high + 1e-9


@pytest.mark.parametrize("mask", [np.ones(4, bool), np.ones(5)])
def test_a_mask_must_fit(mask: np.ndarray) -> None:
    with pytest.raises(DataError, match="slice odd"):
        by_slice(np.ones(5), np.ones(5), 1.0, named={"odd": mask})


def test_scores_must_be_of_the_same_examples() -> None:
    with pytest.raises(DataError, match="trial scores"):
        by_slice(np.ones(5), np.ones(4), 1.0)


def test_nothing_to_slice_is_undecided() -> None:
    report = by_slice(np.ones(5), np.ones(5), 1.0)
    assert (report.slices, report.verdict) == ((), "undecided")
