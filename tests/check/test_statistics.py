"""Intervals cover, nest, and follow what is done to the data."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from paretune.check.statistics import (
    Estimate,
    drop,
    likeness,
    log_ratios,
    mean,
    mean_logs,
    order_interval,
    percentile,
    ratio,
    share,
)

QUICK = settings(max_examples=40, deadline=None)
LEVELS = st.floats(0.5, 0.995)
BLOCKS = st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=30), min_size=1, max_size=8)
FLOATS = hnp.arrays(np.float64, st.integers(3, 60), elements=st.floats(-10, 10, width=32))


def inside(inner: tuple[float, float], outer: tuple[float, float], slack: float = 1e-7) -> bool:
    return outer[0] <= inner[0] + slack and inner[1] <= outer[1] + slack


# -- percentiles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_a_percentile_needs_enough_samples(q: float, needed: int) -> None:
    assert order_interval(needed, q, 0.95) is not None
    assert order_interval(needed - 1, q, 0.95) is None
    values = list(np.linspace(1, 2, needed))
    assert percentile([values], q) is not None
    assert percentile([values[1:]], q) is None
    assert percentile([], q) is None


@given(st.integers(1, 800), st.floats(0.05, 0.99), LEVELS)
@QUICK
def test_order_statistics_cover_a_quantile_as_often_as_stated(count: int, q: float, level: float) -> None:
    ends = order_interval(count, q, level)
    assume(ends is not None)
    assert ends is not None
    low, high = ends
    assert 0 <= low <= high < count
    # the quantile lies between the two exactly when more than `low` and at most `high` samples are below it
    assert stats.binom.cdf(high, count, q) - stats.binom.cdf(low, count, q) >= level - 1e-9


@given(BLOCKS, st.sampled_from([0.5, 0.9]), LEVELS, LEVELS)
@QUICK
def test_a_percentile_lies_in_its_interval_and_intervals_nest(
    blocks: list[list[float]], q: float, one: float, other: float
) -> None:
    wide, narrow = (percentile(blocks, q, level) for level in (max(one, other), min(one, other)))
    if wide is None:
        return
    assert narrow is not None, "what is enough for a wide interval is enough for a narrow one"
    assert narrow.low <= narrow.value <= narrow.high
    assert narrow.value == pytest.approx(float(np.quantile(np.concatenate(blocks), q)))
    assert inside((narrow.low, narrow.high), (wide.low, wide.high))


@given(BLOCKS, st.floats(0.1, 10))
@QUICK
def test_a_percentile_follows_the_unit(blocks: list[list[float]], factor: float) -> None:
    found = percentile(blocks, 0.5)
    assume(found is not None)
    scaled = percentile([[factor * value for value in block] for block in blocks], 0.5)
    assert found is not None
    assert scaled is not None
    for a, b in zip((found.value, found.low, found.high), (scaled.value, scaled.low, scaled.high), strict=True):
        assert b == pytest.approx(factor * a, rel=1e-6)


def test_blocks_that_differ_widen_a_percentile() -> None:
    rng = np.random.default_rng(0)
    steady = [list(1 + 0.01 * rng.random(50)) for _ in range(10)]
    uneven = [[value * (1 + 0.1 * number) for value in block] for number, block in enumerate(steady)]
    mixed = list(rng.permutation(np.concatenate(uneven)).reshape(10, 50))
    found = {name: percentile(blocks, 0.5) for name, blocks in (("uneven", uneven), ("mixed", mixed))}
    width = {name: one.high - one.low for name, one in found.items() if one}
    assert width["uneven"] > 1.5 * width["mixed"], "samples of a block share what disturbed the machine"


def test_a_tail_that_sessions_disagree_on_has_an_open_end() -> None:
    rng = np.random.default_rng(1)
    calm = [list(1 + 0.01 * rng.random(100)) for _ in range(8)]
    rough = [block if place < 6 else [2 * value for value in block] for place, block in enumerate(calm)]
    bounded, open_ended = (percentile(blocks, 0.99, sessions=4) for blocks in (calm, rough))
    assert bounded is not None
    assert math.isfinite(bounded.high)
    assert open_ended is not None
    assert math.isinf(open_ended.high), "one session of four was slow throughout: a slower one may come"
    assert open_ended.describe()["high"] is None
    alone = percentile([list(chain(*rough))], 0.99)
    assert alone is not None
    assert math.isfinite(alone.high), "without sessions all samples count as independent"


# -- speed-ups -------------------------------------------------------------------------------------------------


@given(BLOCKS, st.floats(0.2, 5), st.integers(1, 6))
@QUICK
def test_a_speedup_turns_around(blocks: list[list[float]], factor: float, sessions: int) -> None:
    assume(len(blocks) % sessions == 0)
    faster = [[value / factor for value in block] for block in blocks]
    there, back = log_ratios(blocks, faster, sessions), log_ratios(faster, blocks, sessions)
    assert len(there) == (sessions if sessions >= 3 else len(blocks))
    assert there == pytest.approx(math.log(factor)), "rounds of both are kept together: what disturbs one falls out"
    assert back == pytest.approx(-there)
    assert ratio(there).value == pytest.approx(factor)


def test_a_disturbed_round_does_not_move_a_session() -> None:
    calm = [[1.0, 1.1, 1.2]] * 9
    hit = [[value * (5 if place in (1, 4, 8) else 1) for value in block] for place, block in enumerate(calm)]
    assert log_ratios(hit, calm, 3) == pytest.approx([0, 0, 0])
    assert ratio(log_ratios(hit, calm), trimmed=True).value == pytest.approx(5 ** (2 / 7)), (
        "a fifth is trimmed, not a third"
    )


def test_a_tail_ratio_is_that_of_whole_sessions() -> None:
    tail = [[1.0] * 99 + [3.0], [1.0] * 100] * 3
    flat = [[1.0] * 100] * 6
    found = log_ratios(tail, flat, 3, q=0.999)
    assert found == pytest.approx([math.log(float(np.quantile(tail[0] + tail[1], 0.999)))] * 3)


@given(FLOATS, LEVELS, LEVELS)
@QUICK
def test_ratio_intervals_nest_hold_the_value_and_ignore_order(logs: np.ndarray, one: float, other: float) -> None:
    logs = logs / 10
    narrow, wide = (ratio(logs, level) for level in sorted((one, other)))
    assert narrow.low <= narrow.value <= narrow.high
    assert inside((narrow.low, narrow.high), (wide.low, wide.high))
    turned = ratio(logs[::-1], one)
    assert turned.value == pytest.approx(ratio(logs, one).value)


def test_one_session_bounds_nothing() -> None:
    found = ratio(np.array([math.log(2.0)]))
    assert (found.value, found.low, found.high) == (pytest.approx(2.0), 0.0, math.inf)


def test_a_plain_ratio_interval_is_students() -> None:
    logs = np.array([0.1, 0.3, 0.2, 0.25])
    low, high = stats.t.interval(0.95, 3, logs.mean(), logs.std(ddof=1) / 2)
    found = ratio(logs)
    assert np.log([found.value, found.low, found.high]) == pytest.approx([logs.mean(), low, high])


def test_a_trimmed_ratio_interval_is_yuens() -> None:
    logs = np.array([0.1, 0.3, 0.2, 0.25, 5.0, -2.0, 0.22, 0.18, 0.27, 0.16])
    found = ratio(logs, trimmed=True)
    assert math.log(found.value) == pytest.approx(stats.trim_mean(logs, 0.2))
    # Yuen (1974), Biometrika 61: the winsorised sum of squares over h (h - 1), h the number kept
    kept = np.sort(logs)[2:-2]
    squares = float(((np.clip(logs, kept[0], kept[-1]) - np.clip(logs, kept[0], kept[-1]).mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 5) * math.sqrt(squares / (6 * 5))
    assert math.log(found.high) - math.log(found.value) == pytest.approx(half)


def test_intervals_over_sessions_cover_where_intervals_over_rounds_do_not() -> None:
    """The machine is in another state in every session, and the two are not hit alike."""
    rng = np.random.default_rng(3)
    hits = {"sessions": 0, "rounds": 0}
    for _ in range(300):
        state = np.repeat(rng.normal(0, 0.05, 6), 4)
        base = [list(np.exp(rng.normal(0, 0.02, 15))) for _ in range(24)]
        ours = [list(np.exp(shift + rng.normal(0, 0.02, 15)) / 2) for shift in state]
        for name, sessions in (("sessions", 6), ("rounds", 1)):
            found = ratio(log_ratios(base, ours, sessions))
            hits[name] += found.low <= 2 <= found.high
    assert hits["sessions"] >= 274, "the 99.9 % bound of a procedure that covers 95 %"
    assert hits["rounds"] < 250


def test_mean_logs_are_those_of_sessions() -> None:
    blocks = [[1.0, 3.0], [2.0], [4.0], [4.0, 4.0], [1.0], [1.0]]
    assert mean_logs(blocks, 3) == pytest.approx(np.log([2.0, 4.0, 1.0]))
    assert mean_logs(blocks) == pytest.approx(np.log([2.0, 2.0, 4.0, 4.0, 1.0, 1.0]))


# -- drops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["pp", "%"])
def test_without_any_flip_one_point_takes_381_examples(unit: str) -> None:
    def high(count: int) -> float:
        right = np.ones(count)
        return drop(right, right, unit).high

    assert high(381) <= 1 < high(380)
    assert drop(np.ones(381), np.ones(381), unit).value == 0


@pytest.mark.parametrize(("unit", "truth"), [("pp", 5.0), ("%", 10.0)])
def test_a_drop_of_uneven_scores_is_covered(unit: str, truth: float) -> None:
    """Simulated with skewed differences: 300 intervals at 90 % miss between 4 % and 17 % of the time."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        base = rng.uniform(0, 1, 120)
        found = drop(base, base - rng.exponential(0.05, 120), unit, 0.9)
        held += found.low <= truth <= found.high
    assert 0.83 <= held / 300 <= 0.96


