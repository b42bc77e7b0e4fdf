"""Trial: what a run knows of one candidate, from the proposal to the verdict, and how ``result.json`` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.budget import LATENCIES
from paretune.build.candidate import Candidate
from paretune.build.history import Entry
from paretune.check.growth import Growth
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.slices import SliceReport
from paretune.check.verdict import Verdict


@dataclass(eq=False)
class Trial:
    """One candidate of a run.

    ``ranked`` is its verdict on the ranking data; ``confirmed`` that on held-out data or, for a finalist that failed a
    limit other than the drop when it was measured anew, that one (held-out data was then never opened for it).
    """

    candidate: Candidate
    role: Literal["baseline", "reference", "candidate"] = "candidate"
    status: Literal["built", "failed", "skipped"] = "skipped"
    artifact: Artifact | None = None
    measurement: Measurement | None = None
    ranked: Verdict | None = None
    confirmed: Verdict | None = None
    error: str | None = None
    why: str | None = None
    growth: Growth | None = None
    seconds_to_build: float = 0.0
    in_front: bool = False
    histogram: Mapping[int, Mapping[str, list[float]]] = field(default_factory=dict)
    slices: Mapping[str, SliceReport] = field(default_factory=dict)
    tried: tuple[Entry, ...] = ()  # the table of what was tried for a latency to reach

    @property
    def id(self) -> str:
        return self.candidate.id

    @property
    def verdict(self) -> Verdict | None:
        """What is said of it: the confirmed verdict where there is one."""
        return self.confirmed or self.ranked

    def describe(self, level: float, base: Path) -> dict[str, Any]:
        """The candidate's entry in ``result.json``; paths are relative to ``base`` where they lie below it."""
        verdict, artifact = self.verdict, self.artifact
        told = self.candidate.describe()
        return {
            "id": self.id,
            "title": self.candidate.title,
            "role": self.role,
            "recipe": told["recipe"],
            "reach": self.candidate.reach or None,
            "target": self.candidate.target.name,
            "settings": told["target"]["options"],
            "status": self.status,
            "error": self.error,
            "why": self.why,
            "form": artifact.form if artifact else None,
            "precision": artifact.precision if artifact else None,
            "data": verdict.data if verdict else None,
            "confirmed": self.confirmed is not None and self.confirmed.data == "heldout",
            "in_front": self.in_front,
            "objective": verdict.merit.describe() if verdict else None,
            "scores": {name: value.describe() for name, value in verdict.scores.items()} if verdict else {},
            "drops": _drops(verdict),
            "agreement": verdict.agreement.describe() if verdict and verdict.agreement else None,
            "slices": {
                name: {"verdict": report.verdict, "slices": [one.describe() for one in report.slices]}
                for name, report in self.slices.items()
            },
            "runs": self._runs(level, base),
            "size_bytes": artifact.size_bytes if artifact else None,
            "parameters": artifact.parameters if artifact else None,
            "macs": artifact.macs if artifact else None,
            "history": [*self.tried, *(artifact.history if artifact else ())],
            "notes": list(artifact.notes) if artifact else [],
            "memory_growth": self.growth.describe() if self.growth else None,
            "seconds_to_build": round(self.seconds_to_build, 3),
            "verdict": self.confirmed.verdict if self.confirmed else self._untested(),
            "findings": [finding.describe() for finding in verdict.findings] if verdict else [],
        }

    def _untested(self) -> str:
        return "breaks" if self.ranked is not None and self.ranked.verdict == "breaks" else "not tested"

    def _runs(self, level: float, base: Path) -> list[dict[str, Any]]:
        verdict = self.verdict
        measurement = verdict.measurement if verdict else self.measurement
        if measurement is None or self.artifact is None:
            return []
        root = self.artifact.root.resolve()
        path = root.relative_to(base.resolve()) if base.resolve() in root.parents else root
        return [
            {
                "batch": batch,
                **timing(run, level),
                **(spending(verdict, batch) if verdict else {}),
                "speedup": verdict.speedups[batch].describe() if verdict else None,
                "speedup_over_reference": verdict.reference_speedups[batch].describe()
                if verdict and batch in verdict.reference_speedups
                else None,
                "artifact": path.as_posix(),
                "histogram": dict(self.histogram[batch]) if batch in self.histogram else None,
            }
            for batch, run in measurement.runs.items()
        ]


def timing(run: BatchRun, level: float) -> dict[str, Any]:
    """Latency, throughput and memory at one batch size, as ``result.json`` says them."""
    found = {name: run.percentile(name, level) for name in LATENCIES}
    return {
        "latency_ms": {name: value.describe() if value else None for name, value in found.items()},
        "throughput_per_s": run.rows_per_s,
        "peak_memory_bytes": run.peak_bytes,
        "import_memory_bytes": run.import_bytes,
        "anon_bytes": run.anon_bytes,
        "file_bytes": run.file_bytes,
        "samples": run.samples,
        "sessions": run.sessions,
        "callers": run.callers,
        "settled": run.settled,
        "disturbance": run.disturbance.describe() if run.disturbance else None,
    }


def spending(verdict: Verdict, batch: int) -> dict[str, Any]:
    """Energy and, where there are prices, cost at one batch size, as ``result.json`` says them."""
    joules = verdict.energy[batch].describe()
    priced = {"cost": verdict.cost[batch].describe()} if batch in verdict.cost else {}
    each = None if joules["value"] is None else joules["value"] / batch
    return {"energy_j": {**joules, "per_example": each}, **priced}


def quantile_points(run: BatchRun, most: int = 200) -> list[float]:
    """At most ``most`` evenly spaced quantiles of a run's latencies (ms), for a plot."""
    samples = np.sort(np.concatenate([np.asarray(block) for block in run.blocks]))
    if len(samples) > most:
        samples = np.quantile(samples, (np.arange(most) + 0.5) / most)
    return [round(float(value), 5) for value in samples]


def _drops(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    return {name: {**value.describe(), "unit": verdict.units[name]} for name, value in verdict.drops.items()}
