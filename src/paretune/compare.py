"""Two bundles or model files side by side: which is faster here and now, if that can be shown at all."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paretune.ask.data import Split
from paretune.ask.event import Event, Observer
from paretune.ask.score import unit_of_drop
from paretune.ask.workload import Workload
from paretune.check.answers import Answers, drop_of
from paretune.check.bench import Bench
from paretune.check.machine import default_threads, fingerprint
from paretune.check.measurement import Measurement, Subject
from paretune.check.plan import COMPARE
from paretune.check.statistics import Array, Estimate, log_ratios, ratio
from paretune.deliver.trial import timing
from paretune.errors import CallError, DataError
from paretune.subject import answer_rows, batch_sizes, bench_of, heldout_of, sample_of, subject_of

Outcome = Literal["faster", "slower", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """What was measured of A and B in the same rounds of several sessions.

    ``logs`` are the logarithms of B's p50 over A's by batch size, one a session: above 0 where A is faster.
    """

    titles: tuple[str, str]
    targets: tuple[str, str]
    measurements: tuple[Measurement, Measurement]
    logs: Mapping[int, Array]
    answers: tuple[Answers, Answers] | None
    machine: dict[str, Any]
    warnings: tuple[str, ...]

    def ratio(self, confidence: float = 0.95, batch: int | None = None) -> Estimate:
        """How many times as fast as B A is: at one batch size, else the geometric mean over all."""
        chosen = [self.logs[batch]] if batch is not None else list(self.logs.values())
        return ratio(np.mean(chosen, axis=0), confidence)

    def outcome(self, confidence: float = 0.95, batch: int | None = None) -> Outcome:
        """What the whole interval of the ratio says of A."""
        return told(self.ratio(confidence, batch))

    def drop(self, score: str, confidence: float = 0.95) -> tuple[Estimate, str]:
        """How much less A scores than B on the same examples, and the unit."""
        unit = unit_of_drop(score)
        if self.answers is None:
            raise CallError("nothing was scored", where="drop", do="compare with a workload")
        ours, theirs = self.answers
        return drop_of(theirs, ours, score, unit, confidence), unit

    def describe(self, confidence: float = 0.95) -> dict[str, Any]:
        """Plain JSON: the outcome and the ratio over all and by batch size, and both sides' own figures."""
        drops = {}
        for score in (*self.answers[0].scores, *self.answers[0].wholes) if self.answers else ():
            found, unit = self.drop(score, confidence)
            drops[score] = {**found.describe(), "unit": unit}
        return {
            "outcome": self.outcome(confidence),
            "ratio": self.ratio(confidence).describe(),
            "confidence": confidence,
            "batches": {
                str(batch): {
                    "outcome": self.outcome(confidence, batch),
                    "ratio": self.ratio(confidence, batch).describe(),
                }
                for batch in self.logs
            },
            "sessions": max(run.sessions for run in self.measurements[0].runs.values()),
            "drops": drops,
            "a": self._side(0, confidence),
            "b": self._side(1, confidence),
            "machine": self.machine,
            "warnings": list(self.warnings),
        }

    def _side(self, place: int, confidence: float) -> dict[str, Any]:
        found = self.measurements[place]
        return {
            "title": self.titles[place],
            "target": self.targets[place],
            "size_bytes": found.size_bytes,
            "parameters": found.parameters,
            "macs": found.macs,
            "runs": [{"batch": batch, **timing(run, confidence)} for batch, run in found.runs.items()],
        }


def told(found: Estimate) -> Outcome:
    """``faster`` or ``slower`` where the whole interval lies on that side of 1."""
    return "faster" if found.low > 1 else "slower" if found.high < 1 else "no difference shown"


def compare(
    a: str | Path,
    b: str | Path,
    workload: Workload | None = None,
    *,
    target: str | None = None,
    batch: Sequence[int] = (1,),
    seconds: float = 60.0,
    threads: int | None = None,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Comparison:
    """Time A and B in the same rounds, in as many sessions as ``seconds`` allow (at least three).

    How long is looked is set beforehand and never by what was seen, so an interval at 95 % is one.

    Parameters
    ----------
    a, b
        Bundles' directories, ``.onnx`` or ``.pt2`` files, with inputs alike.
    workload
        Whose held-out data to feed and to score on; None: seeded random inputs, and no scores.
    target
        Overrules the targets of both.

    Raises
    ------
    ParetuneError
        If one cannot be opened, their inputs differ, or a runtime fails.
    """
    sizes = batch_sizes(batch)
    machine = fingerprint(threads or default_threads())
    heldout = heldout_of(workload)
    scratch = Path(tempfile.mkdtemp(prefix="paretune-compare-"))
    try:
        sides = []
        for name, what in (("a", a), ("b", b)):
            (scratch / name).mkdir()
            sides.append((name, *subject_of(Path(what), target, heldout, scratch / name, machine)))
        first, second = (dataclasses.replace(subject, id=name) for name, subject, *_ in sides)
        _check_alike(first, second, (str(a), str(b)))
        bench = bench_of(workload, sides[0][3], machine, seed, observers, scratch)
        try:
            sample = sample_of(heldout, first.artifact, max(sizes), seed)
            found = _timed(bench, (first, second), sample, sizes, seconds)
            answers = None if heldout is None else _answered(bench, (first, second), heldout, sizes)
        finally:
            bench.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logs = {
        size: log_ratios(found["b"].runs[size].blocks, run.blocks, run.sessions)
        for size, run in found["a"].runs.items()
    }
    return Comparison(
        titles=(sides[0][2], sides[1][2]),
        targets=(first.target.name, second.target.name),
        measurements=(found["a"], found["b"]),
        logs=logs,
        answers=answers,
        machine=machine,
        warnings=tuple(dict.fromkeys(warning for side in sides for warning in side[4])),
    )


def _timed(
    bench: Bench, subjects: tuple[Subject, Subject], sample: Split, sizes: tuple[int, ...], seconds: float
) -> dict[str, Measurement]:
    ends = clock.monotonic() + seconds
    longest, began = 0.0, clock.monotonic()

    def heard(session: int) -> None:
        nonlocal longest, began
        now = clock.monotonic()
        longest, began = max(longest, now - began if session else 0.0), now
        left = {"left_s": round(ends - now, 1)}
        bench.observer.on(Event("progress", f"comparing, session {session + 1}", left))

    def enough() -> bool:
        return clock.monotonic() + longest > ends

    return bench.latency(subjects, sample, sizes, COMPARE, enough, heard)


def _answered(
    bench: Bench, subjects: tuple[Subject, Subject], heldout: Split, sizes: tuple[int, ...]
) -> tuple[Answers, Answers]:
    ours, theirs = (
        bench.answer(subject, heldout, "heldout", answer_rows(subject.artifact, sizes)) for subject in subjects
    )
    return ours, theirs


def _check_alike(a: Subject, b: Subject, names: tuple[str, str]) -> None:
    """Refuse what does not take the same inputs: a ratio of their latencies would say nothing."""

    def shapes(subject: Subject) -> list[tuple[str, tuple[Any, ...]]]:
        return [
            (spec.dtype, tuple(axis if isinstance(axis, int) else "free" for axis in spec.shape[1:]))
            for spec in subject.artifact.inputs
        ]

    if shapes(a) != shapes(b):
        ours, theirs = (", ".join(f"{dtype}{list(shape)}" for dtype, shape in shapes(one)) for one in (a, b))
        raise DataError(
            f"their inputs differ: {ours} and {theirs} an example", where=" and ".join(names),
            do="compare models that take the same inputs",
        )  # fmt: skip
