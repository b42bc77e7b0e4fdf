"""Bench: takes measurements in clean child processes, all who are compared in turns, and remembers them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.code import fingerprint_of
from paretune.ask.data import Split, feeds, tile
from paretune.ask.event import Event, Observer
from paretune.ask.score import PerExample
from paretune.ask.set_score import SetScore
from paretune.build.store import Store, key_of
from paretune.check.answers import Answers, gathered
from paretune.check.disturbance import Snapshot
from paretune.check.feed import Arrays, Feed
from paretune.check.growth import Growth, growth_of
from paretune.check.machine import measuring_lock
from paretune.check.measurement import BatchRun, Measurement, Subject, joined, run_of
from paretune.check.meter import Spent
from paretune.check.plan import Plan
from paretune.check.process import Child
from paretune.check.statistics import CLUSTERS
from paretune.errors import MeasureError

Array = np.ndarray[Any, Any]
FEED_BATCHES = 8
"""Different batches that latencies are taken on, in turn."""


@dataclass
class Bench:
    """Measures subjects beside the same standing companions (the baseline and the reference).

    Companions are opened once and stay, stopped, until the bench is closed. Every finished measurement is a step in
    the store: the same subject, data, plan and machine are not measured again.
    """

    store: Store
    machine: Mapping[str, Any]
    seed: int
    observer: Observer
    native: Callable[[Array], Any]
    scores: Mapping[str, PerExample | SetScore]
    companions: list[Subject] = field(default_factory=list)
    seconds: float = 0.0
    _children: dict[tuple[str, int], Child] = field(default_factory=dict)
    _row_s: dict[str, float] = field(default_factory=dict)
    _opened_s: list[float] = field(default_factory=list)
    _scratch: Path | None = None
    _feeds: dict[tuple[str, int, str], Feed] = field(default_factory=dict)

    def latency(
        self,
        subjects: Sequence[Subject],
        sample: Split,
        batches: tuple[int, ...],
        plan: Plan,
        enough: Callable[[], bool] = lambda: False,
        heard: Callable[[int], None] = lambda session: None,
    ) -> dict[str, Measurement]:
        """Latency, throughput and memory at every batch size, by the subject's id.

        All subjects and the companions take turns in the same rounds. Each session of each batch size is a step of its
        own in the store. ``heard`` is told the number of each session before it begins; ``enough`` is asked after it,
        from the third on, whether to leave out the rest.

        Raises
        ------
        MeasureError
            If a subject cannot be opened, dies, hangs or answers nonsense; ``guilty`` names it.
        """
        if plan.sessions > 1:
            self.end_children()  # each session opens its own, the first one too
        parts: dict[int, list[dict[str, BatchRun]]] = {batch: [] for batch in batches}
        for session in range(plan.sessions):
            if session >= CLUSTERS and enough():
                break
            heard(session)
            for batch in batches:
                parts[batch].append(self._session(subjects, sample, batch, plan, session))
        return {subject.id: self._measurement(subject, parts) for subject in subjects}

    def _measurement(self, subject: Subject, parts: Mapping[int, list[dict[str, BatchRun]]]) -> Measurement:
        runs = {batch: joined([part[subject.id] for part in found]) for batch, found in parts.items()}
        self._row_s[subject.id] = max(float(np.median(run.blocks[-1])) / run.batch for run in runs.values()) / 1e3
        artifact = subject.artifact
        return Measurement(subject.id, artifact.size_bytes, artifact.parameters, artifact.macs, runs)

    def answer(self, subject: Subject, split: Split, data: str, batch: int) -> Answers:
        """One score for every example of ``split``, in batches of ``batch``.

        Raises
        ------
        MeasureError
            If the subject fails, or a score is not one finite number for every example.
        """
        key = key_of(
            "answers",
            {
                **subject.describe(), "split": split.digest, "batch": batch, "machine": self.machine["digest"],
                "scores": {name: fingerprint_of(score) for name, score in self.scores.items()},
            },
        )  # fmt: skip
        place = self._step("answers", [subject], key, lambda into: self._answer(subject, split, batch, into))
        return Answers.read(place / "answers.npz", self.scores, data)

    def soak(self, subject: Subject, sample: Split, batch: int, count: int, seconds: float) -> Growth:
        """Whether memory grows while one batch is inferred ``count`` times, or as often as ``seconds`` allow.

        Raises
        ------
        MeasureError
            If the subject fails.
        """
        asked = {"sample": sample.digest, "batch": batch, "count": count, "seconds": seconds}
        key = key_of("growth", {**subject.describe(), **asked, "machine": self.machine["digest"]})

        def make(into: Path) -> None:
            feed = self._feed(sample, subject.artifact, batch, limit=1)
            with self._start(subject, batch) as child, measuring_lock():
                (into / "growth.json").write_text(json.dumps(child.soak(feed, count, seconds)))

        place = self._step("growth", [subject], key, make)
        return growth_of(json.loads((place / "growth.json").read_text()))

    def close(self) -> None:
        """End every child and remove what was written for them."""
        self.end_children()
        self._feeds.clear()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def end_children(self) -> None:
        """End every child; they are opened anew when they are needed."""
        for child in self._children.values():
            child.close()
        self._children.clear()

    @property
    def open_s(self) -> float:
        """Median seconds that opening a child took so far."""
        return float(np.median(self._opened_s)) if self._opened_s else 1.0

    def _step(self, what: str, subjects: Sequence[Subject], key: str, make: Callable[[Path], None]) -> Path:
        started = time.perf_counter()
        place = self.store.get(key)
        cached = place is not None
        if place is None:
            place = self.store.put(key, what, lambda into: self._or_failure(subjects, into, make))
        seconds = time.perf_counter() - started
        self.seconds += seconds
        ids = ",".join(subject.id for subject in subjects)
        data = {"step": what, "id": ids, "key": key, "cached": cached, "seconds": round(seconds, 3)}
        self.observer.on(Event("step", what, data))
        if (place / "failed.json").exists():
            told = json.loads((place / "failed.json").read_text())
            error = MeasureError(told["what"], where=told["where"], do=told["do"])
            error.guilty = told["guilty"]
            raise error
        return place

    def _or_failure(self, subjects: Sequence[Subject], into: Path, make: Callable[[Path], None]) -> None:
        try:
            make(into)
        except MeasureError as error:
            error.guilty = error.guilty or subjects[0].id
            alone = self._end_failed({error.guilty, *(subject.id for subject in subjects)}, error.guilty)
            standing = any(companion.id == error.guilty for companion in self.companions)
            if error.passing or standing or not alone:
                raise  # no finding on this subject that is to be remembered
            shutil.rmtree(into)
            into.mkdir()
            told = {"what": error.what, "where": error.where, "do": error.do, "guilty": error.guilty}
            (into / "failed.json").write_text(json.dumps(told))

    def _end_failed(self, ours: set[str], guilty: str) -> bool:
        """End the children of ``ours`` and every dead one; whether none but the guilty one's had failed."""
        dead = {key for key, child in self._children.items() if not child.alive}
        standing = {companion.id for companion in self.companions} - {guilty}
        for key in [key for key in self._children if key in dead or (key[0] in ours and key[0] not in standing)]:
            self._children.pop(key).close()
        return not dead or any(name == guilty for name, _ in dead)

    def _session(
        self, subjects: Sequence[Subject], sample: Split, batch: int, plan: Plan, session: int
    ) -> dict[str, BatchRun]:
        mine = {subject.id for subject in subjects}
        beside = [companion for companion in self.companions if companion.id not in mine]
        key = key_of(
            "latency",
            {
                "subjects": {subject.id: subject.describe() for subject in subjects},
                "beside": {companion.id: companion.describe() for companion in beside},
                "sample": sample.digest, "batch": batch, "plan": plan.describe_session(), "session": session,
                "machine": self.machine["digest"], "seed": self.seed,
            },
        )  # fmt: skip

        def make(into: Path) -> None:
            runs = self._interleave([*subjects, *beside], sample, batch, plan, [self.seed, batch, session], mine)
            (into / "latency.json").write_text(json.dumps({one: dataclasses.asdict(run) for one, run in runs.items()}))

        try:
            place = self._step("latency", subjects, key, make)
        finally:
            if plan.sessions > 1:
                self.end_children()
            else:  # the one may stand whose answers are asked next
                for subject in subjects:
                    self._drop(subject, batch, keep=True)
        return {name: run_of(run) for name, run in json.loads((place / "latency.json").read_text()).items()}

    def _interleave(
        self, everyone: list[Subject], sample: Split, batch: int, plan: Plan, seed: list[int], mine: set[str]
    ) -> dict[str, BatchRun]:
        """Blocks of latencies of ``everyone``, in rounds of shuffled order; the runs of those in ``mine``."""
        feeds_ = {one.id: self._feed(sample, one.artifact, batch, limit=FEED_BATCHES) for one in everyone}
        children = self._open(everyone, batch, mine)
        blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in children}
        spent: dict[str, list[Spent]] = {name: [] for name in children}
        elapsed = dict.fromkeys(children, 0.0)
        random = np.random.default_rng(seed)
        pids = [child.pid for child in children.values()]
        with measuring_lock():
            before = Snapshot.now(pids)
            for round_number in range(plan.rounds + 1):
                for name in map(str, random.permutation(list(children))):
                    count = plan.count if name in mine else plan.beside
                    with _blaming(name, name in mine):
                        block = children[name].time(feeds_[name], plan.seconds, count, warm_s=0.02)
                    # the first round only brings caches, allocators and clocks to their pace
                    if round_number:
                        blocks[name].append(tuple(block["latencies_ms"]))
                        elapsed[name] += block["elapsed_s"]
                        spent[name].append(Spent(**block["spent"]))
            disturbance = before.until(Snapshot.now(pids))
        memory = {}
        for name in mine:
            with _blaming(name, True):
                memory[name] = children[name].memory()
        standing = [companion.id for companion in self.companions]
        return {
            name: BatchRun(
                batch=batch,
                blocks=tuple(blocks[name]),
                beside={other: tuple(blocks[other]) for other in standing if other != name},
                rows_per_s=batch * sum(map(len, blocks[name])) / elapsed[name],
                callers=children[name].callers,
                import_bytes=children[name].import_bytes,
                peak_bytes=memory[name]["peak_bytes"],
                anon_bytes=memory[name]["anon_bytes"],
                file_bytes=memory[name]["file_bytes"],
                spent=tuple(spent[name]),
                spent_beside={other: tuple(spent[other]) for other in standing if other != name},
                disturbances=(disturbance,),
            )
            for name in mine
        }

    def _answer(self, subject: Subject, split: Split, batch: int, into: Path) -> None:
        feed = self._feed(split, subject.artifact, batch)
        out = into / "outputs"
        # without a measured pace (answers alone were asked) two seconds an example are the most that is waited for
        patience_s = 300 + 20 * len(split) * self._row_s.get(subject.id, 0.1)
        outputs = self._child(subject, batch).infer(feed, out, patience_s)
        if subject not in self.companions:
            self._drop(subject, batch)
        batches = (
            (tuple(array[: len(part)] for array in whole), part.labels)
            for whole, part in zip(outputs, split.batches(batch), strict=True)
        )
        found = gathered(batches, self.scores, subject.artifact, self.native, subject.target.name)
        shutil.rmtree(out)
        found.save(into / "answers.npz")

    def _feed(self, split: Split, artifact: Artifact, batch: int, limit: int | None = None) -> Feed:
        layout = json.dumps([dataclasses.astuple(spec) for spec in artifact.inputs])
        key = (f"{split.digest}:{limit}", batch, layout)
        if key not in self._feeds:
            batches = feeds(split, artifact, batch) if limit is None else whole_batches(split, artifact, batch, limit)
            self._feeds[key] = Feed.write(batches, self.scratch / f"feed-{len(self._feeds)}")
        return self._feeds[key]

    @property
    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = self.store.scratch()
        return self._scratch

    def _open(self, everyone: list[Subject], batch: int, mine: set[str]) -> dict[str, Child]:
        """The children of all, opened side by side where they are not open yet."""
        began = time.perf_counter()
        fresh = []
        for one in everyone:
            with _blaming(one.id, one.id in mine):
                if not self._standing(one, batch):
                    self._children[one.id, batch] = self._start(one, batch, wait=False)
                    fresh.append(one)
        for number, one in enumerate(fresh):
            try:
                with _blaming(one.id, one.id in mine):
                    self._children[one.id, batch].opened()
            except MeasureError:
                for later in fresh[number + 1 :]:  # half opened, they are of no use to anybody
                    self._children.pop((later.id, batch)).close()
                raise
        if fresh:
            self._opened_s.append((time.perf_counter() - began) / len(fresh))
        return {one.id: self._children[one.id, batch] for one in everyone}

    def _child(self, subject: Subject, batch: int) -> Child:
        if not self._standing(subject, batch):
            self._children[subject.id, batch] = self._start(subject, batch)
        return self._children[subject.id, batch]

    def _standing(self, subject: Subject, batch: int) -> bool:
        key = (subject.id, batch)
        if key in self._children and not self._children[key].alive:  # killed while it stood idle, for memory say
            self._children.pop(key).close()
        return key in self._children

    def _start(self, subject: Subject, batch: int, wait: bool = True) -> Child:
        return Child(subject.artifact, subject.target, self.machine["threads"], batch, self.scratch, wait)

    def _drop(self, subject: Subject, batch: int, keep: bool = False) -> None:
        """End a subject's child; ``keep`` lets the one stand whose answers may be asked next."""
        for key, child in list(self._children.items()):
            mine = key[0] == subject.id
            standing = any(key[0] == companion.id for companion in self.companions)
            if not standing and not (mine and keep and key[1] == batch):
                child.close()
                del self._children[key]


def whole_batches(split: Split, artifact: Artifact, batch: int, count: int = FEED_BATCHES) -> Iterator[Arrays]:
    """Up to ``count`` whole batches; where there are too few examples for one, rows are repeated."""
    part = split.head(count * batch)
    for arrays in feeds(part, artifact, batch):
        if len(part) < batch:
            yield tuple(tile(array, batch) for array in arrays)
        elif len(arrays[0]) == batch:
            yield arrays


@contextlib.contextmanager
def _blaming(name: str, subject: bool) -> Iterator[None]:
    """Say whose failure it was; a companion's is not the subjects'."""
    try:
        yield
    except MeasureError as error:
        error.guilty = name
        error.passing = error.passing or not subject
        raise
