"""The best, why the others are not, and what binds when nothing meets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.ask import plugin
from paretune.ask.budget import Budget
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.answers import Answers
from paretune.check.finding import disputed
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.statistics import Estimate
from paretune.check.verdict import Verdict, judge
from paretune.deliver import result, summary
from paretune.deliver.trial import Trial

KNOBS = [
    {"graph": graph, "execution": how} for how in ("sequential", "parallel") for graph in ("all", "basic", "disabled")
]
FACTS = {
    "paretune": "0", "title": "w", "started": "2026-01-01T00:00:00+00:00", "machine": {"threads": 1, "digest": "m"},
    "workload": {"name": "w", "digest": "d", "heldout_size": 1000},
    "seconds": {"total": 1.0, "building": 0.5, "measuring": 0.5}, "warnings": [],
}  # fmt: skip
BUDGET = Budget.parse("drop<=1pp, p50<=0.9ms")


def candidate(number: int, target: str = "onnxruntime") -> Candidate:
    return Candidate(Recipe(), plugin.load("targets", target)(**(KNOBS[number] if target == "onnxruntime" else {})))


def answers(lost: int, data: str) -> Answers:
    right = np.arange(1000) >= lost
    return Answers({"accuracy": right.astype(float)}, right.astype(int), np.full(1000, 0.9), data)


def measured(name: str, latency_ms: float, lost: int, data: str, batches: tuple[int, ...] = (1,)) -> Measurement:
    rng = np.random.default_rng(len(name))

    def blocks(centre: float) -> Any:
        return tuple(tuple(centre * (1 + 0.01 * rng.standard_normal(25))) for _ in range(16))

    runs = {
        batch: BatchRun(batch, blocks(latency_ms), {"base": blocks(1.0)}, 1e3 / latency_ms, 1, 1, 10**8, 1, 1)
        for batch in batches
    }
    return Measurement(name, 10**6, 10, 10, runs, {data: answers(lost, data)})


def judged(name: str, latency_ms: float, lost: int, data: str, budget: Budget = BUDGET) -> Verdict:
    base = measured("base", 1.0, 0, data)
    return judge(base, measured(name, latency_ms, lost, data), budget, data)


def trial(
    number: int, latency_ms: float, ranked: int | None = 0, heldout: int | None = None, target: str = "onnxruntime",
    **facts: Any,
) -> Trial:  # fmt: skip
    """A trial that lost so many answers of a thousand on the ranking data, and on held-out data."""
    one = Trial(candidate(number, target), status="built", **facts)
    one.ranked = None if ranked is None else judged(one.id, latency_ms, ranked, "ranking")
    one.confirmed = None if heldout is None else judged(one.id, latency_ms, heldout, "heldout")
    return one


def baseline() -> Trial:
    one = Trial(candidate(0, "torch"), role="baseline", status="built")
    one.ranked = judged(one.id, 1.0, 0, "ranking")
    return one


def document(trials: list[Trial], targets: list[str] | None = None, stopped: Trial | None = None) -> dict[str, Any]:
    """The run's result, which must fit the schema whatever was found."""
    asked = ["onnxruntime", "openvino"] if targets is None else targets
    found = summary.document(trials, BUDGET, Path("run"), asked, (1,), stopped, FACTS)
    result.validate(found)
    return found


def whys(found: dict[str, Any]) -> dict[str, str]:
    return {entry["id"]: entry["why"] for entry in found["candidates"]}


def test_the_best_is_the_confirmed_one_with_the_highest_merit() -> None:
    safe, fast, faster = trial(0, 0.6, heldout=0), trial(1, 0.4, heldout=1), trial(2, 0.3)
    found = document([baseline(), safe, fast, faster])
    assert found["best"] == fast.id
    assert found["why_none"] is found["nearest"] is None
    assert whys(found)[fast.id] is None
    assert whys(found)[safe.id] == f"meets the budget, but {fast.candidate.title} is better"
    assert whys(found)[faster.id] == "not confirmed: others stood before it, or the time was over"
    assert found["best_by_batch"] == {"1": fast.id}


