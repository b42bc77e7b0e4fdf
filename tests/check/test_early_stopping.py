"""The early-stopping rule gives LoadGen's own numbers, and keeps what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.check.early_stopping import estimate, holds, needed, place


@pytest.mark.parametrize(("q", "count"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_the_fewest_queries_for_an_estimate_are_loadgens(q: float, count: int) -> None:
    assert needed(q) == count
    assert place(count, q) == 1, "the slowest of them"
    assert place(count - 1, q) is None


def test_figures_that_loadgen_prints() -> None:
    assert place(2048, 0.9) == 173, "it 'would discard 172 highest latency queries' of 2,048"
    assert needed(0.99, over=0) == 459, "with none over the bound, a server run is successful with 459 queries"


@given(
    st.integers(0, 300), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]), st.sampled_from([0.8, 0.95, 0.99])
)  # fmt: skip
def test_needed_is_the_least_that_holds(over: int, q: float, confidence: float) -> None:
    count = needed(q, over, confidence)
    assert holds(count, over, q, confidence)
    assert count == max(over, 1) or not holds(count - 1, over, q, confidence)
    assert needed(q, over + 1, confidence) > count


@given(st.integers(1, 3000), st.sampled_from([0.5, 0.9, 0.97, 0.99]), st.sampled_from([0.8, 0.99]))
def test_the_place_is_by_the_binomial_tail(count: int, q: float, confidence: float) -> None:
    tail, above = 0.0, 0
    for over in range(count + 1):  # the tail summed term by term
        tail += math.exp(
            math.lgamma(count + 1) - math.lgamma(over + 1) - math.lgamma(count - over + 1)
            + over * math.log(1 - q) + (count - over) * math.log(q)
        )  # fmt: skip
        if tail >= 1 - confidence:
            break
        above = over
    assert (place(count, q, confidence) or 0) == above


def test_it_bounds_the_true_percentile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    for count, q in ((64, 0.9), (200, 0.9), (700, 0.99)):
        draws = np.sort(rng.lognormal(size=(2000, count)), axis=1)
        above = place(count, q)
        assert above is not None
        from scipy import stats

        truth = float(stats.lognorm.ppf(q, 1.0))
        assert (draws[:, count - above] >= truth).mean() >= 0.985
        assert estimate(draws[0][::-1], q) == draws[0][count - above], "the order of the samples does not matter"


def test_it_lies_above_the_percentile_of_the_sample() -> None:
    samples = np.random.default_rng(1).exponential(size=5000)
    for q in (0.5, 0.9, 0.99):
        assert np.quantile(samples, q) < estimate(samples, q) < np.quantile(samples, q + 0.5 * (1 - q))
    assert estimate(samples[:63], 0.9) is None
    assert estimate(samples[:0], 0.5) is None


@pytest.mark.parametrize("wrong", [{"q": 0.0}, {"q": 1.0}, {"q": 0.5, "over": -1}, {"q": 0.5, "confidence": 1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no early-stopping rule"):
        needed(**wrong)  # type: ignore[arg-type]
