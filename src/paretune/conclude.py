"""What a run hands back: ``result.json``, the report, the best and the baseline as bundles."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.code import fingerprint_of
from paretune.ask.score import named
from paretune.ask.workload import members
from paretune.build.store import key_of
from paretune.check.disturbance import together
from paretune.check.slices import SliceReport, by_slice
from paretune.check.verdict import Verdict, judge
from paretune.deliver import summary
from paretune.deliver.bundle import Bundle, pack
from paretune.deliver.run import BASELINE, BUNDLE, NEAREST, Run, read_log, save
from paretune.deliver.trial import Trial, quantile_points
from paretune.errors import ArtifactError, BuildError, CallError, DataError
from paretune.loop import Loop


def conclude(loop: Loop) -> Run:
    """Write the result, the report, the best and the baseline as bundles."""
    loop.journal.say("stage", "writing the result")
    best = summary.best_of(loop.trials, loop.targets)
    earlier = _standing(loop) if best is None else None
    if earlier is not None:
        told = "stopped before anything was confirmed: the result of the earlier call stands"
        loop.journal.say("warning", told)
        return earlier
    _finish_baseline(loop)
    if best is not None and best.confirmed is not None:
        mine = best.confirmed.measurement.runs
        best.histogram = {
            batch: {
                "baseline": quantile_points(dataclasses.replace(run, blocks=run.beside[loop.baseline.id])),
                "candidate": quantile_points(run),
            }
            for batch, run in mine.items()
        }
        try:
            best.slices = _slices(loop, best.confirmed)
        except DataError as error:
            loop.journal.warn(f"no slices were judged: {error}")
    for warning in (*_disturbed(loop, best), *_repeated(loop)):
        loop.journal.warn(warning)
    workload = _workload_facts(loop)
    baseline = _pack(loop, loop.baseline, loop.root / BASELINE, workload)
    packed = None if best is None else _pack(loop, best, loop.root / BUNDLE, workload)
    if packed is None:
        shutil.rmtree(loop.root / BUNDLE, ignore_errors=True)  # an earlier one no longer meets what is asked
    close = None if best else summary.nearest(loop.trials, loop.targets)[0]
    shutil.rmtree(loop.root / NEAREST, ignore_errors=True)
    near = None if close is None or not close.artifact else _pack(loop, close, loop.root / NEAREST, workload)
    facts = {
        "paretune": version("paretune"),
        "title": loop.workload.name,
        "started": loop.journal.started,
        "workload": workload,
        "machine": loop.machine,
        "seconds": loop.journal.seconds(loop.bench.seconds),
        "time_limit_s": loop.journal.limit_s,
        "stopped": loop.stopped,
        "question": _question(loop),
        "warnings": loop.journal.warnings,
        "timeline": loop.journal.timeline,
        "bundle": {"path": BUNDLE, "files": dict(packed.manifest["files"])} if packed else None,
    }
    result = summary.document(loop.trials, loop.budget, loop.root, loop.targets, loop.batches, loop.stopped_at, facts)
    run = save(loop.root, result)
    for bundle in (baseline, packed, near):
        if bundle is not None:
            bundle.attach(run.report.read_text())
    loop.journal.say("end", "done", {"best": result["best"], "seconds": round(loop.journal.spent_s, 1)})
    return run


def _standing(loop: Loop) -> Run | None:
    """What an earlier call answered to the same question, where this one was stopped too early to say anything: it
    tested nothing on held-out data, and measured what was the best then neither as too slow nor as failing."""
    if loop.stopped == "finished":
        return None
    try:
        earlier = Run.open(loop.root)
    except (CallError, ArtifactError):
        return None
    known = earlier.result
    best = next((entry for entry in known["candidates"] if entry["id"] == known["best"]), None)
    if best is None or best["target"] not in loop.targets or known.get("question") != _question(loop):
        return None
    tested = any(trial.confirmed.data == "heldout" for trial in loop.trials if trial.confirmed is not None)
    judged = {trial.id for trial in loop.trials if trial.confirmed is not None or trial is loop.stopped_at}
    return None if tested or best["id"] in judged else earlier


def _question(loop: Loop) -> str:
    """A digest of what was asked, of which model, on which data and which machine, however it was written."""
    budget = loop.budget
    limits = sorted(
        (limit.name, limit.op, limit.value, limit.unit, limit.batch or 0, limit.score or "") for limit in budget.limits
    )
    parts = {
        "limits": limits, "confidence": budget.confidence, "rates": budget.rates.describe(),
        "objective": [budget.objective.name, budget.objective.batch], "batches": list(loop.batches),
        "workload": _workload_digest(loop), "machine": loop.machine["digest"], "allowed": list(loop.allowed),
        "scores": {name: fingerprint_of(score) for name, score in named(loop.workload.score).items()},
        "keep": list(loop.builder.fit.keep),
    }  # fmt: skip
    return key_of("question", parts)


def _workload_digest(loop: Loop) -> str:
    return key_of("workload", {"model": loop.original.digest, "heldout": loop.data.heldout.digest})


def _slices(loop: Loop, verdict: Verdict) -> dict[str, SliceReport]:
    """For each score with a limit on its drop: every class and every part that the workload names, on held-out data."""
    base = loop.baseline.measurement
    ours, theirs = (found.answers.get("heldout") if found else None for found in (base, verdict.measurement))
    if ours is None or theirs is None:
        return {}
    split = loop.data.heldout
    parts = [part.labels for part in split.batches(loop.answer_batch)]
    plain = all(part is not None and part.ndim == 1 for part in parts)
    labels = np.concatenate([part for part in parts if part is not None]) if plain else None
    masks = {name: members(split, name, belongs) for name, belongs in (loop.workload.slices or {}).items()}
    changed = ours.compared != theirs.compared if ours.compared.dtype.kind in "iub" else None
    if changed is not None:
        changed = changed.reshape(len(changed), -1).any(axis=1)
    found = {}
    for score, values in theirs.scores.items():
        limits = [limit for limit in loop.budget.limits if limit.name == "drop" and limit.score in (None, score)]
        if limits and (labels is not None or masks):
            tightest = min(limits, key=lambda limit: limit.value)
            found[score] = by_slice(
                ours.scores[score], values, tightest.value, tightest.unit, labels, masks, changed,
                loop.budget.confidence,
            )  # fmt: skip
    return {score: report for score, report in found.items() if report.slices}


def _disturbed(loop: Loop, best: Trial | None) -> tuple[str, ...]:
    """What makes the figures of the best (else the baseline) those of a busy machine, over all its batch sizes."""
    verdict = (best or loop.baseline).verdict
    runs = verdict.measurement.runs.values() if verdict else ()
    seen = together([part for run in runs for part in run.disturbances], [part for run in runs for part in run.spent])
    return seen.warnings if seen else ()


def _repeated(loop: Loop) -> tuple[str, ...]:
    """A warning where calls of this run tested other candidates on the same held-out data: each sequence of tests is at
    the full level. One that goes on where another ended is the same."""
    calls: list[tuple[tuple[str, str], ...]] = []
    mine = False  # whether the call that is being read tested on what is held out now
    for event in read_log(loop.root):
        if event["event"] == "stage" and "heldout" in event:
            mine = event["heldout"] == loop.data.heldout.digest
            calls.append(())
        elif mine and event["event"] == "candidate" and event.get("stage") == "confirmed":
            calls[-1] = (*calls[-1], (event["id"], event["artifact"]))
    every = {one for one in calls if one}
    many = sum(not any(other != one and other[: len(one)] == one for other in every) for one in every)
    if many < 2:
        return ()
    return (
        f"{many} calls of this run tested different candidates on the same held-out data: that one of them all is "
        f"wrongly said to meet is up to {many} times as likely as the confidence says",
    )


def _finish_baseline(loop: Loop) -> None:
    """The baseline's own percentiles come from the rounds that it stood beside the finalists in."""
    base = loop.baseline.measurement
    assert base is not None
    beside = [trial.confirmed.measurement for trial in loop.trials if trial.confirmed and trial is not loop.baseline]
    runs = dict(base.runs)
    if beside:  # all finalists were measured in the same rounds: any of them tells
        for batch, run in beside[0].runs.items():
            blocks = run.beside[loop.baseline.id]
            before_ms, now_ms = (
                np.concatenate(list(map(np.asarray, of))).mean() for of in (base.runs[batch].blocks, blocks)
            )
            runs[batch] = dataclasses.replace(
                base.runs[batch],
                blocks=blocks,
                rows_per_s=base.runs[batch].rows_per_s * float(before_ms / now_ms),
                sessions=run.sessions,
                spent=run.spent_beside.get(loop.baseline.id, ()),
                disturbances=run.disturbances,
            )
    whole = dataclasses.replace(base, runs=runs)
    data = "heldout" if "heldout" in base.answers else "ranking"
    verdict = judge(whole, whole, loop.budget, data, loop.reference_id)
    if data == "heldout":
        loop.baseline.confirmed = verdict
    else:
        loop.baseline.ranked = verdict


def _pack(loop: Loop, trial: Trial, into: Path, workload: Mapping[str, Any]) -> Bundle | None:
    assert trial.artifact is not None
    measurement = trial.confirmed.measurement if trial.confirmed else trial.measurement
    if trial is loop.baseline:
        measurement = loop.baseline.measurement
    answers = measurement.answers.get("heldout") if measurement else None
    try:
        with loop.journal.building():
            return pack(
                trial.candidate,
                trial.artifact,
                into,
                machine=loop.machine,
                workload=workload,
                evidence=trial.describe(loop.budget.confidence, loop.root),
                answers=answers,
            )
    except BuildError as error:
        loop.journal.warn(f"no {into.name}/ was written: {error}")
        return None


def _workload_facts(loop: Loop) -> dict[str, Any]:
    return {
        "name": loop.workload.name,
        "digest": _workload_digest(loop),
        "heldout_size": len(loop.data.heldout),
        "ranking_size": len(loop.data.ranking),
        "ranking_of": "heldout" if loop.workload.train is None else "train",
        "fit_size": len(loop.data.fit),
        "scores": list(named(loop.workload.score)),
        "form": loop.original.form,
    }
