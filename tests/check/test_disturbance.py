"""What else went on is told in shares of the CPUs, and warned of where it is too much."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paretune.ask.data import Split
from paretune.check import disturbance as module
from paretune.check.disturbance import Disturbance, Snapshot, together
from paretune.check.machine import available_cpus, fingerprint
from paretune.check.measurement import joined
from paretune.check.meter import Spent
from paretune.check.plan import Plan

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
QUIET = Disturbance(10.0, 0.5, 1.0, 0.0, 0.0, 0.01, 0, 0)


def snapshot(at_s: float, jiffies: tuple[int, ...] | None, own_s: float = 0.0, **facts: Any) -> Snapshot:
    return Snapshot(at_s, 1.0, jiffies, own_s, facts.get("throttled"), facts.get("overheated"))


def test_shares_are_of_the_cpus_time_and_ones_own_is_no_other_s() -> None:
    before = snapshot(0.0, (0, 0, 0, 0, 0, 0, 0, 0), throttled=5)
    # ten seconds on two CPUs: 8 used (6 of them our own), 9 idle, 1 waiting, 2 stolen
    jiffies = tuple(round(seconds * TICK) for seconds in (5, 1, 1.5, 9, 1, 0.25, 0.25, 2))
    found = before.until(snapshot(10.0, jiffies, own_s=6.0, throttled=8, overheated=2))
    assert found.seconds == 10.0
    assert (found.steal, found.waiting, found.others) == pytest.approx((0.1, 0.05, 0.1))
    assert (found.throttled, found.overheated) == (3, None)
    assert found.warnings == (
        "steal 10 %, other processes 10 % while timing: figures are those of a busy machine",
        "the control group's CPU quota was used up 3 times while timing: figures are those of the quota",
    )
    blind = snapshot(0.0, None).until(snapshot(1.0, None))
    assert (blind.steal, blind.waiting, blind.others, blind.warnings) == (None, None, None, ())
    none = before.until(snapshot(1.0, (0,) * 8))
    assert none.steal is None, "no time has passed by that clock"


def test_a_quiet_machine_is_not_warned_of() -> None:
    assert QUIET.warnings == ()
    assert QUIET.text == "load 0.5 → 1.0, steal 0.0 %, waiting for disks 0.0 %, other processes 1.0 %"
    assert Disturbance(1.0).text == "nothing can be read here"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"steal": 0.12}, "steal 12 % while timing: figures are those of a busy machine"),
        ({"others": 0.5}, "other processes 50 % while"), ({"waiting": 0.2}, "waiting for disks 20 % while"),
        ({"overheated": 4}, "slowed by heat 4 times"), ({"preempted_per_s": 400.0}, "put off a CPU 400 times a second"),
        ({"throttled": 1}, "quota was used up 1 times"),
    ],
)  # fmt: skip
def test_each_disturbance_has_its_warning(facts: dict[str, Any], says: str) -> None:
    (warning,) = replace(QUIET, **facts).warnings
    assert says in warning
    told = replace(QUIET, **facts).describe()
    assert told["warnings"] == [warning]


def test_sessions_are_one_by_their_length() -> None:
    parts = [replace(QUIET, steal=0.1), replace(QUIET, seconds=30.0, load_after=3.0, throttled=2, steal=None)]
    found = together(parts, [Spent(0.5, preempted=20), Spent(0.5, preempted=None), Spent(1.0, preempted=40)])
    assert found is not None
    assert (found.seconds, found.load_after, found.throttled, found.steal) == (40.0, 3.0, 2, 0.1)
    assert found.preempted_per_s == 30.0
    assert together([]) is None


@linux
def test_the_counters_of_this_machine_can_be_read(tmp_path: Path) -> None:
    now = Snapshot.now([os.getpid(), 2**22 + 1])
    assert now.jiffies is not None
    assert len(now.jiffies) == 8
    assert sum(now.jiffies) > 0
    assert now.load is not None
    counter = tmp_path / "cpu3" / "thermal_throttle"
    counter.mkdir(parents=True)
    assert module._overheated(tmp_path) is None
    (counter / "core_throttle_count").write_text("7\n")
    assert module._overheated(tmp_path) == 7
    assert module._jiffies(tmp_path / "none") is None
    assert "cgroup" in fingerprint(1)


HOG = "import os, time\nos.sched_setaffinity(0, {int(__import__('sys').argv[1])})\nprint(flush=True)\nwhile True: pass"


@linux
def test_processes_that_hog_the_cpus_are_found(workbench: Any, data: Split) -> None:
    """One beside the measured process on each CPU: they get half of the time or more."""
    subject = workbench.subject("spin", pause_ms=5.0)
    hogs = [subprocess.Popen([sys.executable, "-c", HOG, str(cpu)], stdout=subprocess.PIPE) for cpu in available_cpus()]
    try:
        for hog in hogs:
            assert hog.stdout is not None
            hog.stdout.readline()
        plan = Plan(rounds=3, seconds=0.3, count=3)
        found = workbench.bench.latency([subject], data, (1,), plan)[subject.id].runs[1]
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()
    told = found.disturbance
    assert told is not None
    assert told.others is not None
    assert told.others > 0.25
    assert any("other processes" in warning for warning in told.warnings)
    assert told.preempted_per_s is not None
    assert told.preempted_per_s > 10
    both = joined([found, found]).disturbance
    assert both is not None
    assert both.seconds == pytest.approx(2 * told.seconds)
    assert both.others == pytest.approx(told.others)
