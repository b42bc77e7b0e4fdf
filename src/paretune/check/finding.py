"""Finding: one limit of the budget, what a measurement shows of it, and what follows, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from paretune.ask.budget import LATENCIES, Limit
from paretune.check.answers import Answers, drop_of
from paretune.check.cost import Cost
from paretune.check.energy import Energy
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.statistics import Estimate, mean_logs, ratio

Ruling = Literal["meets", "breaks", "undecided"]


@dataclass(frozen=True)
class Finding:
    """One limit, what was found, and what follows, in words; ``disputed``: it looks broken, on examples that prove
    nothing."""

    limit: Limit
    verdict: Ruling
    estimate: Estimate | None
    text: str
    batch: int | None = None
    disputed: bool = False

    def describe(self) -> dict[str, Any]:
        ends = self.estimate.describe() if self.estimate else {"value": None, "low": None, "high": None}
        return {"limit": self.limit.text, "batch": self.batch, "verdict": self.verdict, **ends, "text": self.text}


def findings_on(
    limit: Limit,
    trial: Measurement,
    ours: Answers | None,
    theirs: Answers | None,
    level: float,
) -> list[Finding]:
    """What is found on a limit on the drop, the size, a latency, the throughput or memory: one for each score or batch
    size that it speaks of."""
    if limit.name == "drop":
        if ours is None or theirs is None:
            return [Finding(limit, "undecided", None, "no answers were compared with the original's")]
        every = (*theirs.scores, *theirs.wholes)
        names = [name for name in every if limit.score in (None, name)]
        if not names:
            known = ", ".join(every)
            return [Finding(limit, "undecided", None, f"there is no score {limit.score!r}, there is {known}")]
        return [_drop_finding(limit, name, ours, theirs, level) for name in names]
    if limit.name == "size":
        size = float(trial.size_bytes)
        return [_ruled(limit, Estimate(size, size, size), "")]
    found = [
        replace(_run_finding(limit, run, _where(limit, trial, batch), level), batch=batch)
        for batch, run in _asked(limit, trial).items()
    ]
    return found or [_unmeasured(limit)]


def disputed(finding: Finding) -> Finding:
    """What looks broken on examples that the original may know is undecided; all else stays."""
    if finding.verdict != "breaks":
        return finding
    told = "undecided, as the original may have learnt these examples by heart: held-out data decides"
    return replace(finding, verdict="undecided", text=finding.text.removesuffix("breaks") + told, disputed=True)


def _asked(limit: Limit, trial: Measurement) -> dict[int, BatchRun]:
    """The runs that a limit speaks of."""
    return {batch: run for batch, run in trial.runs.items() if limit.batch in (None, batch)}


def _where(limit: Limit, trial: Measurement, batch: int) -> str:
    return f"at batch {batch}" if len(trial.runs) > 1 or limit.batch else ""


def _unmeasured(limit: Limit) -> Finding:
    return Finding(limit, "undecided", None, f"batch {limit.batch} was not measured")


def spending(limit: Limit, trial: Measurement, spent: Mapping[int, Energy], costs: Mapping[int, Cost]) -> list[Finding]:
    """Energy at every batch size; cost at the cheapest, as whoever pays may choose the batch size."""
    asked = _asked(limit, trial)
    if not asked:
        return [_unmeasured(limit)]
    if limit.name == "energy":
        return [
            replace(_energy_finding(limit, spent[batch], run.samples, _where(limit, trial, batch)), batch=batch)
            for batch, run in asked.items()
        ]
    known = {batch: found for batch in asked if (one := costs.get(batch)) and (found := one.per_thousand)}
    if not known:
        why = "its energy is unavailable here" if costs else "no prices were given"
        return [Finding(limit, "undecided", None, f"the cost is not known: {why}")]
    batch = min(known, key=lambda batch: known[batch].value)
    where = f"per thousand {_where(limit, trial, batch)}".strip()
    finding = _more(_ruled(limit, known[batch], where), asked[batch].samples, "samples")
    told = " (with energy estimated from CPU time, not measured)" if costs[batch].kind == "estimated" else ""
    return [replace(finding, text=finding.text + told, batch=batch)]


def _energy_finding(limit: Limit, found: Energy, samples: int, where: str) -> Finding:
    if found.joules is None:
        return Finding(limit, "undecided", None, f"energy {where} is unavailable: {found.how}".replace("  ", " "))
    joules = found.joules
    finding = _more(
        _ruled(limit, Estimate(1e3 * joules.value, 1e3 * joules.low, 1e3 * joules.high), where), samples, "samples"
    )
    return replace(finding, text=f"{finding.text} ({found.how})")


def _run_finding(limit: Limit, run: BatchRun, where: str, level: float) -> Finding:
    if limit.name in LATENCIES:
        estimate = run.percentile(limit.name, level)
        if estimate is None:
            return Finding(
                limit, "undecided", None, f"{run.samples} samples are too few for {limit.name} {where}".strip()
            )
        return _more(_ruled(limit, estimate, where), run.samples, "samples")
    if limit.name == "throughput":
        return _more(_ruled(limit, throughput(run, level), where), run.samples, "samples")
    if run.peak_bytes is None:
        return Finding(limit, "undecided", None, "memory cannot be read on this system")
    return _ruled(limit, Estimate(*[float(run.peak_bytes)] * 3), where)


def throughput(run: BatchRun, level: float) -> Estimate:
    """Rows per second; the interval is that of the mean latency."""
    found = ratio(-mean_logs(run.blocks, run.sessions), level)
    return Estimate(*(run.rows_per_s * end / found.value for end in (found.value, found.low, found.high)))


def _drop_finding(limit: Limit, name: str, ours: Answers, theirs: Answers, level: float) -> Finding:
    # in the limit's own unit: one score may be asked in points and in per cent
    estimate = drop_of(ours, theirs, name, limit.unit, level)
    if math.isnan(estimate.value):
        return Finding(limit, "undecided", None, f"{name} of the original is 0, of which no per cent can be taken")
    return _more(_ruled(limit, estimate, f"of {name}"), len(theirs), "examples")


def _more(finding: Finding, count: int, what: str) -> Finding:
    """An undecided finding, with about how many more examples or samples would decide it.

    An interval shrinks with the root of their number: it must become as narrow as the value's distance to the limit.
    """
    estimate = finding.estimate
    if finding.verdict != "undecided" or estimate is None:
        return finding
    gap = abs(finding.limit.value - estimate.value)
    half = (estimate.high - estimate.low) / 2
    if gap == 0 or not math.isfinite(half):
        return finding
    more = max(1, math.ceil(count * ((half / gap) ** 2 - 1)))
    return replace(finding, text=f"{finding.text}; about {more:,} more {what} would decide")


def _ruled(limit: Limit, estimate: Estimate, where: str) -> Finding:
    good = -1 if limit.op == "<=" else 1
    worst, best = (estimate.high, estimate.low) if good < 0 else (estimate.low, estimate.high)
    ruling: Ruling = "undecided"
    if math.isnan(worst):
        ruling = "undecided"
    elif (worst - limit.value) * good >= 0:
        ruling = "meets"
    elif (best - limit.value) * good < 0:
        ruling = "breaks"
    shown = " ".join(part for part in (limit.name, where) if part)
    ends = "" if estimate.low == estimate.high else f" ({_unit(estimate.low, limit)} … {_unit(estimate.high, limit)})"
    text = f"{shown} is {_unit(estimate.value, limit)}{ends}, asked {limit.text}: {ruling}"
    return Finding(limit, ruling, estimate, text)


def _unit(value: float, limit: Limit) -> str:
    if math.isinf(value):
        return "no bound"
    if limit.unit == "B":
        return f"{value / 1e6:.3g} MB"
    if limit.unit in ("pp", "%"):
        return f"{value:.2f} {limit.unit}"
    return f"{value:.4g} {limit.unit}".strip()