def test_no_other_than_an_asked_target_is_best() -> None:
    asked, unasked = trial(0, 0.6, heldout=0), trial(0, 0.2, heldout=0, target="openvino", role="reference")
    found = document([baseline(), asked, unasked], ["onnxruntime"])
    assert found["best"] == asked.id
    assert whys(found)[unasked.id] == "stands for comparison: target openvino was not asked for"
    assert document([baseline(), asked, unasked], ["onnxruntime", "openvino"])["best"] == unasked.id


def test_what_is_slower_than_the_baseline_is_never_best() -> None:
    budget, slow = Budget.parse("drop<=1pp", "size"), trial(0, 0.5)
    slow.confirmed = judged(slow.id, 1.2, 0, "heldout", budget)
    assert slow.confirmed.verdict == "meets"
    found = document([baseline(), slow])
    assert found["best"] is None
    assert found["best_by_batch"] == {}
    assert whys(found)[slow.id].startswith("meets the limits, but is slower than the original (0.8")
    assert found["why_none"].startswith("nothing was faster than the original: the nearest, onnxruntime, runs at 0.8")


def doubted(one: Trial) -> Verdict:
    """What was ranked on examples that the original may know."""
    assert one.ranked is not None
    findings = tuple(disputed(found) if found.limit.name == "drop" else found for found in one.ranked.findings)
    assert any(found.disputed for found in findings)
    return replace(one.ranked, findings=findings)


def test_what_breaks_binds_rather_than_what_only_the_ranking_data_dispute() -> None:
    late = trial(0, 0.95, ranked=80)
    late.ranked = doubted(late)
    late.confirmed = replace(late.ranked, verdict="breaks")
    found = document([baseline(), late])
    assert re.match(r"p50<=0.9ms binds, \d+ % past it: the nearest, onnxruntime, p50 ", found["why_none"]), found


def test_the_nearest_is_one_of_which_it_is_known_how_near() -> None:
    known, unknown = trial(0, 0.5, ranked=40), trial(1, 0.95, ranked=400)
    unknown.ranked = doubted(unknown)
    assert document([baseline(), known, unknown])["nearest"] == known.id


def test_the_objective_does_not_make_a_slower_one_the_nearest() -> None:
    near, far = trial(0, 1.02), trial(1, 3.0)
    assert far.ranked is not None
    far.ranked = replace(far.ranked, merit=Estimate(4.0, 4.0, 4.0))
    assert document([baseline(), near, far])["nearest"] == near.id


@given(
    st.lists(st.tuples(st.sampled_from([0.3, 0.6, 0.8, 1.2]), st.sampled_from([0, 5, 100]), st.booleans()), max_size=6)
)
@settings(max_examples=25, deadline=None)
def test_every_other_candidate_gets_a_why(told: list[tuple[float, int, bool]]) -> None:
    trials = [
        trial(number, latency_ms, lost, lost if confirmed else None)
        for number, (latency_ms, lost, confirmed) in enumerate(told)
    ]
    failed = Trial(candidate(0, "openvino"), status="failed", error="openvino: no such operator")
    found = document([baseline(), *trials, failed])
    for entry in found["candidates"]:
        assert bool(entry["why"]) == (entry["id"] != found["best"])
    assert whys(found)[failed.id] == "openvino: no such operator"
    met = [one for one in trials if one.confirmed and one.confirmed.verdict == "meets" and one.confirmed.pace.value > 1]
    assert (found["best"] is not None) == bool(met)
    assert bool(found["why_none"]) == (found["best"] is None)
    if met:
        best = next(one for one in trials if one.id == found["best"])
        assert best.confirmed is not None
        assert best.confirmed.merit.value == max(one.confirmed.merit.value for one in met if one.confirmed)
    assert set(found["front"]) == {
        entry["id"] for entry in [found["baseline"], *found["candidates"]] if entry["in_front"]
    }


