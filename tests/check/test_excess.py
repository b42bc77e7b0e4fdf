"""The excess drop: what counts, how sure it is, and that wrong verdicts are as rare as stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.check.excess import Paired, judged, pooled


def paired(lost: int, count: int = 1000, clean_lost: int = 0, won: int = 0) -> Paired:
    """Right-or-wrong scores: the candidate loses ``lost`` examples (and wins others) only where data is changed."""
    ones = np.ones(count)
    changed, clean, original = ones.copy(), ones.copy(), ones.copy()
    changed[: lost + clean_lost] = 0
    clean[lost : lost + clean_lost] = 0
    original[count - won :] = 0
    return Paired(ones, clean, original, changed)


def test_only_what_the_change_adds_counts() -> None:
    found = judged({"equal": paired(0, clean_lost=80), "worse": paired(80), "mixed": paired(80, clean_lost=50)}, 1.0)
    assert found["equal"].estimate.value == 0
    assert found["equal"].verdict == "holds"
    assert found["worse"].estimate.value == pytest.approx(8)
    assert found["worse"].verdict == found["mixed"].verdict == "breaks"
    assert found["mixed"].estimate.value == pytest.approx(8)


def test_a_drop_that_the_original_has_too_is_none() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(800) < 0.9).astype(float)
    ruined = (rng.random(800) < 0.2).astype(float)
    found = judged({"both": Paired(right, right, ruined, ruined)}, 1.0)["both"]
    assert (found.estimate.value, found.verdict) == (0, "holds")


def test_too_few_examples_are_undecided_and_say_how_many_would_do() -> None:
    found = judged({"small": paired(0, count=100)}, 1.0)["small"]
    assert found.verdict == "undecided"
    assert found.more is not None
    # with identical answers the interval reaches z² / (n + z²): 1 pp at 95 % needs 381 examples
    assert 100 + found.more == pytest.approx(381, rel=0.01)
    enough = judged({"small": paired(0, count=100 + found.more)}, 1.0)["small"]
    assert enough.verdict == "holds"
    assert enough.more is None
    flips = judged({"flips": paired(3, count=200, won=4)}, 1.0)["flips"]
    assert flips.verdict == "undecided"
    assert flips.more is not None
    times = (200 + flips.more) / 200
    again = judged({"flips": paired(round(3 * times), round(200 * times), won=round(4 * times))}, 1.0)["flips"]
    assert again.verdict == "holds"


def test_the_interval_widens_with_the_family_and_narrows_as_others_are_decided() -> None:
    alone = judged({"a": paired(14)}, 1.0)["a"].estimate
    many = judged({"a": paired(14), **{f"b{n}": paired(10, won=2) for n in range(19)}}, 1.0)["a"].estimate
    assert many.high - many.low > alone.high - alone.low
    decided = judged({"a": paired(14), **{f"b{n}": paired(300) for n in range(19)}}, 1.0)["a"].estimate
    assert decided.low == pytest.approx(alone.low), "the rest of the family is broken already: no correction is left"
    assert decided.low > many.low


def test_other_scores_are_judged_in_per_cent() -> None:
    rng = np.random.default_rng(0)
    base = -50 + rng.normal(size=400)
    pair = Paired(base, base, base - 10, base - 16 + 0.1 * rng.normal(size=400))
    found = judged({"x": pair}, 1.0)["x"]
    assert found.unit == "%"
    assert found.estimate.value == pytest.approx(100 * 6 / 60, rel=0.01)
    assert found.verdict == "breaks"
    nothing = Paired(base, base, np.zeros(400), np.zeros(400))
    assert judged({"x": nothing}, 1.0)["x"].verdict == "undecided", "no per cent of nothing"
    assert judged({"x": nothing}, 1.0)["x"].describe()["value"] is None


def test_a_family_as_a_whole_is_the_mean_of_its_scenarios() -> None:
    pairs = [paired(10), paired(30, won=5)]
    whole = pooled(pairs)
    assert whole.values == pytest.approx(np.mean([pair.values for pair in pairs], axis=0))
    assert judged({"family": whole}, 1.0)["family"].estimate.value == pytest.approx(1.75)


@settings(max_examples=30, deadline=None)
@given(
    lost=st.integers(0, 40), won=st.integers(0, 40), clean=st.integers(0, 40), seed=st.integers(0, 9),
    graded=st.booleans(),
)  # fmt: skip
def test_the_interval_holds_the_value_and_order_does_not_matter(
    lost: int, won: int, clean: int, seed: int, graded: bool
) -> None:
    pair = paired(lost, 300, clean, won)
    if graded:
        noise = np.random.default_rng(seed).uniform(0, 0.1, 300)
        pair = Paired(pair.original - noise, pair.candidate * 0.9, pair.original_changed * 0.8, pair.candidate_changed)
    first = judged({"a": pair, "b": paired(3, 300)}, 1.0)
    second = judged({"b": paired(3, 300), "a": pair}, 1.0)
    assert first == second
    one = first["a"].estimate
    assert one.low <= one.value <= one.high
    verdict = "breaks" if one.low > 1 else "holds" if one.high < 1 else "undecided"
    assert first["a"].verdict == verdict


@pytest.mark.parametrize("count", [300, 1000])
def test_wrong_verdicts_are_as_rare_as_stated(count: int) -> None:
    """Ten scenarios whose excess lies on the limit itself: any verdict is wrong, and at most one family in twenty may
    hold one. Each example is fragile by itself, so that the scenarios hang together."""
    rng = np.random.default_rng(count)
    wrong = whole = 0
    runs = 40
    for _ in range(runs):
        fragile = rng.random(count) < 0.05
        ones = np.ones(count)
        pairs = {
            str(number): Paired(ones, ones, ones, 1.0 - (fragile & (rng.random(count) < 0.2)) * 1.0)
            for number in range(10)
        }
        wrong += any(one.verdict != "undecided" for one in judged(pairs, 1.0).values())
        whole += judged({"family": pooled(list(pairs.values()))}, 1.0)["family"].verdict != "undecided"
    # 6 of 40 is beyond the 99 % bound of a 5 % procedure
    assert wrong <= 5
    assert whole <= 5
