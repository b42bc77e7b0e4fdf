"""Verdict: a measurement against the baseline and the budget: meets, breaks or undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from paretune.ask.budget import Budget
from paretune.ask.score import unit_of_drop
from paretune.check.answers import Answers, Array, drop_of
from paretune.check.cost import Cost, cost
from paretune.check.energy import Energy, energy, log_saving
from paretune.check.finding import Finding, Ruling, disputed, findings_on, spending, throughput
from paretune.check.jackknife import whole
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.statistics import CLUSTERS, Estimate, likeness, log_ratios, mean, mean_logs, ratio


@dataclass(frozen=True)
class Verdict:
    """What is true of one subject, next to the baseline, at the budget's confidence.

    ``verdict`` is ``breaks`` if any limit breaks, ``meets`` if all meet. ``merit`` is the objective as a ratio to the
    baseline, higher is better; ``pace`` the geometric mean of the p50 speed-ups over all batch sizes. ``improves`` is
    false for what is slower than the baseline, over all, by the objective, or at ``slower``, the batch sizes under the
    objective where that is shown by the whole interval: it is never called best. ``risk`` is how far its answers are
    from the original's: 0 for the same answers, NaN when it gave none; ``data`` names the examples
    that drops and agreement come from, and ``learnt`` whether they favour the baseline, which may know them.
    """

    id: str
    verdict: Ruling
    findings: tuple[Finding, ...]
    merit: Estimate
    pace: Estimate
    improves: bool
    speedups: Mapping[int, Estimate]
    reference_speedups: Mapping[int, Estimate]
    scores: Mapping[str, Estimate]
    drops: Mapping[str, Estimate]
    units: Mapping[str, str]
    agreement: Estimate | None
    risk: float
    data: str | None
    measurement: Measurement
    learnt: bool = False
    slower: tuple[int, ...] = ()
    energy: Mapping[int, Energy] = field(default_factory=dict)
    cost: Mapping[int, Cost] = field(default_factory=dict)


def judge(
    baseline: Measurement,
    trial: Measurement,
    budget: Budget,
    data: str | None = None,
    reference: str | None = None,
    learnt: bool = False,
) -> Verdict:
    """Judge ``trial`` against ``baseline``.

    Parameters
    ----------
    data
        Which answers to compare, ``ranking`` or ``heldout``; None judges speed, memory and size alone.
    reference
        The id of a second companion of the measurement, for ``reference_speedups``.
    learnt
        Whether the baseline may have learnt the examples that answers are compared on, and ``trial`` was trained on
        others: that its score is lower there is then no proof, and a limit on the drop is not broken but undecided.
    """
    level = budget.confidence
    speed = {batch: _speedup(baseline, run) for batch, run in trial.runs.items()}
    # rounds of one session may be disturbed one by one; a session's value is a median already
    rough = any(run.sessions < CLUSTERS for run in trial.runs.values())
    beside = {
        batch: ratio(log_ratios(run.beside[reference], run.blocks, run.sessions), level, rough)
        for batch, run in trial.runs.items()
        if reference is not None and reference in run.beside
    }
    ours = baseline.answers.get(data) if data else None
    theirs = trial.answers.get(data) if data else None
    scores, drops, units, agreement = _accuracy(ours, theirs, budget)
    spent = {
        batch: energy(run.blocks, run.spent, run.sessions, budget.rates, level) for batch, run in trial.runs.items()
    }
    costs = _costs(trial, spent, theirs, scores, budget)
    findings: list[Finding] = []
    for limit in budget.limits:
        if limit.name in ("energy", "cost"):
            findings += spending(limit, trial, spent, costs)
        else:
            found = findings_on(limit, trial, ours, theirs, level)
            findings += [disputed(finding) for finding in found] if learnt and limit.name == "drop" else found
    rulings = {finding.verdict for finding in findings}
    ruling: Ruling = "breaks" if "breaks" in rulings else "undecided" if "undecided" in rulings else "meets"
    pace = _pace(speed, list(speed), level, rough)
    merit = _merit(baseline, trial, budget, speed, agreement, rough)
    speedups = {batch: ratio(logs, level, rough) for batch, logs in speed.items()}
    slower = tuple(
        batch for batch, found in speedups.items() if found.high < 1 and budget.objective.batch in (None, batch)
    )
    gains = budget.objective.name in ("size", "memory", "drop") or merit.value > 1
    return Verdict(
        id=trial.id,
        verdict=ruling,
        findings=tuple(findings),
        merit=merit,
        pace=pace,
        improves=pace.value > 1 and gains and not slower,
        slower=slower,
        speedups=speedups,
        reference_speedups=beside,
        scores=scores,
        drops=drops,
        units=units,
        agreement=agreement,
        risk=_risk(ours, theirs, agreement),
        data=data if theirs is not None else None,
        learnt=learnt,
        measurement=trial,
        energy=spent,
        cost=costs,
    )


def unit_of(score: str, budget: Budget) -> str:
    """The unit in which a score's drop is stated: what the budget asks, else points, or per cent where unbounded."""
    asked = {limit.score: limit.unit for limit in budget.limits if limit.name == "drop"}
    return asked.get(score) or asked.get(None) or unit_of_drop(score)