def test_why_none_says_which_limit_binds_and_by_how_much() -> None:
    near, far = trial(0, 0.8, ranked=40), trial(1, 0.3, ranked=300)
    found = document([baseline(), near, far])
    assert found["nearest"] == near.id
    assert near.ranked is not None
    over = 100 * (near.ranked.drops["accuracy"].high - 1)
    assert found["why_none"].startswith(
        f"drop<=1pp binds, {over:.0f} % past it: the nearest, onnxruntime, drop of accuracy"
    )
    assert found["why_none"].endswith("(on the ranking data)")
    slow = document([baseline(), trial(0, 0.95)])
    assert slow["why_none"].startswith("p50<=0.9ms binds, 6 % past it: the nearest")


def test_what_failed_on_heldout_data_binds_and_not_what_ranks_behind_it() -> None:
    failed, behind = trial(0, 0.5, ranked=0, heldout=8), trial(1, 0.4, ranked=0)
    found = document([baseline(), failed, behind], stopped=failed)
    assert found["nearest"] == failed.id
    assert found["why_none"].startswith("drop<=1pp binds")
    assert "ranking" not in found["why_none"]
    assert whys(found)[behind.id].startswith("not confirmed: the sequence ended at onnxruntime")


def test_what_was_not_confirmed_is_said_with_its_reason() -> None:
    one = trial(0, 0.5, why="confirmed anew, p50 is 1 ms (1 … 1), asked p50<=0.9ms: breaks")
    found = document([baseline(), one])
    assert found["why_none"] == f"the nearest, onnxruntime, was not confirmed on held-out data: {one.why}"


def test_nothing_built_is_said() -> None:
    failed = Trial(candidate(0), status="failed", error="x")
    found = document([baseline(), failed])
    assert found["nearest"] is None
    assert found["why_none"].startswith("no candidate could be built")


@pytest.mark.parametrize("limit", ["p50<=0.5ms", "throughput>=2000/s"])
def test_the_nearest_is_the_least_past_its_limit_in_either_direction(limit: str) -> None:
    budget = Budget.parse(limit)
    trials = []
    for number, latency_ms in enumerate((0.9, 0.6, 0.8)):
        one = Trial(candidate(number), status="built")
        one.ranked = judged(one.id, latency_ms, 0, "ranking", budget)
        trials.append(one)
    close, why = summary.nearest(trials, ["onnxruntime"])
    assert close is trials[1]
    told = re.match(rf"{limit} binds, (\d+) % past it: the nearest", why)
    assert told is not None, why
    assert int(told[1]) == pytest.approx(20 if "<" in limit else 17, abs=3)


def test_what_breaks_is_told_before_what_is_undecided() -> None:
    one = Trial(candidate(0), status="built")
    one.ranked = judged(one.id, 0.5, 100, "ranking", Budget.parse("cost<=1, drop<=1pp"))
    assert whys(document([baseline(), one]))[one.id].startswith("on the ranking data, drop of accuracy")


def test_the_fastest_at_one_batch_size_is_told_of() -> None:
    both = (1, 8)
    base = measured("base", 1.0, 0, "heldout", both)
    trials = []
    for number, times in enumerate([(0.3, 0.6), (0.6, 0.5)]):
        one = Trial(candidate(number), status="built")
        runs = {b: measured(one.id, t, 0, "heldout", (b,)).runs[b] for b, t in zip(both, times, strict=True)}
        whole = Measurement(one.id, 1, 1, 1, runs, {"heldout": answers(0, "heldout")})
        one.ranked = one.confirmed = judge(base, whole, Budget(), "heldout")
        trials.append(one)
    by_batch = summary.best_by_batch(trials, ["onnxruntime"], both)
    assert by_batch == {"1": trials[0].id, "8": trials[1].id}
    best = summary.best_of(trials, ["onnxruntime"])
    assert best is trials[0]
    summary.explain(trials, best, by_batch, None, ["onnxruntime"])
    assert trials[1].why == "the fastest at batch 8, though not over all"
