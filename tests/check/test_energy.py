"""Energy says where it comes from, and nothing is estimated in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.budget import Budget
from paretune.ask.data import Split
from paretune.ask.rates import Rates
from paretune.check.energy import energy, log_saving
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.meter import Spent
from paretune.check.plan import Plan
from paretune.check.verdict import Verdict, judge

RATES = Rates(watts_per_core=4.0)
BLOCKS = ((1.0,) * 10,) * 8


def spent(joules: Sequence[float | None], cpu_s: float = 0.01, gpu_j: float | None = 0.0) -> tuple[Spent, ...]:
    return tuple(Spent(cpu_s, each, gpu_j) for each in joules)


def test_a_counter_is_believed_before_cpu_time() -> None:
    found = energy(BLOCKS, spent([0.3] * 8), 1, RATES)
    assert found.kind == "measured"
    assert found.how == "CPU packages by RAPL"
    assert found.joules is not None
    assert found.joules.value == pytest.approx(0.03)
    with_gpu = energy(BLOCKS, spent([0.3] * 8, gpu_j=0.7), 1, RATES)
    assert with_gpu.joules is not None
    assert with_gpu.joules.value == pytest.approx(0.1)
    assert with_gpu.how == "CPU packages by RAPL and GPU by NVML"


@pytest.mark.parametrize("joules", [[None] * 8, [0.3] * 7 + [None], [0.0] * 8])
def test_without_a_counter_it_is_estimated_and_says_so(joules: list[float | None]) -> None:
    found = energy(BLOCKS, spent(joules), 1, RATES)
    assert found.kind == "estimated"
    assert found.how == "estimated from CPU time at 4 W a core, not measured"
    assert found.joules is not None
    assert found.joules.value == pytest.approx(0.004), "10 ms of CPU for ten calls, at 4 W"
    assert found.describe()["kind"] == "estimated"


def test_what_cannot_even_be_estimated_is_unavailable() -> None:
    for blocks, given_ in ((BLOCKS, ()), ((), ()), (BLOCKS, spent([None] * 8, cpu_s=0.0)), (BLOCKS, spent([1.0] * 3))):
        found = energy(blocks, given_, 1, RATES)
        assert (found.kind, found.joules) == ("unavailable", None)
    blind = energy(BLOCKS, spent([0.3] * 8, gpu_j=None), 1, RATES)
    assert blind.kind == "unavailable", "CPU packages alone would be too little"
    assert "nvidia-ml-py" in blind.how
    assert blind.describe() == {"value": None, "low": None, "high": None, "kind": "unavailable", "how": blind.how}


@given(st.lists(st.floats(0.1, 10), min_size=12, max_size=12), st.sampled_from([1, 3, 6]))
def test_the_interval_holds_the_value_and_grows_with_confidence(joules: list[float], sessions: int) -> None:
    blocks = ((1.0,) * 5,) * 12
    low, high = (energy(blocks, spent(joules), sessions, RATES, level).joules for level in (0.8, 0.99))
    assert low is not None
    assert high is not None
    assert low.value == high.value == pytest.approx(sum(joules) / 60)
    assert high.low <= low.low <= low.value <= low.high <= high.high


def test_energies_cover_the_truth_as_often_as_they_say() -> None:
    """Sessions differ by 5 %, blocks within one by 2 %."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        session = np.repeat(1 + 0.05 * random.standard_normal(6), 4)
        found = energy(((1.0,) * 10,) * 24, spent(list(session + 0.02 * random.standard_normal(24))), 6, RATES)
        assert found.joules is not None
        held += found.joules.low <= 0.1 <= found.joules.high
    assert 925 <= held <= 975


def test_savings_are_paired_and_both_in_the_same_kind() -> None:
    ours, theirs = spent([0.4] * 8, cpu_s=0.03), spent([0.1] * 8, cpu_s=0.01)
    logs = log_saving((BLOCKS, ours), (BLOCKS, theirs), 1, RATES)
    assert logs is not None
    assert np.exp(logs) == pytest.approx([4.0] * 8)
    blind = spent([None] * 8, cpu_s=0.01)
    logs = log_saving((BLOCKS, ours), (BLOCKS, blind), 4, RATES)
    assert logs is not None
    assert np.exp(logs) == pytest.approx([3.0] * 4), "a measured one is not compared with an estimated one"
    assert log_saving((BLOCKS, ours), (BLOCKS, ()), 1, RATES) is None


def run(joules: float | None, cpu_s: float, batch: int = 1, beside: tuple[Spent, ...] | None = None) -> BatchRun:
    random = np.random.default_rng(batch)
    blocks = tuple(tuple(1 + 0.01 * random.standard_normal(10)) for _ in range(8))
    facts: dict[str, Any] = {} if beside is None else {"spent_beside": {"base": beside}}
    noisy = tuple(
        Spent(cpu_s * (1 + 0.01 * random.standard_normal()), None if joules is None else joules) for _ in range(8)
    )
    return BatchRun(batch, blocks, {} if beside is None else {"base": blocks}, 1e3, 1, 1, 1, 1, 1, spent=noisy, **facts)


def judged(limit: str, joules: float | None, rates: Rates = RATES, minimize: str | None = None) -> Verdict:
    """A candidate that spends 10 ms of CPU on ten calls, beside a baseline that spends 30 ms."""
    base = Measurement("base", 1, 1, 1, {1: run(joules, 0.03), 8: run(joules, 0.06, 8)})
    beside = {batch: one.spent for batch, one in base.runs.items()}
    trial = Measurement("t", 1, 1, 1, {1: run(joules, 0.01, 1, beside[1]), 8: run(joules, 0.02, 8, beside[8])})
    return judge(base, trial, replace(Budget.parse(limit, minimize), rates=rates))


