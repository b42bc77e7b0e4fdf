"""Confirming: the finalists once more, all in the same rounds, then on held-out data from the safest to the fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from paretune.check.front import finalists
from paretune.check.growth import BRIEF_S, INFERENCES
from paretune.check.measurement import Measurement
from paretune.check.plan import HURRIED, Plan, confirm_s, fitting
from paretune.check.verdict import Verdict, judge
from paretune.deliver.summary import best_of
from paretune.deliver.trial import Trial
from paretune.errors import DataError, MeasureError
from paretune.loop import Loop


def confirm(loop: Loop) -> None:
    """Measure the finalists anew and test them on all of held-out, until the first that fails there."""
    ranked = [trial.ranked for trial in loop.trials if loop.eligible(trial) and trial.ranked is not None]
    left_s = max(loop.journal.left_s, 5.0)
    plan, most = fitting(left_s, loop.pace_s, len(loop.data.heldout), loop.bench.open_s)
    hurried = loop.stopped == "interrupted"
    if hurried:
        plan, most = HURRIED, 3
    chosen = finalists(ranked, loop.batches, most)
    if not chosen:
        return
    many, heldout = len(chosen), loop.data.heldout
    told = f"confirming {many} finalists on {len(heldout):,} held-out examples"
    loop.journal.say("stage", told, {"heldout": heldout.digest})
    by_id = {trial.id: trial for trial in loop.trials}
    sequence = [by_id[verdict.id] for verdict in chosen]
    measured = _measured(loop, sequence, plan, hurried)
    opened = 0
    for trial in sequence:
        if trial.id not in measured or loop.stopped_at is not None:
            continue
        interrupted = loop.stopped == "interrupted" and not hurried
        if opened and (interrupted or (loop.journal.left_s < 0 and not hurried)):
            trial.why = f"not confirmed: {'interrupted' if interrupted else 'the time was over'}"
            loop.stopped = "time" if loop.stopped == "finished" else loop.stopped
            continue
        opened += 1
        loop.journal.say("progress", f"confirming {trial.candidate.title}")
        trial.confirmed = _refused(loop, trial, measured[trial.id])
        if trial.confirmed is not None:
            continue
        try:
            _answer_baseline(loop)
        except (MeasureError, DataError) as error:
            loop.journal.warn(f"nothing could be confirmed, as the original fails on held-out data: {error}")
            break
        try:
            trial.confirmed = _tested(loop, trial, measured[trial.id])
        except (MeasureError, DataError) as error:
            trial.why = f"failed while being confirmed: {error}"
            loop.stopped_at = trial
            continue
        loop.journal.tell(trial)
        if trial.confirmed.verdict != "meets":
            loop.stopped_at = trial
    _soak(loop)


def _soak(loop: Loop) -> None:
    """Look whether the best leaks, where there is time left; a leak is a finding, and no failure."""
    best = best_of(loop.trials, loop.targets)
    if best is None or loop.stopped == "interrupted" or loop.journal.left_s < 2 * BRIEF_S + loop.bench.open_s:
        return
    loop.journal.say("progress", f"watching the memory of {best.candidate.title}")
    try:
        best.growth = loop.bench.soak(loop.subject(best), loop.data.ranking, max(loop.batches), INFERENCES, BRIEF_S)
    except MeasureError as error:
        loop.journal.warn(f"{best.candidate.title} failed while its memory was watched: {error}")
        return
    if best.growth.verdict == "leaking":
        loop.journal.warn(f"{best.candidate.title}: {best.growth.text}")


def _measured(loop: Loop, trials: Sequence[Trial], plan: Plan, hurried: bool) -> Mapping[str, Measurement]:
    """Speed and memory of all finalists, taking turns; one that fails is left out, and the others begin again."""
    left = list(trials)
    failures = 0
    answering = dataclasses.replace(plan, sessions=0)
    kept_s = confirm_s(answering, len(left), loop.pace_s, len(loop.data.heldout), loop.bench.open_s)

    def enough() -> bool:
        return (loop.stopped == "interrupted" and not hurried) or loop.journal.left_s < kept_s

    def heard(session: int) -> None:
        loop.journal.say("progress", f"timing the finalists, session {session + 1} of {plan.sessions}")

    while left:
        subjects = [loop.subject(trial) for trial in left]
        try:
            return loop.bench.latency(subjects, loop.data.ranking, loop.batches, plan, enough, heard)
        except MeasureError as error:
            failures += 1
            failed = [trial for trial in left if trial.id == error.guilty]
            if not failed and failures > 1:  # the original or the reference itself, and again
                failed = left
            for trial in failed:
                trial.why = f"failed while being confirmed: {error}"
            left = [trial for trial in left if trial not in failed]
    return {}


def _refused(loop: Loop, trial: Trial, measured: Measurement) -> Verdict | None:
    """The verdict on what misses a limit on speed, memory, size or spending; held-out data is not opened for it."""
    base = loop.baseline.measurement
    assert base is not None
    limits = tuple(limit for limit in loop.budget.limits if limit.name != "drop")
    without_drop = dataclasses.replace(loop.budget, limits=limits)
    first = judge(base, measured, without_drop, None, loop.reference_id)
    if first.verdict == "meets":
        return None
    told = min(first.findings, key=lambda finding: ("breaks", "undecided", "meets").index(finding.verdict))
    trial.why = f"measured anew, {told.text}"
    assert trial.ranked is not None
    # what was found on the ranking data still stands beside the new figures
    drops = tuple(finding for finding in trial.ranked.findings if finding.limit.name == "drop")
    return dataclasses.replace(
        trial.ranked,
        verdict=first.verdict,
        findings=(*first.findings, *drops),
        merit=first.merit,
        pace=first.pace,
        improves=first.improves,
        slower=first.slower,
        speedups=first.speedups,
        reference_speedups=first.reference_speedups,
        measurement=first.measurement,
        energy=first.energy,
        cost=first.cost,
    )


def _answer_baseline(loop: Loop) -> None:
    """The original's answers to held-out; its failure is no finding on a candidate, and is tried once again."""
    base = loop.baseline.measurement
    assert base is not None
    if "heldout" in base.answers:
        return
    subject = loop.subject(loop.baseline)
    try:
        found = loop.bench.answer(subject, loop.data.heldout, "heldout", loop.answer_batch)
    except MeasureError:
        found = loop.bench.answer(subject, loop.data.heldout, "heldout", loop.answer_batch)
    loop.baseline.measurement = dataclasses.replace(base, answers={**base.answers, "heldout": found})


def _tested(loop: Loop, trial: Trial, measured: Measurement) -> Verdict:
    """The whole verdict, with the answers to held-out data."""
    base = loop.baseline.measurement
    assert base is not None
    answers = loop.bench.answer(loop.subject(trial), loop.data.heldout, "heldout", loop.answer_batch)
    whole = dataclasses.replace(measured, answers={"heldout": answers})
    return judge(base, whole, loop.budget, "heldout", loop.reference_id)
