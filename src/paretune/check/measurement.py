"""Measurement: raw samples from clean child processes: latency, memory, size, and one score for every example."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, feeds, tile
from paretune.ask.event import Event, Observer
from paretune.ask.knob import values_of
from paretune.ask.score import first_tensor
from paretune.ask.target import Target
from paretune.build.store import Store, key_of
from paretune.check.answers import (
    Answers,
    as_returned,
    compared_with,
    concatenated,
    confidence_of,
    fingerprint_of,
    scored,
)
from paretune.check.feed import Feed
from paretune.check.machine import measuring_lock
from paretune.check.plan import Plan
from paretune.check.process import Child
from paretune.errors import MeasureError

Array = np.ndarray[Any, Any]
Blocks = tuple[tuple[float, ...], ...]
FEED_BATCHES = 8
"""Different batches that latencies are taken on, in turn."""


@dataclass(frozen=True)
class Subject:
    """An artefact on a target: what can be opened and measured."""

    id: str
    artifact: Artifact
    target: Target

    def describe(self) -> dict[str, Any]:
        """All that determines what is measured, as plain JSON."""
        return {"artifact": self.artifact.digest, "target": self.target.name, "options": dict(values_of(self.target))}


@dataclass(frozen=True)
class BatchRun:
    """Latencies (ms, in blocks) at one batch size, and those of the subjects measured in the same rounds."""

    batch: int
    blocks: Blocks
    beside: Mapping[str, Blocks]
    rows_per_s: float
    callers: int
    import_bytes: int | None
    peak_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None

    @property
    def samples(self) -> int:
        return sum(len(block) for block in self.blocks)

    @property
    def settled(self) -> bool:
        """Whether the second half of the blocks ran at the pace of the first (medians within 10 %)."""
        half = len(self.blocks) // 2
        if half == 0:
            return True
        first, second = (float(np.median(np.concatenate(part))) for part in (self.blocks[:half], self.blocks[half:]))
        return 0.9 < first / second < 1.1


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one subject; ``answers`` by the data they were given to: ``ranking``, ``heldout``."""

    id: str
    size_bytes: int
    parameters: int | None
    macs: int | None
    runs: Mapping[int, BatchRun]
    answers: Mapping[str, Answers] = field(default_factory=dict)


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
    scores: Mapping[str, Callable[[Any, Any], Any]]
    companions: list[Subject] = field(default_factory=list)
    seconds: float = 0.0
    _children: dict[tuple[str, int], Child] = field(default_factory=dict)
    _row_s: dict[str, float] = field(default_factory=dict)
    _scratch: Path | None = None
    _feeds: dict[tuple[str, int, str], Feed] = field(default_factory=dict)

    def latency(self, subject: Subject, sample: Split, batches: tuple[int, ...], plan: Plan) -> Measurement:
        """Latency, throughput and memory at every batch size, interleaved with the companions.

        Raises
        ------
        MeasureError
            If the subject cannot be opened, dies, hangs or answers nonsense.
        """
        runs = {batch: self._latency(subject, sample, batch, plan) for batch in batches}
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
        place = self._step("answers", subject, key, lambda into: self._answer(subject, split, batch, into))
        with np.load(place / "answers.npz", allow_pickle=False) as saved:
            scores = {name: saved[f"score_{sorted(self.scores).index(name)}"] for name in self.scores}
            return Answers(scores, saved["compared"], saved["confidence"], data)

    def close(self) -> None:
        """End every child and remove what was written for them."""
        for child in self._children.values():
            child.close()
        self._children.clear()
        self._feeds.clear()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _step(self, what: str, subject: Subject, key: str, make: Callable[[Path], None]) -> Path:
        started = time.perf_counter()
        place = self.store.get(key)
        cached = place is not None
        if place is None:
            place = self.store.put(key, what, lambda into: self._or_failure(subject, into, make))
        seconds = time.perf_counter() - started
        self.seconds += seconds
        data = {"step": what, "id": subject.id, "key": key, "cached": cached, "seconds": round(seconds, 3)}
        self.observer.on(Event("step", what, data))
        if (place / "failed.json").exists():
            told = json.loads((place / "failed.json").read_text())
            raise MeasureError(told["what"], where=told["where"], do=told["do"])
        return place

    def _or_failure(self, subject: Subject, into: Path, make: Callable[[Path], None]) -> None:
        try:
            make(into)
        except MeasureError as error:
            guilty = self._end_failed(subject)
            standing = any(companion.id == subject.id for companion in self.companions)
            if error.passing or standing or not guilty:
                raise  # no finding on this subject that is to be remembered
            shutil.rmtree(into)
            into.mkdir()
            (into / "failed.json").write_text(json.dumps({"what": error.what, "where": error.where, "do": error.do}))

    def _end_failed(self, subject: Subject) -> bool:
        """End the subject's child and every dead one; whether none but the subject's own had failed."""
        dead = {key for key, child in self._children.items() if not child.alive}
        for key in [key for key in self._children if key[0] == subject.id or key in dead]:
            self._children.pop(key).close()
        return not dead or any(name == subject.id for name, _ in dead)

    def _latency(self, subject: Subject, sample: Split, batch: int, plan: Plan) -> BatchRun:
        beside = [companion for companion in self.companions if companion.id != subject.id]
        key = key_of(
            "latency",
            {
                **subject.describe(), "sample": sample.digest, "batch": batch, "plan": dataclasses.asdict(plan),
                "machine": self.machine["digest"], "seed": self.seed,
                "beside": {companion.id: companion.describe() for companion in beside},
            },
        )  # fmt: skip

        def make(into: Path) -> None:
            run = self._interleave(subject, beside, sample, batch, plan)
            (into / "latency.json").write_text(json.dumps(dataclasses.asdict(run)))

        place = self._step("latency", subject, key, make)
        return _run_of(json.loads((place / "latency.json").read_text()))

    def _interleave(self, subject: Subject, beside: list[Subject], sample: Split, batch: int, plan: Plan) -> BatchRun:
        child = self._child(subject, batch)
        children = {subject.id: child}
        feeds_ = {subject.id: self._feed(sample, subject.artifact, batch, limit=FEED_BATCHES)}
        for companion in beside:
            feeds_[companion.id] = self._feed(sample, companion.artifact, batch, limit=FEED_BATCHES)
            with _blameless():
                children[companion.id] = self._child(companion, batch)
        blocks: dict[str, list[tuple[float, ...]]] = {name: [] for name in children}
        elapsed = 0.0
        random = np.random.default_rng([self.seed, batch])
        try:
            with measuring_lock():
                for round_number in range(plan.rounds + 1):
                    for name in random.permutation(list(children)):
                        count = plan.count if name == subject.id else plan.beside
                        with contextlib.nullcontext() if name == subject.id else _blameless():
                            block = children[name].time(feeds_[name], plan.seconds, count, warm_s=0.02)
                        # the first round only brings caches, allocators and clocks to their pace
                        if round_number:
                            blocks[name].append(tuple(block["latencies_ms"]))
                            elapsed += block["elapsed_s"] if name == subject.id else 0.0
            memory = child.memory()
        finally:
            if subject not in self.companions:
                self._drop(subject, batch, keep=True)
        mine = tuple(blocks.pop(subject.id))
        return BatchRun(
            batch=batch,
            blocks=mine,
            beside={name: tuple(rounds) for name, rounds in blocks.items()},
            rows_per_s=batch * sum(map(len, mine)) / elapsed,
            callers=child.callers,
            import_bytes=child.import_bytes,
            **{name: memory[name] for name in ("peak_bytes", "anon_bytes", "file_bytes")},
        )

    def _answer(self, subject: Subject, split: Split, batch: int, into: Path) -> None:
        feed = self._feed(split, subject.artifact, batch)
        out = into / "outputs"
        # without a measured pace (answers alone were asked) two seconds an example are the most that is waited for
        patience_s = 300 + 20 * len(split) * self._row_s.get(subject.id, 0.1)
        outputs = self._child(subject, batch).infer(feed, out, patience_s)
        if subject not in self.companions:
            self._drop(subject, batch)
        collected: dict[str, list[Array]] = {name: [] for name in self.scores}
        compared, confidence = [], []
        for whole, part in zip(outputs, split.batches(batch), strict=True):
            arrays = tuple(array[: len(part)] for array in whole)
            answer = first_tensor(as_returned(arrays, subject.artifact))
            compared.append(compared_with(answer, part.labels))
            confidence.append(confidence_of(answer, compared[-1]))
            if not np.isfinite(confidence[-1]).all():
                continue  # refused below; a score need not cope with it
            for name, score in self.scores.items():
                collected[name].append(scored(name, score, arrays, part.labels, subject.artifact, self.native))
        shutil.rmtree(out)
        wrong = int((~np.isfinite(np.concatenate(confidence))).sum())
        if wrong:
            raise MeasureError(
                f"answers are not finite for {wrong} of {len(split)} examples", where=subject.target.name,
                do="look for an overflow: a wider precision may help",
            )  # fmt: skip
        columns = enumerate(sorted(self.scores))
        saved = {f"score_{position}": np.concatenate(collected[name]) for position, name in columns}
        saved |= {"compared": concatenated(compared), "confidence": np.concatenate(confidence)}
        np.savez(into / "answers.npz", **saved)  # type: ignore[arg-type]

    def _feed(self, split: Split, artifact: Artifact, batch: int, limit: int | None = None) -> Feed:
        layout = json.dumps([dataclasses.astuple(spec) for spec in artifact.inputs])
        key = (f"{split.digest}:{limit}", batch, layout)
        if key not in self._feeds:
            part = split if limit is None else split.head(limit * batch)
            root = self.scratch / f"feed-{len(self._feeds)}"
            batches = feeds(part, artifact, batch)
            whole = (arrays for arrays in batches if limit is None or len(arrays[0]) == min(batch, len(part)))
            if limit is not None and len(part) < batch:
                whole = (tuple(tile(array, batch) for array in arrays) for arrays in whole)
            self._feeds[key] = Feed.write(whole, root)
        return self._feeds[key]

    @property
    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = self.store.scratch()
        return self._scratch

    def _child(self, subject: Subject, batch: int) -> Child:
        key = (subject.id, batch)
        if key in self._children and not self._children[key].alive:  # killed while it stood idle, for memory say
            self._children.pop(key).close()
        if key not in self._children:
            self._children[key] = Child(subject.artifact, subject.target, self.machine["threads"], batch, self.scratch)
        return self._children[key]

    def _drop(self, subject: Subject, batch: int, keep: bool = False) -> None:
        """End a subject's child; ``keep`` lets the one stand whose answers may be asked next."""
        for key, child in list(self._children.items()):
            mine = key[0] == subject.id
            standing = any(key[0] == companion.id for companion in self.companions)
            if not standing and not (mine and keep and key[1] == batch):
                child.close()
                del self._children[key]


@contextlib.contextmanager
def _blameless() -> Iterator[None]:
    """A companion's failure is not the subject's."""
    try:
        yield
    except MeasureError as error:
        error.passing = True
        raise


def _run_of(value: dict[str, Any]) -> BatchRun:
    value["blocks"] = tuple(map(tuple, value["blocks"]))
    value["beside"] = {name: tuple(map(tuple, blocks)) for name, blocks in value["beside"].items()}
    return BatchRun(**value)
