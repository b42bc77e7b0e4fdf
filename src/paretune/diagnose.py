"""What can be proven and what will be tried, before any time is spent on it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.ask import plugin, source
from paretune.ask.artifact import Artifact
from paretune.ask.budget import Budget, Limit
from paretune.ask.data import check_inputs
from paretune.ask.score import named
from paretune.ask.set_score import SetScore
from paretune.ask.workload import Partition, Workload, partition
from paretune.build.propose import light
from paretune.check import power
from paretune.check.machine import default_threads, fingerprint

FLIPS = (0.0, 0.005, power.TYPICAL_FLIPS, 0.03, 0.05, 0.1)
"""Shares of examples that only one of the two gets right. Residual networks on CIFAR-10 were measured to flip 0.5 to
1.8 % of their answers by INT8 after training, 6 to 13 % by pruning."""
DOUBTFUL = 0.5
"""A limit whose proof is less likely than this at a typical drop is warned of."""


@dataclass(frozen=True)
class Diagnosis:
    """The data and what it can prove, the model, the machine, and the roads that would be tried."""

    title: str
    data: Partition
    scores: tuple[str, ...]
    model: dict[str, Any]
    budget: Budget
    machine: dict[str, Any]
    candidates: dict[str, int]
    missing: dict[str, str]
    wholes: tuple[str, ...] = ()
    """Those of ``scores`` that only a whole set has."""

    @property
    def power(self) -> list[dict[str, Any]]:
        """For each rate of flips, what the held-out data can prove about right-or-wrong scores (all in pp)."""
        count, level = len(self.data.heldout), self.budget.confidence
        return [
            {
                "flip_rate": rate,
                "half_width_pp": power.half_width(count, rate, level),
                "provable_pp": power.provable_limit(count, rate, confidence=level),
            }
            for rate in FLIPS
        ]

    @property
    def limits(self) -> list[dict[str, Any]]:
        """For each limit on a drop in points and each rate of flips: the chance to prove it, and what it would take."""
        count, level = len(self.data.heldout), self.budget.confidence
        return [
            {
                "limit": limit.text,
                "flip_rate": rate,
                "chance": power.chance_to_prove(limit.value, count, rate, confidence=level),
                "examples_needed": power.examples_needed(limit.value, rate, confidence=level),
            }
            for limit in self.budget.limits
            if limit.unit == "pp" and any(name not in self.wholes for name in self._asked(limit))
            for rate in FLIPS
        ]

    def _asked(self, limit: Limit) -> list[str]:
        """The scores whose drop a limit speaks of."""
        return [name for name in self.scores if limit.name == "drop" and limit.score in (None, name)]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will go wrong or stay undecided, and what to do about it."""
        found = list(self.data.warnings)
        for row in self.limits:
            if row["flip_rate"] == power.TYPICAL_FLIPS and row["chance"] < DOUBTFUL:
                more = f"about {row['examples_needed']:,} would do" if row["examples_needed"] else "no number would do"
                found.append(
                    f"{row['limit']} will most likely stay undecided: {len(self.data.heldout):,} held-out examples "
                    f"prove it with a chance of {row['chance']:.0%} when {100 * power.TYPICAL_FLIPS:g} % of the "
                    f"answers flip and the true drop is {power.TYPICAL_DROP} pp; {more}"
                )
        asked = [name for limit in self.budget.limits for name in self._asked(limit)]
        whole = [name for name in self.wholes if name in asked]
        if whole:
            found.append(
                f"what this data can prove of {', '.join(whole)} is not known beforehand: such a score is of the whole "
                f"set, and its interval comes from leaving examples out of the answers themselves"
            )
        features = self.machine["features"]
        if features and not any("vnni" in name or name in ("asimddp", "i8mm", "amx_int8") for name in features):
            found.append("this CPU has no integer dot product: INT8 may well be slower than FP32 here")
        if not self.candidates:
            found.append("no installed technique leads from this model to a target that runs here")
        return tuple(found)

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "title": self.title,
            "data": {
                "heldout": len(self.data.heldout),
                "ranking": len(self.data.ranking),
                "fit": len(self.data.fit),
                "scores": list(self.scores),
            },
            "power": self.power,
            "limits": self.limits,
            "model": self.model,
            "candidates": self.candidates,
            "missing": self.missing,
            "machine": self.machine,
            "warnings": list(self.warnings),
        }


def diagnose(
    workload: Workload,
    budget: str | Budget = "",
    *,
    targets: Sequence[str] | None = None,
    heldout_limit: int | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Read the data and the model, and say what ``optimize`` would do and could prove; nothing is built or timed.

    Raises
    ------
    ParetuneError
        For all that ``optimize`` would refuse: data that does not fit, a model that cannot be read, unknown targets.
    """
    limits = budget if isinstance(budget, Budget) else Budget.parse(budget)
    data = partition(workload, seed, heldout_limit)
    scratch = Path(tempfile.mkdtemp(prefix="paretune-diagnose-"))
    try:
        into = scratch / "model"
        into.mkdir()
        original, door = source.find(workload.model, data.fit, into)
        for split in (data.ranking, data.heldout):
            check_inputs(split, original)
        model = _described(original, door.home)  # while its files are there
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    usable = plugin.usable("targets", targets)
    here = {name: kind for name, kind in usable.items() if kind.light(False)[0].unavailable() is None}
    missing = {name: str(kind.light(False)[0].unavailable()) for name, kind in usable.items() if name not in here}
    scores = named(workload.score)
    proposals = light(original.form, plugin.usable("techniques"), here, limits.asks("throughput"))
    counted = Counter(proposal.candidate.target.name for proposal in proposals)
    return Diagnosis(
        title=workload.name,
        data=data,
        scores=tuple(scores),
        model=model,
        budget=limits,
        machine=fingerprint(threads or default_threads()),
        candidates=dict(counted),
        missing=missing,
        wholes=tuple(name for name, score in scores.items() if isinstance(score, SetScore)),
    )


def _described(original: Artifact, home: str) -> dict[str, Any]:
    """The model in plain JSON."""
    return {
        "form": original.form,
        "home": home,
        "parameters": original.parameters,
        "macs": original.macs,
        "size_bytes": original.size_bytes,
        "inputs": [f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in original.inputs],
        "outputs": [f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in original.outputs],
    }