@pytest.mark.parametrize(
    ("limit", "joules", "ruling", "says"),
    [
        ("energy@1<=5mJ", None, "meets", "(estimated from CPU time at 4 W a core, not measured)"),
        ("energy@1<=3mJ", None, "breaks", "(estimated from CPU time at 4 W a core, not measured)"),
        ("energy@1<=4.003mJ", None, "undecided", "would decide (estimated from CPU time at 4 W a core, not measured)"),
        ("energy@8<=9mJ", None, "meets", "energy at batch 8 is"),
        ("energy@1<=40mJ", 0.3, "meets", "30 mJ, asked energy@1<=40mJ: meets (CPU packages by RAPL)"),
        ("energy@1<=20mJ", 0.3, "breaks", "(CPU packages by RAPL)"),
        ("energy@2<=5mJ", None, "undecided", "batch 2 was not measured"),
    ],
)
def test_a_limit_on_energy_says_what_decided(limit: str, joules: float | None, ruling: str, says: str) -> None:
    (finding,) = judged(limit, joules).findings
    assert finding.verdict == ruling, finding.text
    assert says in finding.text


def test_energy_without_a_batch_size_holds_for_every_one() -> None:
    found = judged("energy<=5mJ", None)
    assert [(finding.batch, finding.verdict) for finding in found.findings] == [(1, "meets"), (8, "breaks")]
    assert found.verdict == "breaks"


def test_the_objective_is_what_is_saved_beside_the_baseline() -> None:
    assert judged("", None, minimize="energy").merit.value == pytest.approx(3.0, rel=0.02)
    assert judged("", None, minimize="energy@8").merit.value == pytest.approx(3.0, rel=0.02)
    assert judged("", 0.3, minimize="energy").merit.value == pytest.approx(1.0)
    bare = Measurement("base", 1, 1, 1, {1: BatchRun(1, BLOCKS, {}, 1e3, 1, 1, 1, 1, 1)})
    assert math.isnan(judge(bare, bare, Budget.parse("", "energy")).merit.value)


@pytest.mark.parametrize(
    ("rates", "limit", "ruling"),
    [
        # 1,000 a second at 3.6 an hour: 0.001 for a thousand; at batch 8 rows_per_s is the same, and energy a quarter
        (Rates(4.0, 3.6), "cost<=0.0011", "meets"), (Rates(4.0, 3.6), "cost@8<=0.0009", "breaks"),
        # 4 J and 1 J for a thousand at 3.6e3 a kWh: 0.004 and 0.001 more
        (Rates(4.0, 3.6, 3.6e3), "cost@1<=0.0055", "meets"), (Rates(4.0, 3.6, 3.6e3), "cost@1<=0.0045", "breaks"),
        (Rates(4.0, 3.6, 3.6e3), "cost<=0.0025", "meets"),
    ],
)  # fmt: skip
def test_a_limit_on_cost_holds_at_the_cheapest_batch_size(rates: Rates, limit: str, ruling: str) -> None:
    (finding,) = judged(limit, None, rates).findings
    assert finding.verdict == ruling, finding.text
    assert finding.text.startswith("cost per thousand at batch")
    assert ("estimated" in finding.text) == bool(rates.per_kwh), "CPU time decides only where power is paid for"
    if rates.per_kwh and "@" not in limit:
        assert finding.batch == 8


def test_a_cost_that_is_not_known_is_undecided() -> None:
    (finding,) = judged("cost<=1", None, Rates()).findings
    assert (finding.verdict, finding.text) == ("undecided", "the cost is not known: no prices were given")
    bare = Measurement("base", 1, 1, 1, {1: BatchRun(1, BLOCKS, {}, 1e3, 1, 1, 1, 1, 1)})
    (finding,) = judge(bare, bare, replace(Budget.parse("cost<=1"), rates=Rates(4.0, 1.0, 1.0))).findings
    assert (finding.verdict, finding.text) == ("undecided", "the cost is not known: its energy is unavailable here")


def test_a_real_run_is_estimated_or_measured_and_survives_the_store(workbench: Any, data: Split) -> None:
    bench, plan = workbench.bench, Plan(rounds=2, seconds=0.01, count=5, beside=5, sessions=3)
    bench.companions.append(workbench.subject("spin", name="twice", pause_ms=4.0))
    subject = workbench.subject("spin", pause_ms=2.0)
    for _ in range(2):  # the second time from the store
        found = bench.latency([subject], data, (2,), plan)[subject.id].runs[2]
        assert len(found.spent) == len(found.blocks) == len(found.spent_beside["twice"]) == 6
        assert len(found.disturbances) == 3
        blind = [replace(one, package_j=None) for one in found.spent]
        told = energy(found.blocks, blind, found.sessions, RATES)
        assert told.kind == "estimated"
        assert told.joules is not None
        assert 0.008 <= told.joules.value < 0.016, "2 ms of CPU at 4 W"
        beside = [replace(one, package_j=None) for one in found.spent_beside["twice"]]
        logs = log_saving((found.beside["twice"], beside), (found.blocks, blind), 3, RATES)
        assert logs is not None
        assert np.exp(logs.mean()) == pytest.approx(2, rel=0.3)
    assert workbench.heard.cached[3:] == [("latency", True)] * 3
