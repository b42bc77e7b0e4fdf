"""The loop: from a workload and a budget to a verified bundle. A composition of the verbs of the stages."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.ask import plugin, source
from paretune.ask.artifact import META, Artifact
from paretune.ask.budget import Budget
from paretune.ask.event import Broadcast, Event, Observer
from paretune.ask.score import named
from paretune.ask.target import Target
from paretune.ask.workload import Partition, Workload, partition
from paretune.build.candidate import Builder, Candidate, read_recipes
from paretune.build.propose import Proposal, Queue, conversion, light
from paretune.build.recipe import Recipe
from paretune.build.store import Store, key_of, write_whole
from paretune.build.technique import Fit
from paretune.check.front import finalists
from paretune.check.machine import default_threads, fingerprint
from paretune.check.measurement import CONFIRM, SCREEN, Bench, Measurement, Plan, Subject
from paretune.check.verdict import Verdict, judge
from paretune.deliver import summary
from paretune.deliver.bundle import pack
from paretune.deliver.run import BASELINE, BUNDLE, CALL, LOG, Log, Run, save, start
from paretune.deliver.trial import Trial, quantile_points
from paretune.errors import BudgetError, BuildError, CallError, MeasureError, RecipeError

ANSWER_BATCH = 32
"""Batch size for accuracy when only batch 1 is asked."""


def optimize(
    workload: Workload,
    budget: str | Budget = "",
    *,
    targets: Sequence[str] | None = None,
    batch: Sequence[int] = (1,),
    time: str | float = "10m",
    out: str | Path | None = None,
    resume: bool = False,
    minimize: str | None = None,
    confidence: float = 0.95,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    keep: Sequence[str] = (),
    recipes: str | Path | Sequence[Candidate] | None = None,
    heldout_limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    store: str | Path | None = None,
    observers: Sequence[Observer] = (),
    call: Mapping[str, Any] | None = None,
) -> Run:
    """Make a workload's model small and fast within a budget, and prove it.

    Parameters
    ----------
    workload
        The model, its data and its score.
    budget
        Limits such as ``"p95@1<=5ms, drop<=1pp"``.
    targets
        Names of targets; None: every installed one that runs here.
    batch
        Batch sizes to measure.
    time
        When to end: ``"10m"``, ``"90s"``, or seconds. What is confirmed by then is the answer.
    out, resume
        The run's directory; ``resume`` goes on with one that exists, repeating no finished step.
    minimize
        The objective, such as ``"p50@32"`` or ``"size"``; None: the highest p50 speed-up.
    only, without
        Techniques to use alone, or not to use, by name (``fnmatch`` patterns).
    keep
        Patterns of node or module names that stay in float.
    recipes
        A fixed list of candidates, or the file of one, in place of the search.
    heldout_limit
        Use at most this many held-out examples.
    seed, threads, store
        Seed of every random choice; CPU threads of every runtime; a store shared between runs.
    observers
        Receive every event.

    Returns
    -------
    Run
        ``best`` (None when nothing meets), ``front``, ``report``; in a notebook it shows itself.

    Raises
    ------
    ParetuneError
        With what is wrong, where, and what to do.
    """
    limits = budget if isinstance(budget, Budget) else Budget.parse(budget, minimize, confidence)
    sizes = limits.batches(_batches(batch))
    _check_scores(limits, list(named(workload.score)))
    usable, asked = _targets(targets)
    techniques = _techniques(only, without)
    limit_s = seconds_of(time)
    fixed = read_recipes(Path(recipes)) if isinstance(recipes, str | Path) else recipes
    root = start(Path(out) if out is not None else None, workload.name, resume)
    log = Log(root / LOG)
    watch = Broadcast((log, *observers))
    stored = Store(Path(store) if store is not None else root / "store")
    stored.sweep()
    machine = fingerprint(threads or default_threads())
    resolved = {
        **(call or {"workload": workload.name}), "budget": limits.text, "minimize": minimize, "confidence": confidence,
        "batch": list(sizes), "time_s": limit_s, "targets": asked, "techniques": sorted(techniques), "keep": list(keep),
        "seed": seed, "threads": machine["threads"], "heldout_limit": heldout_limit, "versions": machine["libraries"],
    }  # fmt: skip
    write_whole(root / CALL, json.dumps(resolved, indent=1))
    loop = _Loop(workload, limits, sizes, asked, limit_s, root, stored, machine, seed, watch)
    try:
        with loop.interruptible():
            loop.prepare(heldout_limit, tuple(keep))
            loop.references(usable)
            loop.search(fixed, techniques, {name: usable[name] for name in asked})
            loop.confirm()
        return loop.deliver()
    finally:
        loop.close()
        log.close()


@dataclass
class _Loop:
    """What the steps of one run share; each method is one step, in the order of ``optimize``."""

    workload: Workload
    budget: Budget
    batches: tuple[int, ...]
    targets: list[str]
    limit_s: float
    root: Path
    store: Store
    machine: dict[str, Any]
    seed: int
    observer: Observer
    trials: list[Trial] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "finished"
    stopped_at: Trial | None = None
    building_s: float = 0.0
    begun: float = field(default_factory=time.perf_counter)
    bench: Bench | None = None

    # -- the steps ---------------------------------------------------------------------------------------------

    def prepare(self, heldout_limit: int | None, keep: tuple[str, ...]) -> None:
        """Part the data, read the model through its front door, measure the baseline."""
        self._say("stage", "reading the data and the model")
        with self._building():
            self.data: Partition = partition(self.workload, self.seed, heldout_limit)
            self.original, self.source = self._read_model()
        for warning in self.data.warnings:
            self._warn(warning)
        fit = Fit(self.data.fit, self.workload.loss, self.original, self.seed, self.store.root, keep)
        self.builder = Builder(self.store, self.original, fit, self.observer)
        self.bench = Bench(
            self.store, self.machine, self.seed, self.observer, self.source.native, named(self.workload.score)
        )
        kind = plugin.usable("targets", [self.source.home])[self.source.home]
        self.baseline = Trial(Candidate(Recipe(), kind.light(False)[0]), role="baseline")
        self.trials.append(self.baseline)
        self._say("stage", f"measuring the original on {self.source.home}")
        self._try(self.baseline)
        if self.baseline.ranked is None:
            raise MeasureError(f"the original cannot be measured: {self.baseline.error}", where=self.workload.name)

    def references(self, usable: Mapping[str, type[Target]]) -> None:
        """A plain conversion to the reference runtime stands beside the baseline in every measurement."""
        every = plugin.usable("techniques")
        for kind in {**plugin.usable("targets"), **usable}.values():
            candidate = conversion(self.original.form, every, kind) if kind.reference else None
            if candidate is None or candidate.id == self.baseline.id:
                continue
            trial = Trial(candidate, role="reference")
            self.trials.append(trial)
            self._try(trial)
            if trial.artifact is not None and trial.ranked is not None:
                self._bench.companions.append(self._subject(trial))
            return

    def search(
        self, fixed: Sequence[Candidate] | None, techniques: Mapping[str, Any], targets: Mapping[str, type[Target]]
    ) -> None:
        """Build and rank candidates, most promising first, until there are no more or time must be kept to confirm."""
        if fixed is not None:
            for candidate in fixed:
                form = candidate.recipe.gives(self.original.form)
                if form not in candidate.target.accepts:
                    raise RecipeError(
                        f"gives {form}, which {candidate.target.name} does not open", where=candidate.title
                    )
            proposals = [Proposal(candidate, 0, float(place)) for place, candidate in enumerate(fixed)]
        else:
            proposals = light(self.original.form, techniques, targets, self.budget.asks("throughput"))
        known = {trial.id for trial in self.trials}
        queue = Queue(_distinct(proposals, known))
        total = len(queue.proposals) + len(self.trials)
        while (proposal := queue.ask()) is not None:
            trial = Trial(proposal.candidate)
            self.trials.append(trial)
            if self._must_stop(proposal, fixed is not None):
                trial.why = "not tried: the time was over" if self.stopped == "time" else "not tried: interrupted"
                continue
            self._progress(trial, total)
            self._try(trial)
            queue.tell(proposal, trial.ranked.pace.value if trial.ranked else None)
        for proposal, why in queue.dropped:
            self.trials.append(Trial(proposal.candidate, why=why))
        tried = [trial for trial in self.trials if self._eligible(trial)]
        failed = [trial.error for trial in tried if trial.error]
        if failed and self.stopped == "finished" and not any(trial.ranked for trial in tried):
            asked = ", ".join(self.targets)
            raise BuildError(f"no road leads from this model to {asked}: {failed[0]}", where=self.workload.name)

    def confirm(self) -> None:
        """Finalists on all of held-out, from the safest to the fastest, until the first that fails."""
        ranked = [trial.ranked for trial in self.trials if self._eligible(trial) and trial.ranked is not None]
        plan, most = self._confirmation()
        chosen = finalists(ranked, self.batches, most)
        if not chosen:
            return
        self._say("stage", f"confirming {len(chosen)} finalists on {len(self.data.heldout):,} held-out examples")
        by_id = {trial.id: trial for trial in self.trials}
        for number, verdict in enumerate(chosen):
            trial = by_id[verdict.id]
            if number and (self._left() < 0 or self.stopped == "interrupted"):
                trial.why = "not confirmed: the time was over"
                self.stopped = "time" if self.stopped == "finished" else self.stopped
                continue
            if self.stopped_at is not None:
                continue
            try:
                self._confirm(trial, plan)
            except MeasureError as error:
                trial.why = f"failed while being confirmed: {error}"
            if trial.confirmed and trial.confirmed.data and trial.confirmed.verdict != "meets":
                self.stopped_at = trial

    def deliver(self) -> Run:
        """Write the result, the report, the best and the baseline as bundles."""
        self._say("stage", "writing the result")
        self._finish_baseline()
        best = summary.best_of(self.trials, self.targets)
        if best is not None and best.confirmed is not None:
            mine = best.confirmed.measurement.runs
            best.histogram = {
                batch: {
                    "baseline": quantile_points(dataclasses.replace(run, blocks=run.beside[self.baseline.id])),
                    "candidate": quantile_points(run),
                }
                for batch, run in mine.items()
            }
        total = time.perf_counter() - self.begun
        measuring = self._bench.seconds
        facts = {
            "paretune": version("paretune"),
            "title": self.workload.name,
            "started": self.started,
            "workload": self._workload_facts(),
            "machine": self.machine,
            "seconds": {
                "total": round(total, 3),
                "building": round(self.building_s, 3),
                "measuring": round(measuring, 3),
                "overhead": round(total - self.building_s - measuring, 3),
            },
            "time_limit_s": self.limit_s,
            "stopped": self.stopped,
            "warnings": self.warnings,
            "timeline": self.timeline,
            "bundle": {"path": BUNDLE, "files": dict(best.artifact.files)} if best and best.artifact else None,
        }
        result = summary.document(
            self.trials, self.budget, self.root, self.targets, self.batches, self.stopped_at, facts
        )
        run = save(self.root, result)
        self._pack(self.baseline, self.root / BASELINE, run)
        if best is not None:
            self._pack(best, self.root / BUNDLE, run)
        self._say("end", "done", {"best": result["best"], "seconds": round(time.perf_counter() - self.begun, 1)})
        return run

    # -- what the steps are made of ----------------------------------------------------------------------------

    def _read_model(self) -> tuple[Artifact, source.Source]:
        scratch = self.store.scratch()
        try:
            into = scratch / "original"
            into.mkdir()
            artifact, door = source.find(self.workload.model, self.data.fit, into)
            key = key_of("original", {"digest": artifact.digest})
            place = self.store.get(key)
            if place is None:
                place = self.store.put(key, "original", lambda at: _copy(artifact.root, at))
            opened = Artifact.open(place)
            return dataclasses.replace(opened, origin=artifact.origin), door
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _try(self, trial: Trial) -> None:
        """Build a candidate, measure it, and judge it on the ranking data; a failure is a finding."""
        began = time.perf_counter()
        try:
            reason = trial.candidate.target.unavailable()
            if reason:
                raise BuildError(reason, where=trial.candidate.target.name)
            with self._building():
                trial.artifact = self.builder.build(trial.candidate.recipe)
            trial.seconds_to_build = time.perf_counter() - began
            twin = self._twin(trial)
            if twin is not None:
                trial.why = f"gives the same model as {twin.id}, {twin.candidate.title}"
                return
            trial.status = "built"
            trial.measurement = self._measure(trial, SCREEN, "ranking")
            base = self.baseline.measurement
            assert base is not None
            trial.ranked = judge(base, trial.measurement, self.budget, "ranking", self._reference, self.seed)
        except (BuildError, MeasureError) as error:
            trial.status, trial.error = "failed", str(error)
        self._told(trial)

    def _twin(self, trial: Trial) -> Trial | None:
        """A candidate already measured that is the same artefact on the same target."""
        assert trial.artifact is not None
        for other in self.trials:
            same = other.artifact is not None and other.artifact.digest == trial.artifact.digest
            if other is not trial and other.ranked and same and other.candidate.target == trial.candidate.target:
                return other
        return None

    def _measure(self, trial: Trial, plan: Plan, data: str, answers: bool = True) -> Measurement:
        subject = self._subject(trial)
        bench = self._bench
        if trial is self.baseline and not bench.companions:
            bench.companions.append(subject)
        measured = bench.latency(subject, self.data.ranking, self.batches, plan)
        if not answers:
            return measured
        split = self.data.ranking if data == "ranking" else self.data.heldout
        found = bench.answer(subject, split, data, self._answer_batch)
        return dataclasses.replace(measured, answers={data: found})

    def _confirm(self, trial: Trial, plan: Plan) -> None:
        """Speed, memory and size first, anew; held-out data is opened only for what meets those limits."""
        base = self.baseline.measurement
        assert base is not None
        self._say("progress", f"confirming {trial.candidate.title}")
        measured = self._measure(trial, plan, "heldout", answers=False)
        without_drop = dataclasses.replace(
            self.budget, limits=tuple(limit for limit in self.budget.limits if limit.name != "drop")
        )
        first = judge(base, measured, without_drop, None, self._reference, self.seed)
        if first.verdict != "meets":
            told = min(first.findings, key=lambda finding: ("breaks", "undecided", "meets").index(finding.verdict))
            trial.why = f"confirmed anew, {told.text}"
            return
        if "heldout" not in base.answers:
            found = self._bench.answer(self._subject(self.baseline), self.data.heldout, "heldout", self._answer_batch)
            base = dataclasses.replace(base, answers={**base.answers, "heldout": found})
            self.baseline.measurement = base
        answers = self._bench.answer(self._subject(trial), self.data.heldout, "heldout", self._answer_batch)
        measured = dataclasses.replace(measured, answers={"heldout": answers})
        trial.confirmed = judge(base, measured, self.budget, "heldout", self._reference, self.seed)
        self._told(trial)

    def _finish_baseline(self) -> None:
        """The baseline's own percentiles come from all rounds that it stood beside finalists in."""
        base = self.baseline.measurement
        assert base is not None
        confirmed = [
            trial.confirmed.measurement for trial in self.trials if trial.confirmed and trial is not self.baseline
        ]
        runs = {}
        for batch, run in base.runs.items():
            more = [block for one in confirmed for block in one.runs[batch].beside.get(self.baseline.id, ())]
            runs[batch] = dataclasses.replace(run, blocks=tuple(more) or run.blocks)
        whole = dataclasses.replace(base, runs=runs)
        data = "heldout" if "heldout" in base.answers else "ranking"
        verdict = judge(whole, whole, self.budget, data, self._reference, self.seed)
        if data == "heldout":
            self.baseline.confirmed = verdict
        else:
            self.baseline.ranked = verdict

    def _pack(self, trial: Trial, into: Path, run: Run) -> None:
        assert trial.artifact is not None
        measurement = trial.confirmed.measurement if trial.confirmed else trial.measurement
        if trial is self.baseline:
            measurement = self.baseline.measurement
        answers = measurement.answers.get("heldout") if measurement else None
        try:
            pack(
                trial.candidate,
                trial.artifact,
                into,
                machine=self.machine,
                workload=run.result["workload"],
                evidence=trial.describe(self.budget.confidence, self.root),
                answers=answers,
                report=run.report.read_text(),
            )
        except BuildError as error:
            self._warn(f"no {into.name}/ was written: {error}")

    # -- small things ------------------------------------------------------------------------------------------

    @property
    def _bench(self) -> Bench:
        assert self.bench is not None
        return self.bench

    @property
    def _reference(self) -> str | None:
        return next((trial.id for trial in self.trials if trial.role == "reference"), None)

    @property
    def _answer_batch(self) -> int:
        fixed = self.original.inputs[0].shape[0]
        if isinstance(fixed, int):
            return fixed
        return max(self.batches) if max(self.batches) > 1 else ANSWER_BATCH

    def _subject(self, trial: Trial) -> Subject:
        assert trial.artifact is not None
        return Subject(trial.id, trial.artifact, trial.candidate.target)

    def _eligible(self, trial: Trial) -> bool:
        return trial.role != "baseline" and trial.candidate.target.name in self.targets

    def _left(self) -> float:
        return self.limit_s - (time.perf_counter() - self.begun)

    def _must_stop(self, proposal: Proposal, fixed: bool) -> bool:
        if self.stopped != "finished":
            return True
        needed = self._confirm_s(4) + (0 if fixed else proposal.cost)
        if self._left() < min(needed, self.limit_s / 3):
            self.stopped = "time"
            self._say("stop", "the rest of the time is kept for confirming")
        return self.stopped != "finished"

    def _confirm_s(self, count: int, plan: Plan = CONFIRM) -> float:
        """About how long confirming takes, from the baseline's pace."""
        base = self.baseline.measurement
        if base is None:
            return 0.0
        pace = {batch: statistics.median(chain(*run.blocks)) / 1e3 for batch, run in base.runs.items()}
        block = [max(plan.seconds, plan.beside * s) * 2 + max(plan.seconds, plan.count * s / 3) for s in pace.values()]
        answer_s = len(self.data.heldout) / max(pace) * pace[max(pace)]
        return count * (plan.rounds * sum(block) + answer_s / 3) + answer_s

    def _confirmation(self) -> tuple[Plan, int]:
        """The plan and number of finalists that fit in the time left."""
        left = max(self._left(), 5.0)
        for rounds in (16, 12, 8, 6):
            plan = dataclasses.replace(CONFIRM, rounds=rounds)
            for count in (6, 5, 4, 3):
                if self._confirm_s(count, plan) < left:
                    return plan, count
        return dataclasses.replace(CONFIRM, rounds=6, seconds=0.15, count=12, beside=3), 2

    def _workload_facts(self) -> dict[str, Any]:
        return {
            "name": self.workload.name,
            "digest": key_of("workload", {"model": self.original.digest, "heldout": self.data.heldout.digest}),
            "heldout_size": len(self.data.heldout),
            "ranking_size": len(self.data.ranking),
            "fit_size": len(self.data.fit),
            "scores": list(named(self.workload.score)),
        }

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.building_s += time.perf_counter() - began

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the search and goes on to confirm the best so far; a second one ends at once."""
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.stopped == "interrupted":
                raise KeyboardInterrupt
            self.stopped = "interrupted"
            self._say("stop", "interrupted: the best so far is being confirmed (Ctrl-C again ends at once)")

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        if self.bench is not None:
            self.bench.close()

    def _say(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        at = {"at_s": round(time.perf_counter() - self.begun, 2), "left_s": round(self._left(), 1)}
        self.observer.on(Event(kind, text, {**at, **(data or {})}))

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self._say("warning", text)

    def _progress(self, trial: Trial, total: int) -> None:
        self._say("progress", f"trying {trial.candidate.title}", {"done": len(self.trials) - 1, "total": total})

    def _told(self, trial: Trial) -> None:
        verdict = trial.verdict
        text = trial.error or (_in_words(verdict) if verdict else "")
        at = round(time.perf_counter() - self.begun, 2)
        kind = "confirmed" if trial.confirmed else "failed" if trial.error else trial.role
        self.timeline.append({"at_s": at, "kind": kind, "id": trial.id, "text": text})
        data: dict[str, Any] = {
            "id": trial.id,
            "title": trial.candidate.title,
            "role": trial.role,
            "status": trial.status,
            "stage": kind,
        }
        if verdict is not None:
            data |= {
                "pace": round(verdict.pace.value, 4),
                "risk": None if verdict.risk != verdict.risk else round(verdict.risk, 6),
                "verdict": verdict.verdict,
            }
        self._say("candidate", text, data)


def _in_words(verdict: Verdict) -> str:
    pace = f"{verdict.pace.value:.2f}× as fast as the original"
    drops = ", ".join(f"{name} drop {value.value:+.2f} {verdict.units[name]}" for name, value in verdict.drops.items())
    return f"{pace}; {drops}" if drops else pace


def _distinct(proposals: Sequence[Proposal], known: set[str]) -> list[Proposal]:
    found = []
    for proposal in proposals:
        if proposal.candidate.id not in known:
            known.add(proposal.candidate.id)
            found.append(proposal)
    return found


def _copy(root: Path, into: Path) -> None:
    shutil.copytree(root, into, dirs_exist_ok=True)
    assert (into / META).is_file()


def _check_scores(budget: Budget, scores: list[str]) -> None:
    for limit in budget.limits:
        if limit.score is not None and limit.score not in scores:
            raise BudgetError(
                f"there is no score {limit.score!r}", where=f"budget {limit.text!r}",
                do=f"the workload has {', '.join(scores)}",
            )  # fmt: skip


def _batches(batch: Sequence[int] | int) -> tuple[int, ...]:
    sizes = (batch,) if isinstance(batch, int) else tuple(batch)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise CallError(f"{batch!r} are no batch sizes", where="batch", do="give whole numbers from 1, such as 1,32")
    return tuple(sorted(set(sizes)))


def _targets(wanted: Sequence[str] | None) -> tuple[dict[str, type[Target]], list[str]]:
    usable: dict[str, type[Target]] = plugin.usable("targets", wanted)
    if wanted is None:
        usable = {name: kind for name, kind in usable.items() if kind.light(False)[0].unavailable() is None}
    if not usable:
        raise CallError("no target is asked or installed", where="targets", do="`paretune targets` lists them")
    return usable, list(usable)


def _techniques(only: Sequence[str] | None, without: Sequence[str]) -> dict[str, Any]:
    known = plugin.names("techniques")
    for pattern in (*(only or ()), *without):
        if not any(fnmatch(name, pattern) for name in known):
            plugin.load("techniques", pattern)  # raises, with the nearest name
    usable = plugin.usable("techniques")
    for name in only or ():
        if name in known:
            plugin.require(plugin.load("techniques", name), name)

    def wanted(name: str, kind: Any) -> bool:
        if any(fnmatch(name, pattern) for pattern in without):
            return False
        # a conversion is a road, not a choice: without it the asked techniques could not be reached
        return only is None or kind.kind == "convert" or any(fnmatch(name, pattern) for pattern in only)

    return {name: kind for name, kind in usable.items() if wanted(name, kind)}


def seconds_of(text: str | float) -> float:
    """``"10m"``, ``"90s"``, ``"1.5h"`` or a number of seconds.

    Raises
    ------
    CallError
        If it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", str(text))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise CallError(f"{text!r} is no length of time", where="time", do="write it like 10m, 90s or 1.5h")
    return seconds
