"""Score intervals of paired shares, of their ratio, and of the mean of any values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from paretune.check.score_interval import newcombe, of_mean, paired_ratio, paired_shares, tango, wilson

QUICK = settings(max_examples=40, deadline=None)
LEVELS = st.floats(0.5, 0.995)
VALUES = hnp.arrays(np.float64, st.integers(2, 60), elements=st.floats(-10, 10, width=32))
Interval = Callable[[int, int, int, float], tuple[float, float]]


@st.composite
def flips(draw: st.DrawFn) -> tuple[int, int, int]:
    """Lost, won and the number of examples."""
    count = draw(st.integers(1, 2000))
    lost = draw(st.integers(0, count))
    return lost, draw(st.integers(0, count - lost)), count


def inside(inner: tuple[float, float], outer: tuple[float, float], slack: float = 1e-7) -> bool:
    return outer[0] <= inner[0] + slack and inner[1] <= outer[1] + slack


# -- paired shares ---------------------------------------------------------------------------------------------


def test_tango_gives_the_published_interval() -> None:
    # Fagerland, Lydersen & Laake (2014), Statistics in Medicine 33: airway hyper-responsiveness
    low, high = tango(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("interval", [tango, newcombe, paired_shares])
@given(flips(), LEVELS, LEVELS)
@QUICK
def test_paired_shares_nest_hold_the_value_and_mirror(
    interval: Interval, of: tuple[int, int, int], one: float, other: float
) -> None:
    lost, won, count = of
    narrow, wide = (interval(lost, won, count, level) for level in sorted((one, other)))
    assert -1 <= narrow[0] <= (lost - won) / count <= narrow[1] <= 1
    assert inside(narrow, wide)
    low, high = interval(won, lost, count, one)
    assert (-high, -low) == pytest.approx(interval(lost, won, count, one), abs=1e-7), "who comes first must not matter"


@given(flips())
@QUICK
def test_tango_is_the_score_test_turned_around(of: tuple[int, int, int]) -> None:
    lost, won, count = of
    z = 1.959964
    for end in tango(lost, won, count):
        if abs(end) > 1 - 1e-9 or abs(end - (lost - won) / count) < 1e-9:
            continue
        # the likelihood under the difference `end`, maximised by brute force instead of by the quadratic
        grid = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]
        likelihood = (
            stats_xlogy(lost, grid + end) + stats_xlogy(won, grid) + stats_xlogy(count - lost - won, 1 - 2 * grid - end)
        )
        q = grid[np.argmax(likelihood)]
        variance = count * (2 * q + end - end**2)
        assert abs(lost - won - count * end) / math.sqrt(variance) == pytest.approx(z, rel=0.02)


def stats_xlogy(count: int, share_: np.ndarray) -> np.ndarray:
    return np.asarray(special.xlogy(count, np.maximum(share_, 1e-300)))


def coverage(interval: Interval, count: int, rate: float, share_lost: float) -> float:
    """Enumerated: the chance that the interval holds the true drop."""
    lose, win = rate * share_lost, rate * (1 - share_lost)
    held = 0.0
    for lost in range(45):
        for won in range(45 if win else 1):
            low, high = interval(lost, won, count, 0.95)
            if low <= lose - win <= high:
                rest = count - lost - won
                log = special.gammaln([count + 1, lost + 1, won + 1, rest + 1]) @ [1, -1, -1, -1]
                held += math.exp(log + special.xlogy(lost, lose) + special.xlogy(won, win) + rest * math.log1p(-rate))
    return held


@pytest.mark.parametrize(
    ("count", "rate", "share_lost"), [(200, 0.03, 0.75), (200, 0.0225, 0.95), (1000, 0.01, 1.0), (50, 0.2, 0.7)]
)
def test_the_middle_interval_covers_where_its_parts_do_not(count: int, rate: float, share_lost: float) -> None:
    assert 0.945 <= coverage(paired_shares, count, rate, share_lost) <= (0.97 if count * rate >= 10 else 1)


def test_each_part_alone_falls_short() -> None:
    assert coverage(tango, 200, 0.0225, 0.95) < 0.935
    assert coverage(newcombe, 1000, 0.01, 1.0) > 0.975


# -- shares and their ratio ------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.data(), LEVELS)
@QUICK
def test_wilson_is_where_the_score_test_stops_rejecting(count: int, data: st.DataObject, level: float) -> None:
    hits = data.draw(st.integers(0, count))
    z = special.ndtri((1 + level) / 2)
    for end in wilson(hits, count, level):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(hits / count - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-6)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Lost, won, kept and the number of examples."""
    lost, won, count = draw(flips())
    return lost, won, draw(st.integers(0, count - lost - won)), count


