"""How a bundle or a model file does when queries arrive as they do in the field, on this machine."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.event import Broadcast, Event, Observer
from paretune.ask.workload import Workload
from paretune.check import early_stopping
from paretune.check.bench import whole_batches
from paretune.check.feed import Feed
from paretune.check.load import QUANTILES, SAMPLES, Schedule, Trace, summarise
from paretune.check.machine import default_threads, fingerprint, measuring_lock
from paretune.check.process import Child
from paretune.errors import CallError, MeasureError
from paretune.subject import heldout_of, sample_of, subject_of

SHARE = 0.7
"""The server shape's rate where none is given, of what single-stream answers."""
PROBES = 7
LEAST = 11
"""Queries that are sent however slow they are: with fewer there is no percentile at all."""


@dataclass(frozen=True)
class Probe:
    """One rate that was tried: the bound on its percentile, in ms, and whether it stays within the one asked."""

    rate: float
    bound_ms: float | None
    holds: bool


@dataclass(frozen=True)
class Load:
    """The times of every query of one load shape, and how its rate was found."""

    title: str
    target: str
    trace: Trace
    rate_from: str | None
    probes: tuple[Probe, ...]
    machine: dict[str, Any]
    warnings: tuple[str, ...]

    def describe(self, confidence: float = 0.95) -> dict[str, Any]:
        """Plain JSON: what :func:`paretune.check.load.summarise` says, the rates tried, the machine."""
        return {
            "title": self.title,
            "target": self.target,
            **summarise(self.trace, confidence),
            "callers": self.trace.callers,
            "rate_from": self.rate_from,
            "probes": [vars(probe) for probe in self.probes],
            "machine": self.machine,
            "warnings": list(self.warnings),
        }