@given(FLOATS, LEVELS, LEVELS, st.sampled_from(["pp", "%"]))
@QUICK
def test_drops_nest_and_hold_the_value(scores: np.ndarray, one: float, other: float, unit: str) -> None:
    trial = np.roll(scores, 1)
    narrow, wide = (drop(scores + 20, trial + 19, unit, level) for level in sorted((one, other)))
    assert narrow.low <= narrow.value <= narrow.high
    assert inside((narrow.low, narrow.high), (wide.low, wide.high), 1e-6)


@given(FLOATS, st.floats(-5, 5), st.floats(0.1, 10))
@QUICK
def test_drops_follow_the_scores(scores: np.ndarray, shift: float, factor: float) -> None:
    base, trial = scores + 20.5, np.roll(scores, 1) + 19.25
    found = drop(base, trial, "pp")
    moved, scaled = drop(base + shift, trial + shift, "pp"), drop(factor * base, factor * trial, "pp")
    assert_alike(moved, found, 1)
    assert_alike(scaled, found, factor)
    relative = drop(base, trial, "%")
    assert_alike(drop(factor * base, factor * trial, "%"), relative, 1)
    assert relative.value == pytest.approx(100 * (base.mean() - trial.mean()) / base.mean(), abs=1e-6)


def assert_alike(found: Estimate, wanted: Estimate, factor: float) -> None:
    got = (found.value, found.low, found.high)
    assert got == pytest.approx((factor * wanted.value, factor * wanted.low, factor * wanted.high), rel=1e-4, abs=1e-4)


