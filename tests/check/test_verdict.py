"""A limit meets, breaks or stays undecided by its whole interval, and the words say so."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.ask.budget import Budget
from paretune.check.answers import Answers
from paretune.check.finding import Finding
from paretune.check.front import finalists
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.verdict import Verdict, judge, unit_of

QUICK = settings(max_examples=40, deadline=None)


def run(batch: int, latency_ms: float, beside_ms: float | None = 1.0, spread: float = 0.01, **facts: Any) -> BatchRun:
    rng = np.random.default_rng(batch)

    def blocks(centre: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(centre * (1 + spread * rng.standard_normal(25))) for _ in range(16))

    told = {"callers": 1, "import_bytes": 10**7, "peak_bytes": 10**8, "anon_bytes": 1, "file_bytes": 1, **facts}
    beside = {} if beside_ms is None else {"base": blocks(beside_ms)}
    return BatchRun(batch, blocks(latency_ms), beside, 1e3 * batch / latency_ms, **told)


def answers(scores: Mapping[str, Any], compared: Any = None, confidence: Any = None) -> Answers:
    arrays = {name: np.asarray(values, float) for name, values in scores.items()}
    count = len(next(iter(arrays.values())))
    compared = np.zeros(count, int) if compared is None else np.asarray(compared)
    return Answers(arrays, compared, np.full(count, 0.9) if confidence is None else np.asarray(confidence), "heldout")


def measured(
    name: str, latency_ms: float, given: Answers | None = None, size: int = 10**6, batches: tuple[int, ...] = (1,),
    **facts: Any,
) -> Measurement:  # fmt: skip
    runs = {batch: run(batch, latency_ms, None if name == "base" else 1.0, **facts) for batch in batches}
    return Measurement(name, size, 10, 10, runs, {} if given is None else {"heldout": given})


def judged(
    budget: str, ours: Answers | None = None, theirs: Answers | None = None, latency_ms: float = 0.5,
    minimize: str | None = None, **facts: Any,
) -> Verdict:  # fmt: skip
    base, trial = measured("base", 1.0, ours, **facts), measured("trial", latency_ms, theirs, size=10**6 // 4, **facts)
    return judge(base, trial, Budget.parse(budget, minimize), "heldout" if ours is not None else None)


def only(verdict: Verdict) -> Finding:
    (finding,) = verdict.findings
    assert finding.verdict == verdict.verdict
    return finding


RIGHT = np.ones(1000)
LOST = {n: answers({"accuracy": np.arange(1000) >= n}) for n in (0, 5, 100)}


@pytest.mark.parametrize(
    ("limit", "ending"),
    [
        ("p50<=0.6ms", "meets"), ("p50<=0.4ms", "breaks"), ("p95@1<=1ms", "meets"),
        ("p50<=0.5ms", "undecided; about N more samples would decide"), ("throughput>=2000/s", "undecided"),
        ("throughput>=1900/s", "meets"), ("throughput>=2100/s", "breaks"),
        ("size<=250KB", "meets"), ("size<=249KB", "breaks"), ("memory<=100MB", "meets"), ("memory<=99MB", "breaks"),
    ],
)  # fmt: skip
def test_every_kind_of_limit_is_ruled(limit: str, ending: str) -> None:
    finding = only(judged(limit))
    assert finding.verdict == ending.partition(";")[0], finding.text
    assert finding.limit.text == limit
    assert finding.estimate is not None
    assert "\n" not in finding.text
    assert re.sub(r"about [\d,]+ more", "about N more", finding.text).endswith(f", asked {limit}: {ending}")


@pytest.mark.parametrize("limit", ["p99@2<=1ms", "energy<=1mJ", "cost<=1"])
def test_a_limit_on_what_is_not_known_is_undecided(limit: str) -> None:
    finding = only(judged(limit))
    assert (finding.limit.text, finding.verdict, finding.estimate) == (limit, "undecided", None)


@pytest.mark.parametrize(
    ("lost", "limit", "ruling"),
    [
        (0, "drop<=1pp", "meets"), (5, "drop<=2pp", "meets"), (5, "drop<=1pp", "undecided"),
        (100, "drop<=1pp", "breaks"), (0, "drop<=1%", "meets"),
        (100, "drop.accuracy<=5%", "breaks"), (0, "drop<=0.1%", "undecided"),
    ],
)  # fmt: skip
def test_a_drop_is_ruled_by_its_interval(lost: int, limit: str, ruling: str) -> None:
    verdict = judged(limit, LOST[0], LOST[lost])
    finding = only(verdict)
    assert finding.verdict == ruling, finding.text
    assert finding.text.startswith("drop of accuracy is ")
    assert finding.estimate == verdict.drops["accuracy"]
    assert verdict.units == {"accuracy": "%" if limit.endswith("%") else "pp"}


def test_a_lower_score_on_examples_that_the_original_learnt_proves_nothing() -> None:
    right, half = answers({"accuracy": np.ones(1000)}), answers({"accuracy": np.arange(1000) % 2})
    base, trial = measured("base", 1.0, right), measured("trial", 0.5, half)
    budget = Budget.parse("drop<=1pp")
    strict, mild = judge(base, trial, budget, "heldout"), judge(base, trial, budget, "heldout", learnt=True)
    assert (strict.verdict, mild.verdict) == ("breaks", "undecided")
    assert not finalists([strict], [1])
    assert finalists([mild], [1]) == [mild], "held-out data decides"
    assert only(mild).text.endswith(
        ", asked drop<=1pp: undecided, as the original may have learnt these examples by heart: held-out data decides"
    )
    fast = judge(base, trial, Budget.parse("p50<=0.1ms"), "heldout", learnt=True)
    assert fast.verdict == "breaks", "speed is what it is"
    met = judge(base, measured("same", 0.5, right), budget, "heldout", learnt=True)
    assert met.verdict == "meets"


def test_a_disputed_drop_is_tested_after_what_is_not_and_displaces_nothing() -> None:
    right = np.ones(10_000)
    lost, turned = right.copy(), right.copy()
    lost[:150] = 0
    turned[:40] = 0
    base = measured("base", 1.0, answers({"accuracy": right}, right))
    budget = Budget.parse("drop<=1pp")
    trained = judge(base, measured("trained", 0.3, answers({"accuracy": lost}, right)), budget, "heldout", learnt=True)
    changed = np.where(np.arange(10_000) < 200, 2, 1)
    rounded = judge(base, measured("int8", 0.5, answers({"accuracy": turned}, changed)), budget, "heldout")
    assert trained.risk < rounded.risk
    assert trained.merit.value > rounded.merit.value
    assert [one.id for one in finalists([trained, rounded], [1])] == ["int8", "trained"]


def test_what_cannot_be_known_is_said() -> None:
    assert only(judged("energy<=1mJ")).text == "energy is unavailable: nothing was recorded that tells it"
    assert only(judged("cost<=1")).text == "the cost is not known: no prices were given"
    assert only(judged("p50@8<=1ms")).text == "batch 8 was not measured"
    assert only(judged("drop<=1pp")).text == "no answers were compared with the original's"
    assert "no score 'f1', there is accuracy" in only(judged("drop.f1<=1pp", LOST[0], LOST[0])).text
    assert only(judged("memory<=1MB", peak_bytes=None)).text == "memory cannot be read on this system"
    few = Measurement("trial", 1, 1, 1, {1: BatchRun(1, ((0.5,) * 6,), {}, 1.0, 1, None, None, None, None)})
    assert only(judge(measured("base", 1.0), few, Budget.parse("p99<=1ms"))).text == "6 samples are too few for p99"
    nothing = answers({"accuracy": np.zeros(50)})
    finding = only(judged("drop<=1%", nothing, nothing))
    assert finding.text == "accuracy of the original is 0, of which no per cent can be taken"
    assert finding.describe()["value"] is None


def test_a_relative_drop_of_an_error_is_of_the_originals_error() -> None:
    rng = np.random.default_rng(0)
    error = rng.uniform(1, 3, 2000)
    verdict = judged("drop<=12%", answers({"mse": -error}), answers({"mse": -1.1 * error}))
    assert verdict.units == {"mse": "%"}
    assert verdict.drops["mse"].value == pytest.approx(10)
    assert verdict.verdict == "meets"
    assert judged("", answers({"mse": -error}), answers({"mse": -error})).units == {"mse": "%"}, "unasked, too"


def test_each_limit_is_ruled_in_its_own_unit() -> None:
    error = np.random.default_rng(0).uniform(1, 3, 2000)
    scores = {"accuracy": np.ones(2000), "mse": -error}
    ours, theirs = answers(scores), answers({**scores, "mse": -1.1 * error})
    verdict = judged("drop.accuracy<=1pp, drop.mse<=12%, drop<=50pp", ours, theirs)
    found = {(finding.limit.text, finding.text.split()[2]): finding for finding in verdict.findings}
    assert found["drop.mse<=12%", "mse"].estimate is not None
    assert found["drop.mse<=12%", "mse"].estimate.value == pytest.approx(10)
    assert found["drop<=50pp", "mse"].estimate is not None
    assert found["drop<=50pp", "mse"].estimate.value == pytest.approx(100 * 0.1 * error.mean())
    assert {finding.verdict for finding in verdict.findings} == {"meets"}
    assert verdict.units == {"accuracy": "pp", "mse": "%"}
    assert unit_of("mse", Budget.parse("drop<=1pp, drop.mse<=5%")) == "%"


def test_more_examples_as_told_would_decide() -> None:
    def ruled(count: int) -> Finding:
        lost = np.arange(count) % 200 != 0  # 0.5 % of the answers
        return only(judged("drop<=1pp", answers({"accuracy": np.ones(count)}), answers({"accuracy": lost})))

    finding = ruled(600)
    told = re.search(r"about ([\d,]+) more examples would decide", finding.text)
    assert told is not None, finding.text
    more = int(told[1].replace(",", ""))
    assert ruled(600 + more // 4).verdict == "undecided"
    assert ruled(600 + 2 * more).verdict == "meets"


def test_an_undecided_latency_tells_of_samples() -> None:
    finding = only(judged("p50<=0.5ms"))
    assert re.search(r"about [\d,]+ more samples would decide$", finding.text), finding.text
    assert "more" not in only(judged("p50<=0.4ms")).text


@given(st.lists(st.sampled_from(["size<=250KB", "size<=1KB", "p50<=0.6ms", "p50<=0.4ms", "cost<=1"]), unique=True))
@QUICK
def test_all_must_meet_and_one_breaks(limits: list[str]) -> None:
    budget = [Budget.parse(text).limits[0] for text in limits]
    base, trial = measured("base", 1.0), measured("trial", 0.5, size=250_000)
    verdict = judge(base, trial, Budget(tuple(budget)))
    rulings = [finding.verdict for finding in verdict.findings]
    assert len(rulings) == len(limits)
    wanted = "breaks" if "breaks" in rulings else "undecided" if "undecided" in rulings else "meets"
    assert verdict.verdict == wanted


@given(st.floats(0.05, 4), st.floats(0.3, 0.7))
@QUICK
def test_a_looser_limit_is_never_ruled_worse(latency_ms: float, limit_ms: float) -> None:
    order = ["breaks", "undecided", "meets"]
    tight, loose = (
        only(judged(f"p50<={value}ms", latency_ms=latency_ms)).verdict for value in (limit_ms, 1.2 * limit_ms)
    )
    assert order.index(tight) <= order.index(loose)


def test_a_limit_without_a_batch_size_holds_for_each() -> None:
    verdict = judged("p50<=0.6ms, size<=1MB", batches=(1, 8))
    assert [(finding.limit.name, finding.batch) for finding in verdict.findings] == [
        ("p50", 1), ("p50", 8), ("size", None),
    ]  # fmt: skip
    assert "at batch 8" in verdict.findings[1].text
    assert [finding.batch for finding in judged("p50@8<=0.6ms", batches=(1, 8)).findings] == [8]


@pytest.mark.parametrize(
    ("minimize", "value"),
    [(None, 2.0), ("p50", 2.0), ("p99", 2.0), ("throughput", 2.0), ("size", 4.0), ("memory", 1.0)],
)
def test_merit_is_how_much_better_than_the_baseline(minimize: str | None, value: float) -> None:
    verdict = judged("", minimize=minimize, batches=(1, 8))
    assert verdict.merit.value == pytest.approx(value, rel=0.05)
    assert verdict.merit.low <= verdict.merit.value <= verdict.merit.high
    assert verdict.pace.value == pytest.approx(2, rel=0.02)
    assert verdict.speedups.keys() == {1, 8}


def test_who_is_shown_slower_at_one_batch_size_does_not_improve() -> None:
    base = measured("base", 1.0, batches=(1, 8))
    mixed = measured("mixed", 0.5, batches=(1, 8))
    mixed = dataclasses.replace(mixed, runs={**mixed.runs, 1: run(1, 1.3)})
    verdict = judge(base, mixed, Budget.parse(""))
    assert verdict.pace.value > 1
    assert (verdict.improves, verdict.slower) == (False, (1,))
    only = judge(base, mixed, Budget.parse("", "p50@8"))
    assert (only.improves, only.slower) == (True, ()), "the objective does not look at batch 1"


def test_the_objective_may_be_to_answer_alike() -> None:
    verdict = judged("", LOST[0], LOST[5], minimize="drop")
    assert verdict.merit == verdict.agreement
    assert math.isnan(judged("", minimize="drop").merit.value)


def test_the_baseline_beside_itself_is_as_fast_and_as_safe() -> None:
    base = measured("base", 1.0, LOST[0])
    verdict = judge(base, base, Budget.parse("drop<=1pp"), "heldout")
    assert (verdict.pace.value, verdict.risk, verdict.verdict) == (1.0, 0.0, "meets")
    assert verdict.agreement is not None
    assert verdict.agreement.value == 1


def test_risk_is_changed_answers_and_changed_confidence() -> None:
    score = {"accuracy": np.ones(10)}
    ours = answers(score)
    flipped = answers(score, compared=[1, 1] + [0] * 8)
    shaken = answers(score, confidence=[0.85] * 10)
    assert judged("", ours, ours).risk == 0
    assert judged("", ours, flipped).risk == pytest.approx(0.2)
    assert judged("", ours, shaken).risk == pytest.approx(0.05)
    assert math.isnan(judged("").risk)


def test_the_reference_is_compared_where_it_stood_beside() -> None:
    base = measured("base", 1.0)
    one = run(1, 0.5)
    both = BatchRun(**{**vars(one), "beside": {**one.beside, "ref": run(1, 0.75).blocks}})
    verdict = judge(base, Measurement("t", 1, 1, 1, {1: both}), Budget(), None, "ref")
    assert verdict.reference_speedups[1].value == pytest.approx(1.5, rel=0.02)
    assert judge(base, Measurement("t", 1, 1, 1, {1: one}), Budget(), None, "ref").reference_speedups == {}
