"""The machine that numbers were taken on, and the lock that keeps two measurements apart."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from paretune.check import cgroup

_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_PASSING = ("memory_bytes", "os", "cgroup")
_LIBRARIES = (
    "paretune",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
    "scipy",
    "scikit-learn",
)


def available_cpus() -> list[int]:
    """The CPUs this process may run on (Linux); elsewhere all of them."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def spread_cpus() -> list[int]:
    """The available CPUs, one of each physical core first, then their hyper-threads (Linux)."""
    cpus = available_cpus()
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for cpu in cpus:
        try:
            core = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            core = str(cpu)
        (rest if core in seen else first).append(cpu)
        seen.add(core)
    return first + rest


def default_threads() -> int:
    """One thread for every physical core that this process may use."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, len(available_cpus())))


@functools.cache
def _cpu() -> dict[str, Any]:
    import cpuinfo  # runs a child process on some systems: only when asked

    try:
        info = cpuinfo.get_cpu_info()
    except Exception:  # a machine it does not know
        info = {}
    flags = set(info.get("flags", ()))
    return {
        "cpu": info.get("brand_raw") or platform.processor() or platform.machine(),
        "features": [flag for flag in _FEATURES if flag in flags],
    }


def fingerprint(threads: int) -> dict[str, Any]:
    """What a figure depends on, as plain JSON; ``digest`` is that of what does not change from day to day."""
    libraries = {}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            libraries[name] = version(name)
    facts = {
        **_cpu(),
        "cores": len(available_cpus()),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "governor": _governor(),
        "cgroup": cgroup.limits(),
        "libraries": libraries,
    }
    stable = {key: value for key, value in facts.items() if key not in _PASSING}
    cpus = facts["cgroup"]["cpus"]
    if cpus and cpus < facts["cores"]:  # a quota slows what the same cores do without one
        stable["cpus"] = cpus
    return {**facts, "digest": hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()}


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


@contextlib.contextmanager
def measuring_lock() -> Iterator[None]:
    """Held while latencies are taken, so that two runs on one machine do not disturb each other.

    Where ``fcntl`` does not exist (Windows) there is no lock, and two runs at once disturb each other.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(tempfile.gettempdir()) / "paretune-measuring.lock"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except PermissionError:
        # another user's: Linux refuses O_CREAT on it in a sticky directory, but reading is enough to lock it
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
