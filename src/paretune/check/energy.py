"""Energy: joules of one call, measured where a counter can be read, else estimated from CPU time, else unavailable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paretune.ask.rates import Rates
from paretune.check.measurement import Blocks
from paretune.check.meter import Spent
from paretune.check.statistics import CLUSTERS, Estimate, ratio

Array = np.ndarray[Any, Any]
Kind = Literal["measured", "estimated", "unavailable"]


@dataclass(frozen=True)
class Energy:
    """Joules of one call, which is a whole batch; ``how`` says in words where the figure comes from."""

    kind: Kind
    joules: Estimate | None
    how: str

    def describe(self) -> dict[str, Any]:
        ends = self.joules.describe() if self.joules else {"value": None, "low": None, "high": None}
        return {**ends, "kind": self.kind, "how": self.how}


def energy(blocks: Blocks, spent: Sequence[Spent], sessions: int, rates: Rates, level: float = 0.95) -> Energy:
    """The energy of one call from what each block took.

    Measured: all CPU packages (idle power and other processes included, as nobody can tell them apart) and the GPUs
    that the runner uses. Estimated: CPU time of the process times the watts of a core. The interval is Student's over
    sessions, or over blocks where there are fewer than three sessions.
    """
    kind, how = _kind(blocks, spent, rates)
    if kind == "unavailable":
        return Energy(kind, None, how)
    joules = _joules(spent, kind, rates)
    value = sum(joules) / sum(map(len, blocks))
    found = ratio(np.log(_per_call(blocks, joules, sessions)), level)
    return Energy(kind, Estimate(*(value * end / found.value for end in (found.value, found.low, found.high))), how)


def log_saving(
    ours: tuple[Blocks, Sequence[Spent]], theirs: tuple[Blocks, Sequence[Spent]], sessions: int, rates: Rates
) -> Array | None:
    """Logarithms of the first's joules over the second's, one for each session (or block); None without figures.

    Both are taken in the same way: estimated when either has to be.
    """
    kinds = {_kind(blocks, spent, rates)[0] for blocks, spent in (ours, theirs)}
    if "unavailable" in kinds:
        return None
    kind: Kind = "estimated" if "estimated" in kinds else "measured"
    first, second = (_per_call(blocks, _joules(spent, kind, rates), sessions) for blocks, spent in (ours, theirs))
    units = min(len(first), len(second))
    return np.asarray(np.log(first[:units] / second[:units]))


def _kind(blocks: Blocks, spent: Sequence[Spent], rates: Rates) -> tuple[Kind, str]:
    if not blocks or len(spent) != len(blocks):
        return "unavailable", "nothing was recorded that tells it"
    if any(one.gpu_j is None for one in spent):
        return "unavailable", "the GPU's energy cannot be read: install nvidia-ml-py, on a GPU from Volta on"
    on_gpu = any(one.gpu_j for one in spent)
    # some virtual machines show a counter that never moves
    if all(one.package_j is not None for one in spent) and any(one.package_j for one in spent):
        return "measured", "CPU packages by RAPL" + (" and GPU by NVML" if on_gpu else "")
    if sum(one.cpu_s for one in spent) <= 0:
        return "unavailable", "neither a counter nor CPU time tells it"
    gpu = "the GPU by NVML, the rest " if on_gpu else ""
    return "estimated", f"{gpu}estimated from CPU time at {rates.watts_per_core:g} W a core, not measured"


def _joules(spent: Sequence[Spent], kind: Kind, rates: Rates) -> list[float]:
    if kind == "measured":
        return [(one.package_j or 0.0) + (one.gpu_j or 0.0) for one in spent]
    return [one.cpu_s * rates.watts_per_core + (one.gpu_j or 0.0) for one in spent]


def _per_call(blocks: Blocks, joules: Sequence[float], sessions: int) -> Array:
    """Joules of one call in each session, or each block where there are fewer than three sessions."""
    count = sessions if sessions >= CLUSTERS else len(blocks)
    calls = np.array([len(block) for block in blocks])
    parts = np.array_split(np.arange(len(blocks)), count)
    found = np.array([np.sum(np.asarray(joules)[part]) / np.sum(calls[part]) for part in parts if len(part)])
    # a block so short that a counter did not move: it counts in the value, and must not be minus infinity here
    return np.asarray(np.maximum(found, 1e-12))
