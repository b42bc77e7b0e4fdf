"""Counters are read, wrap around, and are left alone where they cannot be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check.feed import Feed
from paretune.check.meter import Meters, packages
from paretune.check.process import Child

RANGE_UJ = 262_143_328_850
"""The range that an Intel server states."""
MODULE = """
read = [0]
def nvmlInit(): pass
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetTotalEnergyConsumption(handle):
    read[0] += 1500
    return read[0]
"""


def zone(root: Path, place: str, name: str, energy_uj: int | None, range_uj: int = RANGE_UJ) -> Path:
    made = root / place
    made.mkdir(parents=True, exist_ok=True)
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{range_uj}\n")
    if energy_uj is not None:
        (made / "energy_uj").write_text(f"{energy_uj}\n")
    return made


def test_whole_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", RANGE_UJ - 1_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    meters = Meters(powercap=tmp_path)
    begun = meters.read()
    for place, name, now_uj in (("0", "package-0", 8_000_000), ("1", "package-1", 500_000), ("2", "psys", 10**12)):
        zone(tmp_path, f"intel-rapl:{place}", name, now_uj)
    assert meters.since(begun).package_j == pytest.approx(3.0 + 1.5), "the second one began again at zero"


@given(st.integers(0, RANGE_UJ - 1), st.integers(0, RANGE_UJ - 1))
def test_a_counter_that_begins_again_loses_nothing(before_uj: int, used_uj: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        zone(root, "intel-rapl:0", "package-0", before_uj)
        meters = Meters(powercap=root)
        begun = meters.read()
        zone(root, "intel-rapl:0", "package-0", (before_uj + used_uj) % RANGE_UJ)
        assert meters.since(begun).package_j == pytest.approx(used_uj / 1e6, abs=1e-6)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert packages(tmp_path / "none") == ()
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    assert len(packages(tmp_path)) == 1
    zone(tmp_path, "intel-rapl:1", "package-1", None)
    assert packages(tmp_path) == (), "half a machine is no figure"
    meters = Meters(powercap=tmp_path)
    spent = meters.since(meters.read())
    assert (spent.package_j, spent.gpu_j) == (None, 0.0)


def test_cpu_time_is_that_of_this_process() -> None:
    meters = Meters(powercap=Path("none"))
    begun = meters.read()
    time.sleep(0.2)
    idle = meters.since(begun).cpu_s
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert idle < 0.1
    assert meters.since(begun).cpu_s >= 0.1


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed.write([(np.ones((3, 4), np.float32),)], tmp_path / "feed")


@pytest.mark.parametrize("callers", [1, 2])
def test_a_child_tells_what_a_block_took(
    callers: int, model: Artifact, rogue: Callable[..., Target], feed: Feed
) -> None:
    with Child(model, rogue("spin", pause_ms=2.0, callers=callers), 1, 3) as child:
        block = child.time(feed, 0.0, 10, warm_s=0.1)
    assert 0.02 <= block["spent"]["cpu_s"] < 0.1, "ten times two milliseconds, and not the warming up"
    assert block["spent"]["gpu_j"] == 0.0
    assert (block["spent"]["preempted"] is None) == (sys.platform == "win32"), "counted wherever the system counts it"


def test_gpus_are_counted_where_a_runner_names_them(
    model: Artifact, rogue: Callable[..., Target], rogues: Path, feed: Feed
) -> None:
    """There may be no GPU here: a module with NVML's names stands in for its library."""
    (rogues / "pynvml.py").write_text(MODULE)
    try:
        with Child(model, rogue("gpu"), 1, 3) as child:
            assert child.time(feed, 0.0, 3, warm_s=0.0)["spent"]["gpu_j"] == 1.5
        (rogues / "pynvml.py").write_text("def nvmlInit(): raise RuntimeError('no driver')")
        with Child(model, rogue("gpu"), 1, 3) as child:
            assert child.time(feed, 0.0, 3, warm_s=0.0)["spent"]["gpu_j"] is None
    finally:
        (rogues / "pynvml.py").unlink()