def _risk(ours: Answers | None, theirs: Answers | None, agreement: Estimate | None) -> float:
    """The share of changed answers plus the mean change in confidence.

    A small ranking slice often shows no changed answer at all; the shift in confidence still tells a conversion, which
    computes the same to rounding, from a quantised model.
    """
    if ours is None or theirs is None or agreement is None:
        return math.nan
    changed = max(0.0, 1.0 - agreement.value)
    if ours.compared.dtype.kind not in "iub":
        return changed
    return changed + float(np.abs(ours.confidence - theirs.confidence).mean())


def _speedup(baseline: Measurement, run: BatchRun, q: float = 0.5) -> Array:
    # the baseline has none beside it but itself
    beside = run.beside[baseline.id] if baseline.id in run.beside else baseline.runs[run.batch].blocks
    return log_ratios(beside, run.blocks, run.sessions, q)


def _accuracy(
    ours: Answers | None, theirs: Answers | None, budget: Budget
) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, str], Estimate | None]:
    if ours is None or theirs is None:
        return {}, {}, {}, None
    level = budget.confidence
    units = {name: unit_of(name, budget) for name in (*theirs.scores, *theirs.wholes)}
    scores = {name: mean(values, level) for name, values in theirs.scores.items()}
    scores |= {name: whole(found, level) for name, found in theirs.wholes.items()}
    drops = {name: drop_of(ours, theirs, name, unit, level) for name, unit in units.items()}
    return scores, drops, units, likeness(ours.compared, theirs.compared, level)


def _pace(speed: Mapping[int, Array], runs: list[int], level: float, rough: bool) -> Estimate:
    """The geometric mean over batch sizes, session by session."""
    units = min(len(speed[number]) for number in runs)
    return ratio(np.mean([speed[number][:units] for number in runs], axis=0), level, rough)


def _merit(
    baseline: Measurement,
    trial: Measurement,
    budget: Budget,
    speed: Mapping[int, Array],
    agreement: Estimate | None,
    rough: bool,
) -> Estimate:
    name, batch = budget.objective.name, budget.objective.batch
    if name == "size":
        smaller = baseline.size_bytes / trial.size_bytes
        return Estimate(smaller, smaller, smaller)
    if name == "drop":
        return agreement or Estimate(math.nan, math.nan, math.nan)
    runs = [number for number in speed if batch in (None, number)]
    if name == "memory":
        peaks = [(baseline.runs[number].peak_bytes, trial.runs[number].peak_bytes) for number in runs]
        logs = [math.log(ours / theirs) for ours, theirs in peaks if ours and theirs]
        smaller = math.exp(float(np.mean(logs))) if logs else math.nan
        return Estimate(smaller, smaller, smaller)
    if name in ("p90", "p95", "p99"):
        q = int(name[1:]) / 100
        speed = {number: _speedup(baseline, trial.runs[number], q) for number in runs}
    elif name == "energy":
        saved = {number: _saving(baseline, trial.runs[number], budget) for number in runs}
        if any(logs is None for logs in saved.values()):
            return Estimate(math.nan, math.nan, math.nan)
        speed = {number: logs for number, logs in saved.items() if logs is not None}
    elif name == "throughput":
        speed = {number: _rate_ratio(baseline, trial.runs[number]) for number in runs}
    return _pace(speed, runs, budget.confidence, rough)


def _saving(baseline: Measurement, run: BatchRun, budget: Budget) -> Array | None:
    """Logarithms of the baseline's energy over that of this run, from the same rounds."""
    if baseline.id in run.beside:
        ours = run.beside[baseline.id], run.spent_beside.get(baseline.id, ())
    else:
        ours = baseline.runs[run.batch].blocks, baseline.runs[run.batch].spent
    return log_saving(ours, (run.blocks, run.spent), run.sessions, budget.rates)


def _rate_ratio(baseline: Measurement, run: BatchRun) -> Array:
    """Throughput over the baseline's: the ratio of mean latencies, times how many callers were answered at once."""
    beside = run.beside[baseline.id] if baseline.id in run.beside else baseline.runs[run.batch].blocks
    mean_ms = float(np.mean(np.concatenate([np.asarray(block) for block in run.blocks])))
    at_once = run.rows_per_s * mean_ms / 1e3 / run.batch
    ours, theirs = mean_logs(beside, run.sessions), mean_logs(run.blocks, run.sessions)
    units = min(len(ours), len(theirs))
    return ours[:units] - theirs[:units] + math.log(at_once)


def _costs(
    trial: Measurement,
    spent: Mapping[int, Energy],
    theirs: Answers | None,
    scores: Mapping[str, Estimate],
    budget: Budget,
) -> dict[int, Cost]:
    """By batch size, where there are prices; answers are right or wrong by the first score that says 0 or 1."""
    given = theirs.scores.items() if theirs is not None else ()
    right = next((scores[name] for name, values in given if np.isin(values, (0, 1)).all()), None)
    found = {
        batch: cost(batch, throughput(run, budget.confidence), spent[batch], right, budget.rates)
        for batch, run in trial.runs.items()
    }
    return {batch: one for batch, one in found.items() if one is not None}
