"""Disturbance: what else went on while latencies were taken, and when it makes them those of a busy machine."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from paretune.check import cgroup
from paretune.check.machine import available_cpus
from paretune.check.meter import Spent

STEAL = 0.02
OTHERS = 0.1
WAITING = 0.1
PREEMPTED_PER_S = 100.0
"""From these on a person is warned: shares of the time of the CPUs that may be used, and times in a second of CPU. A
Linux scheduler's slice is a few milliseconds: two processes that share a CPU change places hundreds of times a
second, and a process that has one to itself is put off it a few times."""
_STAT = Path("/proc/stat")
_THERMAL = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Disturbance:
    """What was seen from before the first block to after the last. None: it cannot be read here.

    ``load_before`` and ``load_after`` are the load averages of the last minute. ``steal`` (taken by other guests of
    the same host), ``waiting`` (idle, waiting for disks) and ``others`` (used by other processes) are shares of the
    time of the CPUs that may be used. ``throttled`` and ``overheated`` count how often the control group's quota and
    the heat of the CPU held it back; ``preempted_per_s`` how often, in a second of its CPU time, the measured process
    had to leave a CPU.
    """

    seconds: float
    load_before: float | None = None
    load_after: float | None = None
    steal: float | None = None
    waiting: float | None = None
    others: float | None = None
    throttled: int | None = None
    overheated: int | None = None
    preempted_per_s: float | None = None

    def describe(self) -> dict[str, Any]:
        told = dataclasses.asdict(self).items()
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in told}
        return {**rounded, "text": self.text, "warnings": list(self.warnings)}

    @property
    def text(self) -> str:
        """One line for people."""
        parts = []
        if self.load_before is not None and self.load_after is not None:
            parts.append(f"load {self.load_before:.1f} → {self.load_after:.1f}")
        shares = (("steal", self.steal), ("waiting for disks", self.waiting), ("other processes", self.others))
        parts += [f"{name} {100 * share:.1f} %" for name, share in shares if share is not None]
        if self.preempted_per_s is not None:
            parts.append(f"put off a CPU {self.preempted_per_s:.0f} times a second")
        counts = (("throttled", self.throttled), ("overheated", self.overheated))
        parts += [f"{name} {count} times" for name, count in counts if count]
        return ", ".join(parts) or "nothing can be read here"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the figures those of a busy machine."""
        shares = (
            ("steal", self.steal, STEAL),
            ("other processes", self.others, OTHERS),
            ("waiting for disks", self.waiting, WAITING),
        )
        causes = [f"{name} {100 * share:.0f} %" for name, share, much in shares if share is not None and share >= much]
        if self.preempted_per_s is not None and self.preempted_per_s >= PREEMPTED_PER_S:
            causes.append(f"put off a CPU {self.preempted_per_s:.0f} times a second")
        if self.overheated:
            causes.append(f"slowed by heat {self.overheated} times")
        found = [f"{', '.join(causes)} while timing: figures are those of a busy machine"] if causes else []
        if self.throttled:
            found.append(
                f"the control group's CPU quota was used up {self.throttled} times while timing: "
                "figures are those of the quota"
            )
        return tuple(found)


@dataclass(frozen=True)
class Snapshot:
    """The counters of one moment; ``own_s`` is the CPU time of this process and of the measured ones."""

    at_s: float
    load: float | None
    jiffies: tuple[int, ...] | None
    own_s: float
    throttled: int | None
    overheated: int | None

    @classmethod
    def now(cls, pids: Sequence[int]) -> Snapshot:
        """``pids``: the processes that are measured, and so do not count as others."""
        return cls(
            time.perf_counter(), _load(), _jiffies(_STAT), _own_s(pids), cgroup.throttled(), _overheated(_THERMAL)
        )

    def until(self, later: Snapshot) -> Disturbance:
        """What happened between this moment and a later one."""
        steal, waiting, others = _shares(self, later)
        return Disturbance(
            seconds=later.at_s - self.at_s,
            load_before=self.load,
            load_after=later.load,
            steal=steal,
            waiting=waiting,
            others=others,
            throttled=_more(self.throttled, later.throttled),
            overheated=_more(self.overheated, later.overheated),
        )


def together(parts: Sequence[Disturbance], spent: Sequence[Spent] = ()) -> Disturbance | None:
    """All sessions as one: shares by their length, counts added up, the highest load; None without any."""
    if not parts:
        return None
    seconds = sum(part.seconds for part in parts)

    def share(name: str) -> float | None:
        known = [(part.seconds, getattr(part, name)) for part in parts if getattr(part, name) is not None]
        whole = sum(length for length, _ in known)
        return sum(length * value for length, value in known) / whole if whole > 0 else None

    def count(name: str) -> int | None:
        return sum(known) if (known := _known(parts, name)) else None

    def highest(name: str) -> float | None:
        return max(_known(parts, name), default=None)

    cpu_s = sum(one.cpu_s for one in spent)
    forced = [one.preempted for one in spent if one.preempted is not None]
    return Disturbance(
        seconds, highest("load_before"), highest("load_after"), share("steal"), share("waiting"), share("others"),
        count("throttled"), count("overheated"), sum(forced) / cpu_s if forced and cpu_s > 0 else None,
    )  # fmt: skip


def _known(parts: Sequence[Disturbance], name: str) -> list[Any]:
    return [value for part in parts if (value := getattr(part, name)) is not None]


def _shares(before: Snapshot, after: Snapshot) -> tuple[float | None, float | None, float | None]:
    """Steal, waiting and others, of the time of the CPUs that may be used."""
    if before.jiffies is None or after.jiffies is None:
        return None, None, None
    user, nice, system, idle, waiting, hard, soft, steal = (
        max(0, then - now) for now, then in zip(before.jiffies, after.jiffies, strict=True)
    )
    whole = user + nice + system + idle + waiting + hard + soft + steal
    if whole == 0:
        return None, None, None
    own = (after.own_s - before.own_s) * os.sysconf("SC_CLK_TCK")
    others = max(0.0, user + nice + system + hard + soft - own)
    return steal / whole, waiting / whole, others / whole


def _jiffies(path: Path) -> tuple[int, ...] | None:
    """user, nice, system, idle, iowait, irq, softirq and steal (proc(5)) of the CPUs that may be used, added up."""
    wanted = {f"cpu{number}" for number in available_cpus()}
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.startswith("cpu")]
        rows = [[int(value) for value in line[1:9]] for line in lines if line[0] in wanted]
    except (OSError, ValueError):
        return None
    rows = [row for row in rows if len(row) == 8]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else None


def _own_s(pids: Sequence[int]) -> float:
    whole = time.process_time()
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:  # it has just died, and is found out elsewhere
            continue
        whole += times.user + times.system
    return whole


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _overheated(root: Path) -> int | None:
    """How often heat slowed a core down, where the CPU's driver counts it."""
    counts = []
    for path in root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        try:
            counts.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else None


def _more(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)
