"""A bundle beside its original under everything that may happen to it: changed data, odd inputs, load."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask import plugin, source
from paretune.ask.data import Split, check_inputs
from paretune.ask.event import Broadcast, Event, Observer
from paretune.ask.score import named
from paretune.ask.set_score import SetScore
from paretune.ask.workload import Workload
from paretune.build.store import Store
from paretune.check import behaviour, excess, pressure
from paretune.check.answers import Answers
from paretune.check.bench import Bench
from paretune.check.machine import default_threads, fingerprint
from paretune.check.measurement import Subject
from paretune.check.probe import Probe
from paretune.check.scenario import Scenario, fitting, matches, read, shipped, staged
from paretune.check.statistics import Estimate, drop
from paretune.check.view import View, views
from paretune.deliver.scenarios import Finding, Scenarios
from paretune.errors import CallError, DataError, MeasureError
from paretune.subject import bundle_of, made_elsewhere, native_of

LIMIT = 1000
"""Held-out examples that are drawn unless another number is asked."""
BATCH = 32
_KEPT = 1 << 30
"""Bytes of changed examples after which the bench is opened afresh: it keeps what it fed until it is closed."""


def scenarios(
    bundle: str | Path,
    workload: Workload,
    *,
    baseline: str | Path | None = None,
    only: Sequence[str] = (),
    own: str | Path | None = None,
    limit: int = LIMIT,
    tolerance: float = 1.0,
    confidence: float = 0.95,
    batch: int = BATCH,
    threads: int | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    observers: Sequence[Observer] = (),
) -> Scenarios:
    """Run every scenario that fits the data on a bundle and on its original.

    Parameters
    ----------
    bundle
        The bundle's directory.
    workload
        Whose held-out data and scores to use; its first score of single examples is judged.
    baseline
        A bundle of the original; None: the workload's model on its source's home target.
    only
        Patterns of names, stems or families (``noise``, ``*_blur@5``, ``2_threads``); none: all.
    own
        A Python file with scenarios of the user's.
    limit
        How many held-out examples are drawn, seeded.
    tolerance
        The excess drop that is tolerated, in pp, or % where the score is not between 0 and 1.
    batch
        The largest batch; examples are answered in batches of it.
    store
        A directory that keeps finished steps; None: nothing is kept.

    Raises
    ------
    ParetuneError
        If bundle or data cannot be opened, nothing fits, or one of the two does not answer unchanged data. A scenario
        that fails is a finding.
    """
    started = time.perf_counter()
    if batch < 1 or limit < 2 or not 0 < confidence < 1 or tolerance <= 0:
        raise CallError("batch, limit, confidence or tolerance is out of range", do="see `paretune scenarios --help`")
    patterns = (only,) if isinstance(only, str) else tuple(only)
    machine = fingerprint(threads or default_threads())
    scratch = Path(tempfile.mkdtemp(prefix="paretune-scenarios-"))
    try:
        run = _prepared(Path(bundle), workload, baseline, limit, batch, seed, machine, scratch, store, observers)
        chosen = fitting([*shipped(), *(read(Path(own)) if own else ())], run.views, patterns)
        findings = run.all(chosen, patterns, tolerance, confidence)
        return Scenarios(
            run.title, run.candidate.target.name, workload.name, run.score, len(run.split), tolerance, confidence, seed,
            run.means(), run.drop(confidence), run.unit, run.families(tolerance, confidence), tuple(findings), machine,
            run.warnings, time.perf_counter() - started,
        )  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _prepared(
    place: Path, workload: Workload, baseline: str | Path | None, limit: int, batch: int, seed: int,
    machine: dict[str, Any], scratch: Path, store: str | Path | None, observers: Sequence[Observer],
) -> _Run:  # fmt: skip
    packed = bundle_of(place)
    split = Split.whole(workload.heldout, workload.collate, "heldout").take(limit, seed)
    if next(split.head(1).batches(1)).labels is None:
        raise DataError("has no labels", where="heldout", do="return (inputs, label) items: scores need the truth")
    every = named(workload.score)
    # scores of the whole set say nothing of a few hundred changed examples, and would be taken again for each scenario
    scores = {name: score for name, score in every.items() if not isinstance(score, SetScore)}
    if not scores:
        raise DataError(
            f"{', '.join(every)} is of a whole set, and scenarios look at single examples", where="score",
            do="add a score of one number per example beside it, as accuracy",
        )  # fmt: skip
    if baseline is not None:
        kept = bundle_of(Path(baseline))
        original, native = kept.subject, native_of(kept)
    else:
        into = scratch / "original"
        into.mkdir()
        artifact, door = source.find(workload.model, split, into)
        kind = plugin.usable("targets", [door.home])[door.home]
        original, native = Subject("original", artifact, kind.light(False)[0]), door.native
    subjects = (dataclasses.replace(original, id="original"), dataclasses.replace(packed.subject, id="candidate"))
    for subject in subjects:
        check_inputs(split, subject.artifact)
    fixed = next((size for one in subjects if (size := one.artifact.fixed_batch)), None)
    bench = Bench(Store(Path(store) if store else scratch / "store"), machine, seed, Broadcast(()), native, scores)
    # what stands as a companion stays open between scenarios
    bench.companions.extend(subjects)
    return _Run(
        bench, *subjects, split, views(split, [spec.name for spec in subjects[0].artifact.inputs]),
        fixed or batch, str(packed.manifest["title"]), scratch, seed, Broadcast.to(observers),
        made_elsewhere(packed, machine),
    )  # fmt: skip


@dataclass
class _Run:
    """Both subjects, the data, and what was found so far."""

    bench: Bench
    original: Subject
    candidate: Subject
    split: Split
    views: Mapping[str, View]
    batch: int
    title: str
    scratch: Path
    seed: int
    observer: Broadcast
    warnings: tuple[str, ...]
    clean: tuple[Answers, Answers] | None = None
    pairs: dict[str, dict[str, excess.Paired]] = field(default_factory=dict)
    fed: int = 0

    def all(
        self, chosen: Sequence[Scenario], only: Sequence[str], tolerance: float, confidence: float
    ) -> list[Finding]:
        """Every finding: accuracy, then behaviour, then load; raises :class:`CallError` where there is none."""
        loads = [load for load in pressure.loads() if matches(only, load.name, "load")]
        asked = self._asked(only)
        if not (chosen or loads or asked[0]):
            raise CallError(f"no scenario matches {', '.join(only)}", where="only", do="name a family, as noise")
        try:
            self.observer.on(Event("stage", f"answering {len(self.split):,} unchanged examples"))
            self.clean = self._answers(self.split)
            drafts = [
                self._drafted(one, number, len(chosen) + len(loads)) for number, one in enumerate(chosen, start=1)
            ]
        finally:
            self.bench.close()
        verdicts = {
            name: verdict
            for pairs in self.pairs.values()
            for name, verdict in excess.judged(pairs, tolerance, confidence).items()
        }
        findings = [_ruled(draft, verdicts.get(draft.scenario), tolerance) for draft in drafts]
        findings += self._behaviours(asked)
        return findings + [
            self._load(load, len(chosen) + number, len(chosen) + len(loads)) for number, load in enumerate(loads)
        ]

    def families(self, tolerance: float, confidence: float) -> dict[str, excess.Excess]:
        """Each family as a whole, corrected for their number."""
        whole = {name: excess.pooled(list(pairs.values())) for name, pairs in self.pairs.items()}
        return excess.judged(whole, tolerance, confidence)

    # -- changed data ------------------------------------------------------------------------------------------

    def _answers(self, split: Split) -> tuple[Answers, Answers]:
        original, candidate = (
            self.bench.answer(subject, split, split.name, self.batch) for subject in (self.original, self.candidate)
        )
        return original, candidate

    def _drafted(self, one: Scenario, number: int, total: int) -> Finding:
        """The scenario's scores; its verdict waits for the rest of the family."""
        self.observer.on(Event("progress", f"{one.family}: {one.name}", {"done": number - 1, "total": total}))
        self._make_room()
        draft = Finding(one.name, one.family, "accuracy", "undecided", "", one.about, one.severity)
        scene = staged(self.split, one, self.views[one.fits], self.seed)
        try:
            answers = self.bench.answer(self.original, scene, one.name, self.batch)
        except (DataError, MeasureError) as error:
            return dataclasses.replace(draft, text=f"cannot be run on the original: {error}", error=str(error))
        try:
            trial = self.bench.answer(self.candidate, scene, one.name, self.batch)
        except (DataError, MeasureError) as error:
            text = f"the original answers, the candidate fails: {error}"
            return dataclasses.replace(draft, verdict="breaks", text=text, error=str(error))
        assert self.clean is not None
        scores = [found.scores[self.score] for found in (*self.clean, answers, trial)]
        self.pairs.setdefault(one.family, {})[one.name] = excess.Paired(*scores)
        return dataclasses.replace(
            draft, original=float(scores[2].mean()), candidate=float(scores[3].mean()),
            agreement=_agreement(answers, trial),
        )  # fmt: skip

    def _make_room(self) -> None:
        (one,) = self.split.head(1).batches(1)
        self.fed += len(self.split) * sum(array.nbytes for array in one.inputs)
        if self.fed > _KEPT:
            self.bench.close()
            self.fed = 0

    # -- odd inputs, and load ----------------------------------------------------------------------------------

    def _asked(self, only: Sequence[str]) -> tuple[list[behaviour.Question], list[behaviour.Question]]:
        """The questions that are put to both, in the form that each takes."""
        original, candidate = (
            {one.name: one for one in behaviour.questions(rows, subject.artifact)} for subject, rows in self._rows()
        )
        both = [name for name, one in candidate.items() if name in original and matches(only, name, one.family)]
        return [original[name] for name in both], [candidate[name] for name in both]

    def _behaviours(self, asked: tuple[list[behaviour.Question], list[behaviour.Question]]) -> list[Finding]:
        if not asked[0]:
            return []
        self.observer.on(Event("stage", "odd inputs"))
        told = [
            dict(self._examined(subject, rows, mine)) for (subject, rows), mine in zip(self._rows(), asked, strict=True)
        ]
        found = (behaviour.judged(one, told[0][one.name], told[1][one.name]) for one in asked[1])
        return [
            Finding(
                one.question.name, one.question.family, "behaviour", one.verdict, one.text, one.question.about,
                figures={
                    name: {"outcome": told.outcome, "deviation": _finite(told.deviation), "words": told.words}
                    for name, told in (("original", one.original), ("candidate", one.candidate))
                },
            )
            for one in found
        ]  # fmt: skip

    def _rows(self) -> Iterator[tuple[Subject, tuple[Any, ...]]]:
        for subject in (self.original, self.candidate):
            yield subject, behaviour.rows_of(self.split, subject.artifact, self.batch + 1)

    def _examined(
        self, subject: Subject, rows: tuple[Any, ...], asked: Sequence[behaviour.Question]
    ) -> Iterator[tuple[str, behaviour.Told]]:
        with self._probe(subject) as probe:
            try:
                known = behaviour.Examination.begin(probe, rows, subject.artifact)
            except MeasureError as error:
                yield from ((one.name, behaviour.Told("dies", None, str(error))) for one in asked)
                return
            for number, one in enumerate(asked):
                text = f"{subject.id}: {one.name}"
                self.observer.on(Event("progress", text, {"done": number, "total": len(asked)}))
                try:
                    told = known.put(one)
                except MeasureError as error:  # it could not be opened again
                    told = behaviour.Told("dies", None, str(error))
                yield one.name, told

    def _load(self, load: pressure.Load, number: int, total: int) -> Finding:
        self.observer.on(Event("progress", f"load: {load.name}", {"done": number, "total": total}))
        figures = [
            pressure.measured(load, lambda: self._probe(subject), tuple(array[: self.batch] for array in rows))  # noqa: B023
            for subject, rows in self._rows()
        ]
        found = pressure.judged(load, *figures)
        return Finding(
            load.name, "load", "load", found.verdict, found.text, load.about,
            figures={"original": _all_finite(found.original), "candidate": _all_finite(found.candidate)},
        )  # fmt: skip

    def _probe(self, subject: Subject) -> Probe:
        return Probe(subject, self.bench.machine["threads"], self.batch, self.scratch)

    # -- small things ------------------------------------------------------------------------------------------

    @property
    def score(self) -> str:
        """The score that is judged: the first of single examples."""
        return next(iter(self.bench.scores))

    @property
    def _clean(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        assert self.clean is not None
        return self.clean[0].scores[self.score], self.clean[1].scores[self.score]

    @property
    def unit(self) -> str:
        return excess.unit_of(np.concatenate(self._clean))

    def means(self) -> tuple[float, float]:
        """Both mean scores on unchanged data."""
        original, candidate = self._clean
        return float(original.mean()), float(candidate.mean())

    def drop(self, confidence: float) -> Estimate:
        """The drop on unchanged data."""
        return drop(*self._clean, self.unit, confidence)


def _ruled(draft: Finding, verdict: excess.Excess | None, tolerance: float) -> Finding:
    if verdict is None:
        return draft
    one = verdict.estimate
    text = (
        f"{draft.original:.4g} → {draft.candidate:.4g}, excess drop {one.value:+.2f} {verdict.unit} "
        f"({one.low:+.2f} … {one.high:+.2f}), {tolerance:g} tolerated: {verdict.verdict}"
    )
    if verdict.more is not None:
        text += f"; about {verdict.more:,} more examples would decide"
    return dataclasses.replace(draft, verdict=verdict.verdict, excess=verdict, text=text)


def _agreement(one: Answers, other: Answers) -> float | None:
    """The share of examples whose classes are all the same; None where answers are no classes."""
    if one.compared.dtype.kind not in "iub" or one.compared.shape != other.compared.shape:
        return None
    same = (one.compared == other.compared).reshape(len(one), -1).all(axis=1)
    return float(same.mean())


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _all_finite(figures: Mapping[str, float] | None) -> dict[str, float | None] | None:
    return None if figures is None else {name: _finite(value) for name, value in figures.items()}
