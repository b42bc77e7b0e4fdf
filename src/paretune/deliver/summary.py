"""What a run found, in words and as ``result.json``: the best, why the others lost, and what binds when none meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.ask.budget import Budget
from paretune.check.finding import Finding
from paretune.check.front import Front, front
from paretune.check.verdict import Verdict
from paretune.deliver.trial import Trial


def best_of(trials: Sequence[Trial], targets: Sequence[str]) -> Trial | None:
    """The confirmed candidate with the highest merit among those that meet; never one slower than the baseline."""
    able = [trial for trial in trials if _meets(trial, targets)]
    return max(able, key=lambda trial: trial.confirmed.merit.value if trial.confirmed else 0.0, default=None)


def _front(trials: Sequence[Trial]) -> Front:
    """All are compared on the ranking data, which all have; speed counts as confirmed, where it was."""
    ranked = [
        replace(trial.ranked, merit=trial.confirmed.merit if trial.confirmed else trial.ranked.merit)
        for trial in trials
        if trial.ranked is not None
    ]
    return front(ranked)


def best_by_batch(trials: Sequence[Trial], targets: Sequence[str], batches: Sequence[int]) -> dict[str, str]:
    """The fastest confirmed candidate at each batch size, where it is faster than the baseline."""
    confirmed = {trial.id: trial.confirmed for trial in trials if _meets(trial, targets) and trial.confirmed}
    found = {}
    for batch in batches:
        speeds = {name: verdict.speedups[batch].value for name, verdict in confirmed.items()}
        fast = [name for name, speed in speeds.items() if speed > 1]
        if fast:
            found[str(batch)] = max(fast, key=lambda name: speeds[name])
    return found


def _meets(trial: Trial, targets: Sequence[str]) -> bool:
    confirmed = trial.confirmed
    return (
        trial.role != "baseline"
        and trial.candidate.target.name in targets
        and confirmed is not None
        and confirmed.data == "heldout"
        and confirmed.verdict == "meets"
        and confirmed.improves
    )


def explain(
    trials: Sequence[Trial],
    best: Trial | None,
    by_batch: Mapping[str, str],
    stopped_at: Trial | None,
    targets: Sequence[str],
) -> None:
    """Say of every candidate why it is not the best; marks the front."""
    members = set(_front(trials).ids)
    for trial in trials:
        trial.in_front = trial.id in members
        if trial is best or trial.role == "baseline":
            continue
        if trial.verdict is not None and trial.candidate.target.name not in targets:
            trial.why = trial.why or f"stands for comparison: target {trial.candidate.target.name} was not asked for"
        trial.why = trial.why or _why(trial, best, by_batch, stopped_at)


def _why(trial: Trial, best: Trial | None, by_batch: Mapping[str, str], stopped_at: Trial | None) -> str:
    verdict = trial.verdict
    if verdict is None:
        return trial.error or "not tried: the time was over"
    batches = [batch for batch, name in by_batch.items() if name == trial.id]
    if trial.confirmed is not None and trial.confirmed.verdict == "meets":
        if verdict.pace.value <= 1:
            return f"meets the limits, but is slower than the original ({verdict.pace.value:.2f}×)"
        if verdict.slower:
            return f"meets the limits, but is slower than the original {_at(verdict)}"
        if batches:
            return f"the fastest at batch {', '.join(batches)}, though not over all"
        return f"meets the budget, but {best.candidate.title if best else 'another'} is better"
    # what breaks says more than what is undecided beside it
    binding = next((finding for finding in verdict.findings if finding.verdict == verdict.verdict), None)
    if trial.confirmed is not None and binding is not None:
        return binding.text
    if verdict.verdict == "breaks" and binding is not None:
        return f"on the ranking data, {binding.text}"
    if verdict.pace.value <= 1:
        return f"slower than the original ({verdict.pace.value:.2f}×)"
    if verdict.slower:
        return f"slower than the original {_at(verdict)}"
    if stopped_at is not None and trial.in_front:
        return f"not confirmed: the sequence ended at {stopped_at.candidate.title}, which did not meet"
    if trial.in_front:
        return "not confirmed: others stood before it, or the time was over"
    return "another candidate is at least as safe and faster"


def _at(verdict: Verdict) -> str:
    """Where it is slower: ``at batch 1 (0.95×)``."""
    return " and ".join(f"at batch {batch} ({verdict.speedups[batch].value:.2f}×)" for batch in verdict.slower)


def nearest(trials: Sequence[Trial], targets: Sequence[str]) -> tuple[Trial | None, str]:
    """When nothing meets: the candidate that comes nearest, and which limit binds by how much."""
    able = [
        trial
        for trial in trials
        if trial.verdict and trial.candidate.target.name in targets and trial.role != "baseline"
    ]
    if not able:
        return None, "no candidate could be built and measured; the list of what was tried says why"
    # held-out data has the last word: what failed there binds, whatever the ranking says of riskier ones
    tested = [trial for trial in able if trial.confirmed and trial.confirmed.verdict != "meets"]
    faster = [trial for trial in able if trial.verdict and trial.verdict.improves]
    if not faster:
        close = max(able, key=lambda trial: _merits(trial.verdict))
        untried = sum(trial.status == "skipped" for trial in trials)
        more = f"; {untried} more were not measured" if untried else ""
        name, pace = close.candidate.title, _pace(close.verdict)
        slow = _at(close.verdict) if close.verdict else ""
        if pace > 1 and not slow:
            merit = f"is {_merit(close.verdict):.2f} times as good by the objective"
            return close, f"nothing was better than the original: the nearest, {name}, {merit}{more}"
        runs = f"is slower {slow}" if slow and pace > 1 else f"runs at {pace:.2f}×"
        return close, f"nothing was faster than the original: the nearest, {name}, {runs}{more}"
    close = min(tested or able, key=lambda trial: _lacks(trial.verdict))
    verdict = close.verdict
    assert verdict is not None
    unmet = [finding for finding in verdict.findings if finding.verdict != "meets"]
    binding = max(unmet, key=lambda finding: (finding.verdict == "breaks", _over(finding)), default=None)
    if binding is None:
        name, pace = close.candidate.title, verdict.pace.value
        slow = f"nothing was faster than the original: the nearest, {name}, runs at {pace:.2f}×"
        late = f"the nearest, {name}, was not confirmed on held-out data" + (f": {close.why}" if close.why else "")
        return close, slow if pace <= 1 else late
    over = _over(binding)
    by = f", {over * 100:.0f} % past it" if 0 < over < float("inf") and binding.limit.value else ""
    seen = verdict.data == "heldout" if binding.limit.name == "drop" else close.confirmed is not None
    data = "" if seen else " (on the ranking data)"
    return close, f"{binding.limit.text} binds{by}: the nearest, {close.candidate.title}, {binding.text}{data}"


def _over(finding: Finding) -> float:
    """How far past its limit a finding lies, as a share of the limit; nothing is known where it is disputed."""
    if finding.estimate is None or finding.verdict == "meets" or finding.disputed:
        return 0.0
    worst = finding.estimate.high if finding.limit.op == "<=" else -finding.estimate.low
    limit = finding.limit.value if finding.limit.op == "<=" else -finding.limit.value
    return (worst - limit) / max(abs(limit), 1e-9)


def _lacks(verdict: Verdict | None) -> tuple[bool, float, float]:
    """In which order candidates come near what is asked; last those of which it is not known how far past a limit."""
    if verdict is None:
        return True, float("inf"), 0.0
    excess = max((_over(finding) for finding in verdict.findings), default=0.0)
    return any(finding.disputed for finding in verdict.findings), excess, -verdict.pace.value


def _merits(verdict: Verdict | None) -> tuple[bool, float]:
    """In which order candidates come near a gain: the objective decides only among those that are not slower."""
    faster = _pace(verdict) > 1
    return faster, _merit(verdict) if faster else _pace(verdict)


def _merit(verdict: Verdict | None) -> float:
    return verdict.merit.value if verdict else 0.0


def _pace(verdict: Verdict | None) -> float:
    return verdict.pace.value if verdict else 0.0


def document(
    trials: Sequence[Trial],
    budget: Budget,
    base: Path,
    targets: Sequence[str],
    batches: Sequence[int],
    stopped_at: Trial | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """``result.json``: ``facts`` are the parts that only the loop knows (workload, machine, seconds, warnings …)."""
    best = best_of(trials, targets)
    by_batch = best_by_batch(trials, targets, batches)
    explain(trials, best, by_batch, stopped_at, targets)
    close, why_none = (None, None) if best else nearest(trials, targets)
    ordered = _front(trials)
    baseline = next(trial for trial in trials if trial.role == "baseline")
    reference = next((trial.id for trial in trials if trial.role == "reference"), None)
    objective = budget.objective
    return {
        "schema": 1,
        **facts,
        "budget": budget.describe(),
        "objective": {"name": objective.name, "batch": objective.batch, "text": objective.text},
        "batches": list(batches),
        "baseline": baseline.describe(budget.confidence, base),
        "reference": reference,
        "candidates": [trial.describe(budget.confidence, base) for trial in trials if trial is not baseline],
        "front": list(ordered.ids),
        "best": best.id if best else None,
        "best_by_batch": by_batch,
        "nearest": close.id if close else None,
        "why_none": why_none,
    }
