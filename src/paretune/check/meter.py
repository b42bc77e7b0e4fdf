"""Meter: what a block of inferences took, read in the process that runs it. The standard library alone."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Spent:
    """What a block took of the machine.

    ``cpu_s``: seconds of CPU time of the process, user and system, all its threads. ``package_j``: joules of all CPU
    packages meanwhile, whoever used them; None where they are not counted. ``gpu_j``: joules of the GPUs that the
    runner uses; 0 where it uses none, None where they are not counted. ``preempted``: how often the process had to
    leave a CPU that it would have kept.
    """

    cpu_s: float
    package_j: float | None = None
    gpu_j: float | None = 0.0
    preempted: int | None = None


class Reading(NamedTuple):
    """Every counter at one moment; the energies in µJ (packages) and mJ (GPUs)."""

    packages_uj: tuple[int, ...]
    gpus_mj: tuple[int, ...]
    preempted: int | None
    cpu_s: float


class Counter(NamedTuple):
    """One RAPL domain: the file that counts µJ, and where it begins again at zero."""

    path: Path
    range_uj: int


class Meters:
    """The counters of this process, of the CPU packages and of the GPUs numbered ``gpus`` (NVML's order).

    CPU packages are counted by RAPL through Linux's powercap interface (kernel documentation, *Power Capping
    Framework*), which most systems let only root read; GPUs by NVML (``nvmlDeviceGetTotalEnergyConsumption``, from
    Volta on).
    """

    def __init__(self, gpus: Sequence[int] = (), powercap: Path = POWERCAP) -> None:
        self._packages = packages(powercap)
        self._nvml, self._gpus = _nvml(gpus)
        self._blind = bool(gpus) and self._nvml is None

    def read(self) -> Reading:
        return Reading(
            tuple(int(counter.path.read_text()) for counter in self._packages),
            tuple(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) for gpu in self._gpus),
            _preempted(),
            time.process_time(),
        )

    def since(self, begun: Reading) -> Spent:
        """What was spent since a reading. A counter may have begun again once."""
        now = self.read()
        pairs = zip(self._packages, begun.packages_uj, now.packages_uj, strict=True)
        used_uj = [after - before + (counter.range_uj if after < before else 0) for counter, before, after in pairs]
        gpu_mj = sum(now.gpus_mj) - sum(begun.gpus_mj)
        forced = None if now.preempted is None or begun.preempted is None else now.preempted - begun.preempted
        return Spent(
            cpu_s=now.cpu_s - begun.cpu_s,
            package_j=sum(used_uj) / 1e6 if used_uj else None,
            gpu_j=None if self._blind else gpu_mj / 1e3,
            preempted=forced,
        )


def packages(powercap: Path = POWERCAP) -> tuple[Counter, ...]:
    """The RAPL domains of whole CPU packages; none where any of them cannot be read.

    A package's parts (cores, graphics) are domains of their own and would be counted twice; so would the same package
    seen through memory-mapped registers (``intel-rapl-mmio``).
    """
    found = []
    try:
        for zone in sorted(powercap.glob("intel-rapl:*")):
            if (zone / "name").read_text().startswith("package"):
                int((zone / "energy_uj").read_text())
                found.append(Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
    except (OSError, ValueError):
        return ()
    return tuple(found)


def _nvml(gpus: Sequence[int]) -> tuple[Any, list[Any]]:
    if not gpus:
        return None, []
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, or a GPU that does not count: whoever reads on is told by a None
        return None, []
    return nvml, handles


def _preempted() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