def test_a_relative_drop_is_of_the_size_of_negative_scores_too() -> None:
    found = drop(np.array([-1.0, -3.0]), np.array([-2.0, -4.0]), "%")
    assert found.value == pytest.approx(50), "an error that grows from 2 to 3 is a loss of half"


def test_no_share_of_nothing_can_be_lost() -> None:
    found = drop(np.zeros(50), np.zeros(50), "%")
    assert math.isnan(found.value)
    assert found.describe() == {"value": None, "low": None, "high": None}


def test_one_example_bounds_nothing() -> None:
    found = drop(np.array([0.3]), np.array([0.3]), "pp")
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_equal_scores_bound_a_drop_by_what_may_be_unseen() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, 2000)
    few, many = drop(scores[:20], scores[:20], "pp"), drop(scores, scores, "pp")
    assert few.value == many.value == 0
    assert 5 < few.high < 15
    assert 0 < many.high < 0.2


# -- means and likeness ----------------------------------------------------------------------------------------


def test_a_share_has_wilsons_interval() -> None:
    found = mean(np.array([1.0] * 9 + [0.0]))
    z, n, p = 1.959964, 10, 0.9
    middle, half = (
        (p + z**2 / 2 / n) / (1 + z**2 / n),
        z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2),
    )
    assert (found.value, found.low, found.high) == pytest.approx((p, middle - half, middle + half), abs=1e-4)
    assert share(10, 10).high == pytest.approx(1)


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 40)), elements=st.integers(0, 5)))
@QUICK
def test_equal_answers_are_wholly_alike(answers: np.ndarray) -> None:
    assert likeness(answers, answers).value == 1
    assert likeness(answers, answers).low < 1, "few examples show little"
    assert likeness(answers, answers + 1).value == 0


@given(hnp.arrays(np.float32, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.floats(-9, 9, width=16)))
@QUICK
def test_equal_outputs_are_wholly_alike(outputs: np.ndarray) -> None:
    assert likeness(outputs, outputs).value == 1
    worse = likeness(outputs, np.zeros_like(outputs) + outputs.mean(axis=0) + 20)
    assert worse.value <= 0
    assert worse.low <= worse.value <= worse.high


def test_likeness_of_maps_is_the_share_of_equal_places() -> None:
    map_ = np.zeros((4, 2, 2), int)
    other = map_.copy()
    other[0, 0, 0] = 1
    assert likeness(map_, other).value == pytest.approx(15 / 16)
