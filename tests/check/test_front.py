"""The front ignores order and dominated points; finalists go from the safest to the fastest."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.ask.budget import Budget
from paretune.check.finding import Finding
from paretune.check.front import finalists, front, non_dominated
from paretune.check.measurement import Measurement
from paretune.check.statistics import Estimate
from paretune.check.verdict import Verdict

QUICK = settings(max_examples=80, deadline=None)
BATCHES = (1, 8)


def verdict(name: str, risk: float, merit: float, pace: float, speeds: tuple[float, ...], ruling: Any) -> Verdict:
    def point(value: float) -> Estimate:
        return Estimate(value, value, value)

    speedups = {batch: point(speed) for batch, speed in zip(BATCHES, speeds, strict=True)}
    measurement = Measurement(name, 1, 1, 1, {})
    return Verdict(
        name, ruling, (), point(merit), point(pace), pace > 1, speedups, {}, {}, {}, {}, None, risk, None, measurement
    )  # fmt: skip


RISKS = st.sampled_from([0.0, 0.01, 0.02, 0.1, math.nan])
SPEEDS = st.sampled_from([0.5, 0.9, 1.1, 1.5, 2.0, 3.0])


@st.composite
def verdicts(draw: st.DrawFn) -> list[Verdict]:
    rulings = st.sampled_from(["meets", "undecided", "breaks"])
    return [
        verdict(f"v{n}", draw(RISKS), draw(SPEEDS), draw(SPEEDS), (draw(SPEEDS), draw(SPEEDS)), draw(rulings))
        for n in range(draw(st.integers(0, 14)))
    ]


@given(verdicts(), st.randoms())
@QUICK
def test_a_front_ignores_order(given_: list[Verdict], chance: random.Random) -> None:
    shuffled = chance.sample(given_, len(given_))
    assert front(given_) == front(shuffled)
    assert front(front(given_).verdicts) == front(given_)


@given(verdicts())
@QUICK
def test_a_front_ignores_dominated_points(given_: list[Verdict]) -> None:
    found = front(given_)
    for one in found.verdicts:
        worse = verdict("worse", one.risk + 0.001, one.merit.value, 1.0, (1.0, 1.0), "meets")
        assert front([*given_, worse]) == found
    for one in given_:
        beaten = any(
            (other.risk, -other.merit.value) != (one.risk, -one.merit.value)
            and other.risk <= one.risk
            and other.merit.value >= one.merit.value
            for other in given_
        )
        assert (one.id in found.ids) == (not beaten and not math.isnan(one.risk))
    risks, merits = [one.risk for one in found.verdicts], [one.merit.value for one in found.verdicts]
    assert risks == sorted(risks)
    assert merits == sorted(merits), "who is riskier must be better, or would be dominated"
    assert len(found) == len(found.ids)


def test_a_point_is_beaten_only_by_one_that_is_better_somewhere() -> None:
    points = {"a": (1.0, 1.0), "same": (1.0, 1.0), "half": (0.5, 2.0), "worse": (1.0, 2.0)}
    assert non_dominated(points) == {"a", "same", "half"}


@given(verdicts(), st.integers(1, 8))
@QUICK
def test_finalists_are_able_and_ordered(given_: list[Verdict], most: int) -> None:
    chosen = finalists(given_, BATCHES, most)
    assert len(chosen) <= most
    assert len({one.id for one in chosen}) == len(chosen)
    assert all(one.pace.value > 1 and one.verdict != "breaks" and not math.isnan(one.risk) for one in chosen)
    assert [(one.risk, one.merit.value) for one in chosen] == sorted((one.risk, one.merit.value) for one in chosen)
    able = [one for one in given_ if one.pace.value > 1 and one.verdict != "breaks" and not math.isnan(one.risk)]
    assert bool(chosen) == bool(able)
    if not able:
        return
    assert chosen[0].risk == min(one.risk for one in able), "the safest always has its chance"
    if most >= 2:
        assert max(one.merit.value for one in chosen) == max(one.merit.value for one in able), "and so has the best"
    if most >= 4:
        for place, batch in enumerate(BATCHES):
            fastest = max(one.speedups[batch].value for one in able)
            assert max(one.speedups[batch].value for one in chosen) == fastest, place


def test_disputed_ones_do_not_push_out_the_others() -> None:
    limit = Budget.parse("drop<=1pp").limits[0]
    doubt = (Finding(limit, "undecided", None, "looks broken", disputed=True),)
    sure = [verdict(f"v{n}", n / 100, 1.1 + n, 2.0, (1.1 + n, 1.1 + n), "meets") for n in range(8)]
    wild = [verdict(f"w{n}", 0.5 + n / 100, 20.0 + n, 2.0, (20.0 + n, 20.0 + n), "undecided") for n in range(8)]
    wild = [dataclasses.replace(one, findings=doubt) for one in wild]
    for most, doubtful in ((6, 2), (3, 1), (2, 0), (12, 4)):
        chosen = [one.id for one in finalists([*wild, *sure], BATCHES, most)]
        assert len(chosen) == most
        assert [name[0] for name in chosen] == ["v"] * (most - doubtful) + ["w"] * doubtful
        assert chosen[0] == "v0"
        assert "v7" in chosen
    assert [one.id for one in finalists(wild, BATCHES, 2)] == ["w0", "w7"]


def test_the_middle_of_a_long_front_is_taken_evenly() -> None:
    many = [verdict(f"v{n:02}", n / 100, 1.1 + n, 2.0, (1.1 + n, 1.1 + n), "meets") for n in range(21)]
    chosen = [int(one.id[1:]) for one in finalists(many, BATCHES, 5)]
    assert chosen[0] == 0
    assert chosen[-1] == 20
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert max(gaps) - min(gaps) <= 1


def test_a_candidate_fast_at_one_batch_size_only_is_kept() -> None:
    slow_once = verdict("b", 0.02, 1.5, 1.5, (0.5, 3.0), "meets")
    steady = verdict("a", 0.01, 2.0, 2.0, (2.0, 2.0), "undecided")
    assert [one.id for one in finalists([slow_once, steady], BATCHES)] == ["a", "b"]
    with pytest.raises(KeyError):
        finalists([steady], (32,))
