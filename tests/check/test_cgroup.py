"""Limits of control groups, of both versions, in trees like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.check import cgroup


def tree(root: Path, files: dict[str, str], told: str) -> tuple[Path, Path]:
    for name, text in files.items():
        path = root / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    proc = root / "cgroup"
    proc.write_text(told)
    return proc, root / "mount"


def test_the_tightest_limit_of_the_group_and_its_ancestors_counts(tmp_path: Path) -> None:
    files = {
        "cgroup.procs": "", "a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n", "a/memory.max": "max\n",
        "a/b/memory.max": "536870912\n", "a/cpu.stat": "usage_usec 5\nnr_throttled 3\n",
        "a/b/cpu.stat": "nr_throttled 4\n",
    }  # fmt: skip
    at = tree(tmp_path, files, "0::/a/b\n")
    assert cgroup.limits(*at) == {"cpus": 1.5, "memory_bytes": 512 << 20}
    assert cgroup.throttled(*at) == 7


def test_version_one_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cgroup.procs": "", "cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "unified/cgroup.procs": "",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n", "cpu,cpuacct/a/cpu.stat": "nr_periods 9\nnr_throttled 2\n",
        "memory/cgroup.procs": "", "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/x/memory.limit_in_bytes": "1000000\n",
    }  # fmt: skip
    at = tree(tmp_path, files, "4:memory:/x\n3:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n")
    assert cgroup.limits(*at) == {"cpus": 0.5, "memory_bytes": 1_000_000}
    assert cgroup.throttled(*at) == 2


@pytest.mark.parametrize("quota", ["max 100000", "-1 100000", "", "x y", "100000 0"])
def test_no_limit_and_nonsense_are_none(quota: str, tmp_path: Path) -> None:
    at = tree(tmp_path, {"cgroup.procs": "", "cpu.max": quota, "memory.max": "max"}, "0::/\n")
    assert cgroup.limits(*at) == {"cpus": None, "memory_bytes": None}
    assert cgroup.throttled(*at) is None
    assert cgroup.limits(tmp_path / "none", tmp_path) == {"cpus": None, "memory_bytes": None}


def test_a_group_outside_of_what_is_mounted_ends_at_the_root(tmp_path: Path) -> None:
    at = tree(tmp_path, {"cgroup.procs": "", "cpu.max": "200000 100000"}, "0::/seen/by/the/host/alone\n")
    assert cgroup.limits(*at)["cpus"] == 2.0


def test_this_machine_can_be_asked() -> None:
    found = cgroup.limits()
    assert found.keys() == {"cpus", "memory_bytes"}
    assert all(value is None or value > 0 for value in found.values())
