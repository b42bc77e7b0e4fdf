"""What one run does, step by step: prepare, references, search, confirm, deliver."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.ask import plugin, source
from paretune.ask.artifact import META, Artifact
from paretune.ask.budget import Budget
from paretune.ask.data import check_inputs
from paretune.ask.score import named
from paretune.ask.target import Target
from paretune.ask.workload import Partition, Workload, partition
from paretune.build.candidate import Builder, Candidate
from paretune.build.propose import Proposal, Queue, conversion, light
from paretune.build.recipe import Recipe
from paretune.build.store import Store, key_of
from paretune.build.technique import Fit
from paretune.check.front import finalists
from paretune.check.measurement import Bench, Measurement, Subject
from paretune.check.plan import CONFIRM, SCREEN, Plan, confirm_s, fitting
from paretune.check.verdict import judge
from paretune.deliver import summary
from paretune.deliver.bundle import Bundle, pack
from paretune.deliver.run import BASELINE, BUNDLE, NEAREST, Run, save
from paretune.deliver.trial import Trial, quantile_points
from paretune.errors import BuildError, DataError, MeasureError, RecipeError
from paretune.journal import Journal

ANSWER_BATCH = 32
"""Batch size for accuracy when only batch 1 is asked."""


@dataclass
class Loop:
    """What the steps of one run share; each method is one step, in the order of ``optimize``."""

    workload: Workload
    budget: Budget
    batches: tuple[int, ...]
    targets: list[str]
    root: Path
    store: Store
    machine: dict[str, Any]
    seed: int
    journal: Journal
    trials: list[Trial] = field(default_factory=list)
    stopped: str = "finished"
    stopped_at: Trial | None = None
    bench: Bench | None = None

    # -- the steps ---------------------------------------------------------------------------------------------

    def prepare(self, heldout_limit: int | None, keep: tuple[str, ...]) -> None:
        """Part the data, read the model through its front door, measure the baseline."""
        self.journal.say("stage", "reading the data and the model")
        with self.journal.building():
            self.data: Partition = partition(self.workload, self.seed, heldout_limit)
            self.original, self.source = self._read_model()
        fixed = self.original.inputs[0].shape[0] if self.original.inputs[0].shape else None
        if isinstance(fixed, int) and any(batch != fixed for batch in self.batches):
            raise DataError(
                f"the model's batch is fixed at {fixed}", where=self.workload.name, do=f"ask --batch {fixed}"
            )
        with self.journal.building():
            for split in (self.data.ranking, self.data.heldout):
                check_inputs(split, self.original)
        for warning in self.data.warnings:
            self.journal.warn(warning)
        fit = Fit(self.data.fit, self.workload.loss, self.original, self.seed, self.store.root, keep)
        self.builder = Builder(self.store, self.original, fit, self.journal.observer)
        self.bench = Bench(
            self.store, self.machine, self.seed, self.journal.observer, self.source.native, named(self.workload.score)
        )
        kind = plugin.usable("targets", [self.source.home])[self.source.home]
        self.baseline = Trial(Candidate(Recipe(), kind.light(False)[0]), role="baseline")
        self.trials.append(self.baseline)
        self.journal.say("stage", f"measuring the original on {self.source.home}")
        self._try(self.baseline)
        if self.baseline.ranked is None:
            raise MeasureError(f"the original cannot be measured: {self.baseline.error}", where=self.workload.name)
        for name, score in self.baseline.ranked.scores.items():
            if score.value == 0 and score.high < 0.05:
                self.journal.warn(
                    f"the original's {name} is 0 on the ranking data: are the labels those of this model?"
                )

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
            if self.builder.fit.keep:
                proposals = [proposal for proposal in proposals if _keeps_precision(proposal.candidate)]
        known = {trial.id for trial in self.trials}
        queue = Queue(_distinct(proposals, known))
        total = len(queue.proposals) + len(self.trials)
        while (proposal := queue.ask()) is not None:
            trial = Trial(proposal.candidate)
            self.trials.append(trial)
            if self._must_stop(proposal, fixed is not None):
                trial.why = "not tried: the time was over" if self.stopped == "time" else "not tried: interrupted"
                continue
            self._trying(trial, total)
            self._try(trial)
            queue.tell(proposal, trial.ranked.merit.value if trial.ranked else None)
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
        plan, most = fitting(max(self.journal.left_s, 5.0), self._pace_s, len(self.data.heldout))
        hurried = self.stopped == "interrupted"
        chosen = finalists(ranked, self.batches, 2 if hurried else most)
        if not chosen:
            return
        self.journal.say("stage", f"confirming {len(chosen)} finalists on {len(self.data.heldout):,} held-out examples")
        by_id = {trial.id: trial for trial in self.trials}
        for number, verdict in enumerate(chosen):
            trial = by_id[verdict.id]
            interrupted = self.stopped == "interrupted" and not hurried
            if number and (interrupted or (self.journal.left_s < 0 and not hurried)):
                trial.why = f"not confirmed: {'interrupted' if interrupted else 'the time was over'}"
                self.stopped = "time" if self.stopped == "finished" else self.stopped
                continue
            if self.stopped_at is not None:
                continue
            try:
                self._confirm(trial, plan)
            except (MeasureError, DataError) as error:
                trial.why = f"failed while being confirmed: {error}"
                self.stopped_at = trial
            if trial.confirmed and trial.confirmed.data == "heldout" and trial.confirmed.verdict != "meets":
                self.stopped_at = trial

    def deliver(self) -> Run:
        """Write the result, the report, the best and the baseline as bundles."""
        self.journal.say("stage", "writing the result")
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
        workload = self._workload_facts()
        baseline = self._pack(self.baseline, self.root / BASELINE, workload)
        packed = None if best is None else self._pack(best, self.root / BUNDLE, workload)
        if packed is None:
            shutil.rmtree(self.root / BUNDLE, ignore_errors=True)  # an earlier one no longer meets what is asked
        close = None if best else summary.nearest(self.trials, self.targets)[0]
        shutil.rmtree(self.root / NEAREST, ignore_errors=True)
        near = None if close is None or not close.artifact else self._pack(close, self.root / NEAREST, workload)
        facts = {
            "paretune": version("paretune"),
            "title": self.workload.name,
            "started": self.journal.started,
            "workload": workload,
            "machine": self.machine,
            "seconds": self.journal.seconds(self._bench.seconds),
            "time_limit_s": self.journal.limit_s,
            "stopped": self.stopped,
            "warnings": self.journal.warnings,
            "timeline": self.journal.timeline,
            "bundle": {"path": BUNDLE, "files": dict(packed.manifest["files"])} if packed else None,
        }
        result = summary.document(
            self.trials, self.budget, self.root, self.targets, self.batches, self.stopped_at, facts
        )
        run = save(self.root, result)
        for bundle in (baseline, packed, near):
            if bundle is not None:
                bundle.attach(run.report.read_text())
        self.journal.say("end", "done", {"best": result["best"], "seconds": round(self.journal.spent_s, 1)})
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
            with self.journal.building():
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
        except DataError as error:
            if trial is self.baseline:
                raise  # the user's data or score does not fit; with any other candidate its answers are the trouble
            trial.status, trial.error = "failed", str(error)
        self.journal.tell(trial)

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
        self.journal.say("progress", f"confirming {trial.candidate.title}")
        measured = self._measure(trial, plan, "heldout", answers=False)
        without_drop = dataclasses.replace(
            self.budget, limits=tuple(limit for limit in self.budget.limits if limit.name != "drop")
        )
        first = judge(base, measured, without_drop, None, self._reference, self.seed)
        if first.verdict != "meets":
            told = min(first.findings, key=lambda finding: ("breaks", "undecided", "meets").index(finding.verdict))
            trial.why = f"measured anew, {told.text}"
            assert trial.ranked is not None
            # what was found on the ranking data still stands beside the new figures
            drops = tuple(finding for finding in trial.ranked.findings if finding.limit.name == "drop")
            trial.confirmed = dataclasses.replace(
                trial.ranked,
                verdict=first.verdict,
                findings=(*first.findings, *drops),
                merit=first.merit,
                pace=first.pace,
                speedups=first.speedups,
                reference_speedups=first.reference_speedups,
                measurement=first.measurement,
            )
            return
        if "heldout" not in base.answers:
            found = self._bench.answer(self._subject(self.baseline), self.data.heldout, "heldout", self._answer_batch)
            base = dataclasses.replace(base, answers={**base.answers, "heldout": found})
            self.baseline.measurement = base
        answers = self._bench.answer(self._subject(trial), self.data.heldout, "heldout", self._answer_batch)
        measured = dataclasses.replace(measured, answers={"heldout": answers})
        trial.confirmed = judge(base, measured, self.budget, "heldout", self._reference, self.seed)
        self.journal.tell(trial)

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

    def _pack(self, trial: Trial, into: Path, workload: Mapping[str, Any]) -> Bundle | None:
        assert trial.artifact is not None
        measurement = trial.confirmed.measurement if trial.confirmed else trial.measurement
        if trial is self.baseline:
            measurement = self.baseline.measurement
        answers = measurement.answers.get("heldout") if measurement else None
        try:
            with self.journal.building():
                return pack(
                    trial.candidate,
                    trial.artifact,
                    into,
                    machine=self.machine,
                    workload=workload,
                    evidence=trial.describe(self.budget.confidence, self.root),
                    answers=answers,
                )
        except BuildError as error:
            self.journal.warn(f"no {into.name}/ was written: {error}")
            return None

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

    def _must_stop(self, proposal: Proposal, fixed: bool) -> bool:
        if self.stopped != "finished":
            return True
        kept = min(confirm_s(CONFIRM, 4, self._pace_s, len(self.data.heldout)), self.journal.limit_s / 3)
        if self.journal.left_s < kept + (0 if fixed else proposal.cost):
            self.stopped = "time"
            self.journal.say("stop", "the rest of the time is kept for confirming")
        return self.stopped != "finished"

    @property
    def _pace_s(self) -> dict[int, float]:
        """The baseline's median seconds for one batch of each size."""
        base = self.baseline.measurement
        assert base is not None
        return {batch: statistics.median(chain(*run.blocks)) / 1e3 for batch, run in base.runs.items()}

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
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the search and goes on to confirm the best so far; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.stopped == "interrupted":
                raise KeyboardInterrupt
            self.stopped = "interrupted"
            self.journal.say("stop", "interrupted: the best so far is being confirmed (Ctrl-C again ends at once)")

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        if self.bench is not None:
            self.bench.close()

    def _trying(self, trial: Trial, total: int) -> None:
        text = f"trying {trial.candidate.title}"
        self.journal.say("progress", text, {"done": len(self.trials) - 1, "total": total})


def _keeps_precision(candidate: Candidate) -> bool:
    """Whether conversions and target are at their defaults: others may lower what was asked to stay in float."""
    steps = [step for step in candidate.recipe.steps if step.kind == "convert"]
    return candidate.target == candidate.target.light(False)[0] and all(step == step.light()[0] for step in steps)


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
