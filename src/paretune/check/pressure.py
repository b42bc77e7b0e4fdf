"""Pressure: several callers, several processes, a machine whose cores are taken, and the first call of all.

Each function measures one subject and returns plain figures. Answers must stay what they are under pressure; how much
slower they become is told, not judged.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paretune.ask.target import Arrays
from paretune.check.behaviour import TOLERANCE
from paretune.check.machine import available_cpus, measuring_lock
from paretune.check.probe import Probe, Reply
from paretune.check.stress import distance
from paretune.errors import MeasureError

CALLERS = (2, 4, 8)
PROCESSES = (2, 4)
ROUNDS = 20
"""How often each caller asks the same batch."""
_HOG = (
    "import os, time\n"
    "parent, end = os.getppid(), time.monotonic() + 300\n"
    "while os.getppid() == parent and time.monotonic() < end: sum(range(100000))\n"
)


@dataclass(frozen=True)
class Load:
    """One way of pressing: ``measure`` takes a way to open probes of a subject, and one batch."""

    name: str
    about: str
    measure: Callable[[Callable[[], Probe], Arrays], dict[str, float]]


@dataclass(frozen=True)
class Pressed:
    """Figures of both subjects under one load (None: it failed, and ``words`` says how), and what follows."""

    load: Load
    original: Mapping[str, float] | None
    candidate: Mapping[str, float] | None
    verdict: Literal["holds", "breaks"]
    text: str


def loads() -> tuple[Load, ...]:
    """All ways of pressing."""
    threads = [Load(f"{count}_threads", f"{count} threads call one opened model", _threads(count)) for count in CALLERS]
    processes = [
        Load(f"{count}_processes", f"{count} processes share the cores", _processes(count)) for count in PROCESSES
    ]
    return (
        *threads,
        *processes,
        Load("hogged_cores", "another program takes every core", hogged),
        Load("cold_start", "opening the model, and its first answer", cold),
    )


def _threads(callers: int) -> Callable[[Callable[[], Probe], Arrays], dict[str, float]]:
    def measure(opened: Callable[[], Probe], batch: Arrays) -> dict[str, float]:
        with opened() as probe:
            quiet = probe.demand([batch], rounds=ROUNDS)
            return _figures(quiet, [probe.demand([batch], callers=callers, rounds=ROUNDS)])

    return measure


def _processes(count: int) -> Callable[[Callable[[], Probe], Arrays], dict[str, float]]:
    def measure(opened: Callable[[], Probe], batch: Arrays) -> dict[str, float]:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(opened()) for _ in range(count)]
            first = [probe.demand([batch], rounds=ROUNDS) for probe in probes]  # one after the other, and warm then
            return _figures(first[0], _at_once(probes, batch))

    return measure


def _at_once(probes: list[Probe], batch: Arrays) -> list[Reply]:
    replies: list[Reply] = []
    failures: list[Exception] = []

    def ask(probe: Probe) -> None:
        try:
            replies.append(probe.demand([batch], rounds=ROUNDS))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(probe,)) for probe in probes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return replies


def hogged(opened: Callable[[], Probe], batch: Arrays) -> dict[str, float]:
    """Answers while as many busy processes run as there are cores."""
    with opened() as probe:
        quiet = probe.demand([batch], rounds=ROUNDS)
        with _hogs(len(available_cpus())):
            return _figures(quiet, [probe.demand([batch], rounds=ROUNDS)])


@contextlib.contextmanager
def _hogs(count: int) -> Iterator[None]:
    """Busy processes; they end by themselves when this one is gone."""
    hogs = [subprocess.Popen([sys.executable, "-c", _HOG]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
        for hog in hogs:
            hog.wait()


def cold(opened: Callable[[], Probe], batch: Arrays) -> dict[str, float]:
    """Seconds to open in a new process, and the first answer beside the later ones."""
    with opened() as probe:
        open_s = probe.open()
        first = probe.demand([batch])
        later = probe.demand([batch], rounds=ROUNDS)
        return {**_figures(later, [first]), "open_s": open_s}


def _figures(quiet: Reply, pressed: list[Reply]) -> dict[str, float]:
    """Median latencies (ms), the slow-down, batches a second, and the largest change of an answer (in its own unit)."""
    latencies = [value for reply in pressed for value in reply.latencies_ms]
    slowest = max(reply.elapsed_s for reply in pressed)
    moved = max(max(reply.worst, distance(quiet.answers[0], reply.answers[0])) for reply in pressed)
    finite = [part[np.isfinite(part)] for part in quiet.answers[0]]
    span = max((float(np.ptp(part)) for part in finite if part.size), default=0.0) or 1.0
    moved = math.inf if math.isnan(moved) else moved
    before, after = float(np.median(quiet.latencies_ms)), float(np.median(latencies))
    return {
        "quiet_ms": before, "pressed_ms": after, "slowdown": after / before if before else 0.0,
        "batches_per_s": len(latencies) / slowest if slowest else 0.0, "deviation": moved / span,
    }  # fmt: skip


def measured(load: Load, opened: Callable[[], Probe], batch: Arrays) -> dict[str, float] | str:
    """The figures of one subject; words where it failed."""
    try:
        with measuring_lock():
            return load.measure(opened, batch)
    except MeasureError as error:
        return str(error)


def judged(load: Load, original: Mapping[str, Any] | str, candidate: Mapping[str, Any] | str) -> Pressed:
    """``breaks`` where the candidate fails or its answers move, and those of the original do not."""
    spoilt = [isinstance(one, str) or one["deviation"] > TOLERANCE for one in (original, candidate)]
    verdict: Literal["holds", "breaks"] = "breaks" if spoilt[1] and not spoilt[0] else "holds"
    text = f"{load.about}: the candidate {_words(candidate)}; the original {_words(original)}"
    figures = [None if isinstance(one, str) else one for one in (original, candidate)]
    return Pressed(load, figures[0], figures[1], verdict, text)


def _words(figures: Mapping[str, Any] | str) -> str:
    if isinstance(figures, str):
        return f"fails ({figures[:160]})"
    quiet, under = (f"{figures[name]:.3g} ms" for name in ("quiet_ms", "pressed_ms"))
    told = f"{quiet} → {under}"
    if "open_s" in figures:
        told = f"opens in {figures['open_s']:.2g} s, first {under}, later {quiet}"
    moved = figures["deviation"] > TOLERANCE
    return told + (f", and its answers move by {figures['deviation']:.2g} of their range" if moved else "")
