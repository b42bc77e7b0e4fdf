"""Control groups: what the container (or service) that this process runs in may use, and whether it was held back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROC = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Version 1 writes the largest multiple of a page where there is no limit on memory."""


def limits(proc: Path = PROC, mount: Path = MOUNT) -> dict[str, Any]:
    """``cpus`` (how many at once, a float) and ``memory_bytes``; None where there is no limit or none can be read.

    The tightest of the group's own and its ancestors'. Linux: kernel documentation, *Control Group v2* (``cpu.max``,
    ``memory.max``), and version 1 (``cpu.cfs_quota_us``, ``memory.limit_in_bytes``).
    """
    cpus = [_cpus(group) for group in _groups("cpu", proc, mount)]
    memory = [_memory(group) for group in _groups("memory", proc, mount)]
    return {"cpus": min(filter(None, cpus), default=None), "memory_bytes": min(filter(None, memory), default=None)}


def throttled(proc: Path = PROC, mount: Path = MOUNT) -> int | None:
    """How often the group or an ancestor had used up its CPU quota and had to wait (``nr_throttled``)."""
    counts = []
    for group in _groups("cpu", proc, mount):
        for line in _text(group / "cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdigit():
                counts.append(int(value))
    return sum(counts) if counts else None


def _groups(controller: str, proc: Path, mount: Path) -> Iterator[Path]:
    """This process's group and its ancestors, as far as they are to be seen from here."""
    for line in _text(proc).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        root = next((root for root in roots if (root / "cgroup.procs").exists()), None)
        if root is None:
            continue
        place = root / path.lstrip("/")
        yield from (one for one in (place, *place.parents) if one == root or root in one.parents)


def _cpus(group: Path) -> float | None:
    both = _text(group / "cpu.max").split() or [
        _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip(),
    ]  # fmt: skip
    if len(both) < 2 or not (both[0].isdigit() and both[1].isdigit()) or int(both[1]) == 0:
        return None  # "max", or -1
    return int(both[0]) / int(both[1])


def _memory(group: Path) -> int | None:
    text = (_text(group / "memory.max") or _text(group / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