def load(
    what: str | Path,
    workload: Workload | None = None,
    *,
    shape: str = "server",
    rate: float | None = None,
    bound_ms: float | None = None,
    seconds: float = 10.0,
    samples: int | None = None,
    target: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Load:
    """Send queries to a bundle or a model file in one of MLPerf's four shapes.

    Parameters
    ----------
    what
        A bundle's directory, an ``.onnx`` or a ``.pt2`` file.
    workload
        Whose held-out inputs to send; None: seeded random ones.
    shape
        ``single-stream``, ``multi-stream``, ``server`` or ``offline``.
    rate
        Server: queries a second. None: the highest one of those tried whose p99 (p90 where it would take too long)
        is proven to stay within ``bound_ms``; without a bound, 0.7 × what single-stream answers.
    seconds
        About how long to send.
    samples
        Samples a query holds; None: 1, multi-stream 8, offline 32 at a time, or the model's own fixed batch.

    Raises
    ------
    CallError
        If the shape, the rate or the bound makes no sense.
    MeasureError
        If it cannot be opened, or dies or hangs: a :class:`paretune.check.load.CutError` holds what was answered.
    """
    _check(shape, rate, bound_ms, seconds, samples)
    machine = fingerprint(threads or default_threads())
    heldout = heldout_of(workload)
    scratch = Path(tempfile.mkdtemp(prefix="paretune-load-"))
    try:
        subject, title, _, warnings = subject_of(Path(what), target, heldout, scratch, machine)
        rows = subject.artifact.fixed_batch or samples or SAMPLES[shape]
        if samples not in (None, rows):
            raise CallError(f"the model takes batches of {rows}, and {samples} were asked", where=str(what))
        data = sample_of(heldout, subject.artifact, rows, seed)
        feed = Feed.write(whole_batches(data, subject.artifact, rows), scratch / "feed")
        with Child(subject.artifact, subject.target, machine["threads"], rows, scratch) as child, measuring_lock():
            issue = _Issue(child, feed, shape, rows, seconds, seed, scratch, Broadcast.to(observers))
            trace, rate_from, probes = issue.run(rate, bound_ms)
        return Load(title, subject.target.name, trace, rate_from, probes, machine, warnings)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(shape: str, rate: float | None, bound_ms: float | None, seconds: float, samples: int | None) -> None:
    if shape not in SAMPLES:
        raise CallError(f"there is no load shape {shape!r}", where="shape", do=f"choose one of {', '.join(SAMPLES)}")
    for name, value in (("rate", rate), ("bound", bound_ms)):
        if value is not None and shape != "server":
            raise CallError(f"{shape} has no {name}", where=name, do="leave it out, or choose the server shape")
        if value is not None and not 0 < value < np.inf:
            raise CallError(f"{value} is no {name}", where=name, do="give a number above 0")
    if rate is not None and bound_ms is not None:
        raise CallError("a bound is for finding a rate, and a rate was given", where="bound", do="give one of the two")
    if not 0 < seconds < np.inf:
        raise CallError(f"{seconds} s is no time to measure for", where="seconds", do="give a number above 0")
    if samples is not None and samples < 1:
        raise CallError(f"a query cannot hold {samples} samples", where="samples", do="give a whole number from 1")


@dataclass
class _Issue:
    """One opened child, and the loads that are put on it, one after the other."""

    child: Child
    feed: Feed
    shape: str
    rows: int
    seconds: float
    seed: int
    scratch: Path
    observer: Observer

    def run(self, rate: float | None, bound_ms: float | None) -> tuple[Trace, str | None, tuple[Probe, ...]]:
        """The trace; where its rate comes from, and the rates tried for it."""
        if self.shape in ("single-stream", "multi-stream"):
            schedule = Schedule.streamed(self.shape, self.rows, self.seconds, LEAST)
            return self._send(self.shape, schedule), None, ()
        if self.shape == "offline":
            count = max(LEAST, round(self._top(self._alone(1.0)) * self.seconds))
            return self._send("offline", Schedule.at_once(self.rows, count, self.seconds)), None, ()
        if rate is not None:
            return self._served(rate), "as asked", ()
        alone = self._alone(2.0)
        if bound_ms is None:
            pace = _pace(alone)
            return self._served(SHARE * pace), f"{SHARE:g} × single-stream's {pace:,.1f} queries/s", ()
        q = self._provable(_pace(alone))
        rate, probes = self._highest(alone, bound_ms, q)
        found = (
            f"the highest of {len(probes)} rates tried by bisection up to {self._top(alone):,.1f} queries/s "
            f"whose {_name(q)} stays within {bound_ms:g} ms (early stopping, {early_stopping.CONFIDENCE:.0%})"
        )
        return self._served(rate), found, probes

    def _alone(self, most_s: float) -> Trace:
        """One query after the other, to learn how long one takes."""
        seconds = min(most_s, self.seconds / 4)
        return self._send("single-stream", Schedule.streamed("single-stream", self.rows, seconds, LEAST))

    def _served(self, rate: float) -> Trace:
        return self._send("server", Schedule.served(self.rows, rate, max(1, round(rate * self.seconds)), self.seed))

    def _send(self, text: str, schedule: Schedule) -> Trace:
        rate = f" at {schedule.rate:,.1f} queries/s" if schedule.rate else ""
        self.observer.on(Event("stage", f"{text}{rate}, {schedule.seconds:.1f} s", {}))
        notes = self.scratch / "notes"
        warm_s = 0.05 if notes.exists() else 0.3  # it stood idle only shortly since the last
        return self.child.load(self.feed, schedule, notes, warm_s)

    def _top(self, alone: Trace) -> float:
        return self.child.callers * _pace(alone)

    def _provable(self, pace: float) -> float:
        """The quantile that a probe at half that pace can prove in the time that it has."""
        probe_s = self.seconds / 2
        return 0.99 if pace / 2 * probe_s >= early_stopping.needed(0.99) else 0.9

    def _highest(self, alone: Trace, bound_ms: float, q: float) -> tuple[float, tuple[Probe, ...]]:
        """Bisection up to what the callers answer back to back: nothing above it can last."""
        best = early_stopping.estimate(alone.service_ms, q)
        if best is not None and best > bound_ms:
            raise MeasureError(
                f"no rate can keep {_name(q)} within {bound_ms:g} ms: alone, queries take up to {best:.3g} ms",
                where=self.child.target.name, do="raise the bound",
            )  # fmt: skip
        # below this rate, a probe would take longer than all that was asked
        lowest, top = early_stopping.needed(q) / self.seconds, self._top(alone)
        if 2 * lowest > top:
            raise MeasureError(
                f"{_name(q)} takes {early_stopping.needed(q)} queries to prove, and at most {top:,.3g} a second are "
                f"answered", where=self.child.target.name,
                do=f"give at least {math.ceil(2 * early_stopping.needed(q) / top)} seconds",
            )  # fmt: skip
        probes: list[Probe] = []

        def holds(rate: float) -> bool:
            count = max(early_stopping.needed(q), round(rate * self.seconds / 2))
            trace = self._send("probe", Schedule.served(self.rows, rate, count, self.seed + 1 + len(probes)))
            bound = early_stopping.estimate(trace.latency_ms, q) if trace.done.all() else None
            probes.append(Probe(rate, bound, bound is not None and bound <= bound_ms))
            return probes[-1].holds

        rate = bisect(holds, lowest, top, PROBES)
        if rate is None:
            raise MeasureError(
                f"no rate tried, down to {probes[-1].rate:,.3g} queries/s, keeps {_name(q)} within {bound_ms:g} ms",
                where=self.child.target.name, do="raise the bound, or the seconds, for lower rates",
            )  # fmt: skip
        return rate, tuple(probes)


def bisect(holds: Callable[[float], bool], lowest: float, top: float, probes: int) -> float | None:
    """The highest of ``probes`` rates tried between ``lowest`` and ``top`` that holds; None: none does."""
    low, high = lowest, top
    for _ in range(probes):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low > lowest else None


def _pace(alone: Trace) -> float:
    return len(alone.service_ms) / alone.seconds


def _name(q: float) -> str:
    return next(name for name, value in QUANTILES.items() if value == q)
