"""What a run hands back: ``result.json``, the report, the best and the baseline as bundles."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretune.ask.score import named
from paretune.build.store import key_of
from paretune.check.verdict import judge
from paretune.deliver import summary
from paretune.deliver.bundle import Bundle, pack
from paretune.deliver.run import BASELINE, BUNDLE, NEAREST, Run, save
from paretune.deliver.trial import Trial, quantile_points
from paretune.errors import BuildError
from paretune.loop import Loop


def conclude(loop: Loop) -> Run:
    """Write the result, the report, the best and the baseline as bundles."""
    loop.journal.say("stage", "writing the result")
    _finish_baseline(loop)
    best = summary.best_of(loop.trials, loop.targets)
    if best is not None and best.confirmed is not None:
        mine = best.confirmed.measurement.runs
        best.histogram = {
            batch: {
                "baseline": quantile_points(dataclasses.replace(run, blocks=run.beside[loop.baseline.id])),
                "candidate": quantile_points(run),
            }
            for batch, run in mine.items()
        }
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


def _finish_baseline(loop: Loop) -> None:
    """The baseline's own percentiles come from the rounds that it stood beside the finalists in."""
    base = loop.baseline.measurement
    assert base is not None
    beside = [trial.confirmed.measurement for trial in loop.trials if trial.confirmed and trial is not loop.baseline]
    runs = dict(base.runs)
    if beside:  # all finalists were measured in the same rounds: any of them tells
        for batch, run in beside[0].runs.items():
            runs[batch] = dataclasses.replace(
                base.runs[batch], blocks=run.beside[loop.baseline.id], sessions=run.sessions
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
        "digest": key_of("workload", {"model": loop.original.digest, "heldout": loop.data.heldout.digest}),
        "heldout_size": len(loop.data.heldout),
        "ranking_size": len(loop.data.ranking),
        "fit_size": len(loop.data.fit),
        "scores": list(named(loop.workload.score)),
    }