@given(tables(), LEVELS, LEVELS)
@QUICK
def test_ratios_nest_and_hold_the_value(of: tuple[int, int, int, int], one: float, other: float) -> None:
    lost, won, kept, count = of
    narrow, wide = (paired_ratio(lost, won, kept, count, level) for level in sorted((one, other)))
    assert inside(narrow, wide)
    if lost + kept:
        assert narrow[0] <= (lost - won) / (lost + kept) <= narrow[1]
    else:
        assert narrow == (-math.inf, math.inf)


def test_a_ratio_of_a_sure_whole_is_the_drop_over_it() -> None:
    """With very many examples whose originals are right, the denominator adds next to nothing."""
    low, high = paired_shares(300, 100, 100_000)
    assert paired_ratio(300, 100, 79_700, 100_000) == pytest.approx((low / 0.8, high / 0.8), rel=2e-3)


def test_a_doubtful_whole_widens_the_ratio() -> None:
    low, high = paired_shares(20, 0, 400)
    found = paired_ratio(20, 0, 20, 400)
    assert found[0] < low / 0.1
    assert found[1] > high / 0.1


# -- means -----------------------------------------------------------------------------------------------------


@given(VALUES, LEVELS, LEVELS)
@QUICK
def test_means_nest_and_hold_the_value(values: np.ndarray, one: float, other: float) -> None:
    narrow, wide = (of_mean(values, level, 1.0) for level in sorted((one, other)))
    assert narrow[0] <= values.mean() + 1e-9
    assert narrow[1] >= values.mean() - 1e-9
    assert inside(narrow, wide, 1e-6)


@given(VALUES, st.randoms(use_true_random=False), st.floats(-5, 5), st.floats(0.1, 10))
@QUICK
def test_means_ignore_order_and_follow_unit_origin_and_sign(
    values: np.ndarray, random: object, shift: float, factor: float
) -> None:
    found = of_mean(values)
    mixed = np.random.default_rng(random.randrange(2**32)).permutation(values)  # type: ignore[attr-defined]
    near = {"rel": 1e-4, "abs": 1e-4}
    assert of_mean(mixed) == pytest.approx(found, **near)
    assert of_mean(factor * values) == pytest.approx((factor * found[0], factor * found[1]), **near)
    assert of_mean(-values) == pytest.approx((-found[1], -found[0]), **near)
    assert of_mean(values + shift) == pytest.approx((found[0] + shift, found[1] + shift), **near)


def test_many_even_values_get_the_classical_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 4000)
    half = 1.959964 * values.std() / math.sqrt(4000)
    assert of_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02 * half)


def test_a_few_that_differ_among_many_do_not_bound_the_mean_at_itself() -> None:
    values = np.zeros(500)
    values[0] = 0.9
    low, high = of_mean(values)
    assert low < 0
    assert high > 3 * values.mean()


def test_one_value_bounds_nothing_and_equal_ones_as_far_as_they_may_reach() -> None:
    assert of_mean(np.array([3.0])) == (-math.inf, math.inf)
    assert of_mean(np.full(9, 0.1)) == pytest.approx((0.1, 0.1))
    low, high = of_mean(np.full(381, 5.0), reach=1.0)
    # Tango's bound without a flip: z² / (n + z²)
    assert (5 - low, high - 5) == pytest.approx((3.841459 / 384.841459,) * 2, rel=1e-6)


def test_means_of_rarely_changed_scores_are_covered() -> None:
    """Simulated: 3 % of 200 values change. Student's and a studentised bootstrap's intervals cover 89 % here."""
    rng = np.random.default_rng(4)
    held, plain = 0, 0
    for _ in range(600):
        values = np.where(rng.random(200) < 0.03, rng.normal(0.3, 0.3, 200), 0.0)
        low, high = of_mean(values)
        held += low <= 0.009 <= high
        half = 1.972 * values.std(ddof=1) / math.sqrt(200)
        plain += abs(values.mean() - 0.009) <= half
    assert held / 600 >= 0.94
    assert plain / 600 < 0.92
