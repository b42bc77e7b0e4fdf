"""The same numbers again, here and now: a bundle or a model file, with or without data."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.ask.budget import Budget
from paretune.ask.event import Observer
from paretune.ask.rates import Rates
from paretune.ask.workload import Workload
from paretune.check.growth import INFERENCES, SOAK_S, Growth
from paretune.check.machine import default_threads, fingerprint
from paretune.check.measurement import Measurement
from paretune.check.plan import CONFIRM
from paretune.check.verdict import judge
from paretune.deliver.trial import spending, timing
from paretune.subject import answer_rows, batch_sizes, bench_of, heldout_of, sample_of, subject_of


@dataclass(frozen=True)
class Measured:
    """What was measured, on which machine, at which rates; a warning where a bundle's evidence was made elsewhere."""

    title: str
    measurement: Measurement
    target: str
    machine: dict[str, Any]
    warnings: tuple[str, ...]
    rates: Rates = field(default_factory=Rates)
    growth: Growth | None = None

    def describe(self, confidence: float = 0.95) -> dict[str, Any]:
        """Plain JSON: latency percentiles, throughput, memory, size, and scores where there was data."""
        budget = Budget(confidence=confidence, rates=self.rates)
        judged = judge(self.measurement, self.measurement, budget, self._data)
        runs = self.measurement.runs
        return {
            "title": self.title,
            "target": self.target,
            "size_bytes": self.measurement.size_bytes,
            "parameters": self.measurement.parameters,
            "macs": self.measurement.macs,
            "runs": [
                {"batch": batch, **timing(run, confidence), **spending(judged, batch)} for batch, run in runs.items()
            ],
            "rates": self.rates.describe(),
            "memory_growth": self.growth.describe() if self.growth else None,
            "scores": {name: value.describe() for name, value in judged.scores.items()},
            "machine": self.machine,
            "warnings": list(self.warnings),
        }

    @property
    def _data(self) -> str | None:
        return next(iter(self.measurement.answers), None)


def measure(
    what: str | Path,
    workload: Workload | None = None,
    *,
    target: str | None = None,
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    soak: bool = False,
    prices: str | Path | None = None,
    watts_per_core: float | None = None,
    seed: int = 0,
    observers: Sequence[Observer] = (),
) -> Measured:
    """Measure a bundle or a model file on this machine.

    Parameters
    ----------
    what
        A bundle's directory, an ``.onnx`` or a ``.pt2`` file.
    workload
        Whose held-out data and scores to use; None: latency, memory and size on seeded random inputs.
    target
        Overrules the bundle's target, or the home of the model's source.
    soak
        Also watch whether memory grows over 10,000 inferences, or as many as fit in a minute.
    prices, watts_per_core
        As for :func:`paretune.optimize`.

    Raises
    ------
    ParetuneError
        If it cannot be opened, or its runtime fails.
    """
    sizes = batch_sizes(batch)
    rates = Rates.of(prices, watts_per_core)
    machine = fingerprint(threads or default_threads())
    heldout = heldout_of(workload)
    scratch = Path(tempfile.mkdtemp(prefix="paretune-measure-"))
    try:
        subject, title, native, warnings = subject_of(Path(what), target, heldout, scratch, machine)
        bench = bench_of(workload, native, machine, seed, observers, scratch)
        try:
            sample = sample_of(heldout, subject.artifact, max(sizes), seed)
            measured = bench.latency([subject], sample, sizes, CONFIRM)[subject.id]
            if heldout is not None:
                answers = bench.answer(subject, heldout, "heldout", answer_rows(subject.artifact, sizes))
                measured = dataclasses.replace(measured, answers={"heldout": answers})
            growth = bench.soak(subject, sample, max(sizes), INFERENCES, SOAK_S) if soak else None
        finally:
            bench.close()
        return Measured(title, measured, subject.target.name, machine, warnings, rates, growth)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
