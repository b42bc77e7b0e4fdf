"""What a run shares, and its steps up to confirming: prepare, references, search."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import statistics
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.budget import Budget
from paretune.ask.data import check_inputs
from paretune.ask.score import UNBOUNDED, named
from paretune.ask.target import Target
from paretune.ask.workload import Partition, Workload, members, partition
from paretune.build.candidate import Builder, Candidate
from paretune.build.propose import Proposal, Queue, conversion, light
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit, Technique
from paretune.check.bench import Bench
from paretune.check.measurement import Measurement, Subject
from paretune.check.plan import CONFIRM, SCREEN, confirm_s
from paretune.check.verdict import judge
from paretune.deliver.trial import Trial
from paretune.errors import BuildError, DataError, MeasureError, RecipeError, StoppedError
from paretune.fitted import demand, fitted, missed
from paretune.journal import Journal
from paretune.original import read, read_student
from paretune.subject import answer_rows

READING = "reading the data and the model"
"""What the log of a run says first of every call."""


@dataclass
class Loop:
    """What the steps of one run share; ``optimize`` calls them in order."""

    workload: Workload
    budget: Budget
    batches: tuple[int, ...]
    targets: list[str]
    root: Path
    store: Store
    machine: dict[str, Any]
    seed: int
    journal: Journal
    allowed: tuple[str, ...] = ()  # the techniques that may be tried, by name
    trials: list[Trial] = field(default_factory=list)
    stopped: str = "finished"
    stopped_at: Trial | None = None
    idle: frozenset[str] | None = None  # patterns to keep in float that named nothing so far; None: none was looked for
    data: Partition = field(init=False)
    original: Artifact = field(init=False)
    builder: Builder = field(init=False)
    bench: Bench = field(init=False)
    baseline: Trial = field(init=False)

    # -- the steps ---------------------------------------------------------------------------------------------

    def prepare(
        self, heldout_limit: int | None, keep: tuple[str, ...], fixed: Sequence[Candidate] | None = None
    ) -> None:
        """Part the data, read the model through its front door, measure the baseline.

        Raises
        ------
        RecipeError
            If a ``fixed`` candidate does not take such a model, its target does not open what it gives, or it asks for
            a latency that no step of it can be fitted to, or at a batch size that is not measured.
        """
        for candidate in fixed or ():
            demand(candidate, self.batches)
        self.journal.say("stage", READING)
        with self.journal.building():
            self.data = partition(self.workload, self.seed, heldout_limit)
            self.original, door = read(self.workload.model, self.data.fit, self.store)
            student = read_student(self.workload, self.original, self.data.fit, self.store)
        for candidate in fixed or ():
            form = candidate.recipe.gives(self.original.form)
            if form not in candidate.target.accepts:
                raise RecipeError(f"gives {form}, which {candidate.target.name} does not open", where=candidate.title)
        size = self.original.fixed_batch
        if size is not None and any(batch != size for batch in self.batches):
            raise DataError(f"the model's batch is fixed at {size}", where=self.workload.name, do=f"ask --batch {size}")
        with self.journal.building():
            for split in (self.data.ranking, self.data.heldout):
                check_inputs(split, self.original)
        for name, belongs in (self.workload.slices or {}).items():
            members(self.data.heldout.head(1), name, belongs)  # a slip there is told before any work is done
        for warning in self.data.warnings:
            self.journal.warn(warning)
        fit = Fit(
            self.data.fit, self.workload.minimised, self.original, self.seed, self.store.root, keep,
            unmatched=self._unmatched, student=student,
        )  # fmt: skip
        self.builder = Builder(self.store, self.original, fit, self.journal.observer)
        self.bench = Bench(
            self.store, self.machine, self.seed, self.journal.observer, door.native, named(self.workload.score)
        )
        kind = plugin.usable("targets", [door.home])[door.home]
        self.baseline = Trial(Candidate(Recipe(), kind.light(False)[0]), role="baseline")
        self.trials.append(self.baseline)
        self.journal.say("stage", f"measuring the original on {door.home}")
        self._try(self.baseline)
        if self.baseline.ranked is None:
            raise MeasureError(f"the original cannot be measured: {self.baseline.error}", where=self.workload.name)
        for name, score in self.baseline.ranked.scores.items():
            if score.value == 0 and score.high < 0.05 and name not in UNBOUNDED:
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
                self.bench.companions.append(self.subject(trial))
            return

    def search(
        self,
        fixed: Sequence[Candidate] | None,
        techniques: Mapping[str, Any],
        targets: Mapping[str, type[Target]],
        named: Collection[str] = (),
    ) -> None:
        """Build and rank candidates, most promising first, until there are no more or time must be kept to confirm.

        Of the techniques that train, those that are ``named`` take part.
        """
        if fixed is not None:
            proposals = [Proposal(candidate, 0, float(place)) for place, candidate in enumerate(fixed)]
        else:
            proposals = light(self.original.form, techniques, targets, self.budget.asks("throughput"), named)
            if self.builder.fit.keep:
                proposals = [proposal for proposal in proposals if _keeps_precision(proposal.candidate)]
        self.builder = dataclasses.replace(self.builder, stop=self._why_to_stop)
        known = {trial.id for trial in self.trials}
        queue = Queue(_distinct(proposals, known))
        total = len(queue.proposals) + len(self.trials)
        while (proposal := queue.ask()) is not None:
            if any(trial.id == proposal.candidate.id for trial in self.trials):
                continue  # what one that had a latency to reach has become
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
        for pattern in self.builder.fit.keep:
            if pattern in (self.idle or ()):
                self.journal.warn(f"keep {pattern!r}: nothing in any candidate tried has such a name")
        tried = [trial for trial in self.trials if self.eligible(trial)]
        failed = [trial.error for trial in tried if trial.error]
        if failed and self.stopped == "finished" and not any(trial.ranked for trial in tried):
            asked = ", ".join(self.targets)
            raise BuildError(f"no road leads from this model to {asked}: {failed[0]}", where=self.workload.name)

    # -- what the steps are made of ----------------------------------------------------------------------------

    def _try(self, trial: Trial) -> None:
        """Build a candidate, measure it, and judge it on the ranking data; a failure is a finding."""
        try:
            reason = trial.candidate.target.unavailable()
            if reason:
                raise BuildError(reason, where=trial.candidate.target.name)
            wanted = trial.candidate
            if wanted.reach and not self._fit(trial):
                self.journal.tell(trial)
                return
            with self.journal.building():
                trial.artifact, trial.seconds_to_build = self.builder.built(trial.candidate.recipe)
            twin = self._twin(trial)
            if twin is not None:
                trial.why = f"gives the same model as {twin.id}, {twin.candidate.title}"
                return
            trial.status = "built"
            trial.measurement = self._measure(trial)
            self._warn_if_missed(wanted, trial)
            base = self.baseline.measurement
            assert base is not None
            learnt = self.workload.train is not None and trial.candidate.recipe.trains
            trial.ranked = judge(base, trial.measurement, self.budget, "ranking", self.reference_id, learnt)
        except (BuildError, MeasureError) as error:
            trial.status, trial.error = "failed", str(error)
        except StoppedError as error:
            trial.why = f"{error}; --resume goes on from there"
        except DataError as error:
            if trial is self.baseline:
                raise  # the user's data or score does not fit; with any other candidate its answers are the trouble
            trial.status, trial.error = "failed", str(error)
        self.journal.tell(trial)

    def _fit(self, trial: Trial) -> bool:
        """Give a trial the candidate that its latency leaves; whether that was not there yet."""
        chosen = fitted(trial, self.builder, self._screened, self.batches, self.journal, self._pause)
        known = next((other for other in self.trials if other.id == chosen.id), None)
        if known is not None:
            trial.why = f"its latency leaves what is there already: {known.id}, {known.candidate.title}"
            self._warn_if_missed(trial.candidate, known)
            return False
        trial.candidate = chosen
        return True

    def _warn_if_missed(self, wanted: Candidate, trial: Trial) -> None:
        if wanted.reach and trial.measurement is not None:
            for warning in missed(wanted, trial, self.budget.confidence):
                self.journal.warn(warning)

    def _pause(self) -> None:
        """Where a latency is fitted to: stop, if the time is over or somebody said so."""
        reason = self._reason_to_stop()
        if reason:
            raise StoppedError(f"stopped while a latency was reached for: {reason}", where="reach")

    def _twin(self, trial: Trial) -> Trial | None:
        """A candidate already measured that is the same artefact on the same target."""
        assert trial.artifact is not None
        for other in self.trials:
            same = other.artifact is not None and other.artifact.digest == trial.artifact.digest
            if other is not trial and other.ranked and same and other.candidate.target == trial.candidate.target:
                return other
        return None

    def _measure(self, trial: Trial) -> Measurement:
        """Speed beside the companions, and answers to the ranking data."""
        subject = self.subject(trial)
        if trial is self.baseline and not self.bench.companions:
            self.bench.companions.append(subject)
        measured = self._screened(subject, self.batches)
        found = self.bench.answer(subject, self.data.ranking, "ranking", self.answer_batch)
        return dataclasses.replace(measured, answers={"ranking": found})

    def _screened(self, subject: Subject, batches: tuple[int, ...]) -> Measurement:
        """Speed beside the companions."""
        try:
            return self.bench.latency([subject], self.data.ranking, batches, SCREEN)[subject.id]
        except MeasureError as error:
            if error.guilty == subject.id:
                raise
            # a companion failed, for want of memory say: that says nothing of this candidate
            return self.bench.latency([subject], self.data.ranking, batches, SCREEN)[subject.id]

    # -- small things ------------------------------------------------------------------------------------------

    @property
    def reference_id(self) -> str | None:
        return next((trial.id for trial in self.trials if trial.role == "reference"), None)

    @property
    def answer_batch(self) -> int:
        return answer_rows(self.original, self.batches)

    def subject(self, trial: Trial) -> Subject:
        assert trial.artifact is not None
        return Subject(trial.id, trial.artifact, trial.candidate.target)

    def eligible(self, trial: Trial) -> bool:
        return trial.role != "baseline" and trial.candidate.target.name in self.targets

    def _must_stop(self, proposal: Proposal, fixed: bool) -> bool:
        if self.stopped != "finished":
            return True
        steps = proposal.candidate.recipe.steps
        trains = any(not step.light() for step in steps)  # asked for, and stopped in its midst
        if self.journal.left_s < self._kept_s + (0 if fixed or trains else proposal.cost):
            self._stop_for_time()
        return self.stopped != "finished"

    def _why_to_stop(self, step: Technique) -> str:
        """Asked in the midst of a step: why it is to stop, or nothing. Only training is stopped for want of time."""
        return self._reason_to_stop(heed_time=not step.light())

    def _reason_to_stop(self, heed_time: bool = True) -> str:
        if heed_time and self.stopped == "finished" and self.journal.left_s < self._kept_s:
            self._stop_for_time()
        return {"finished": "", "time": "the time was over"}.get(self.stopped, self.stopped)

    @property
    def _kept_s(self) -> float:
        """Seconds that are kept for confirming."""
        needed_s = confirm_s(CONFIRM, 4, self.pace_s, len(self.data.heldout), self.bench.open_s)
        return min(needed_s, self.journal.limit_s / 3)

    def _stop_for_time(self) -> None:
        self.stopped = "time"
        self.journal.say("stop", "the rest of the time is kept for confirming")
        if not any(trial.ranked for trial in self.trials if trial.role == "candidate"):
            took, given = self.journal.spent_s, self.journal.limit_s
            self.journal.warn(
                f"the time was over before a first candidate was measured: up to there it took {took:.0f} s "
                f"of {given:.0f} s, and confirming needs some too; give --time more"
            )

    @property
    def pace_s(self) -> dict[int, float]:
        """The baseline's median seconds for one batch of each size."""
        base = self.baseline.measurement
        assert base is not None
        return {batch: statistics.median(chain(*run.blocks)) / 1e3 for batch, run in base.runs.items()}

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
        if "bench" in vars(self):  # else it ended before there was one
            self.bench.close()

    def _unmatched(self, patterns: Sequence[str]) -> None:
        self.idle = frozenset(patterns) if self.idle is None else self.idle.intersection(patterns)

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
