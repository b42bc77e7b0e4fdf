"""A fingerprint tells machines apart, and the lock keeps two measurements apart."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from paretune.check import cgroup
from paretune.check.machine import available_cpus, default_threads, fingerprint, measuring_lock


def test_a_fingerprint_is_plain_stable_and_depends_on_the_threads() -> None:
    found = fingerprint(2)
    assert json.loads(json.dumps(found)) == found
    assert found == fingerprint(2)
    assert found["digest"] != fingerprint(1)["digest"]
    assert found["libraries"]["numpy"] == version("numpy")
    assert found["cores"] == len(available_cpus())
    assert found["memory_bytes"] > 1e8
    assert found["cpu"]


def test_a_quota_of_the_cpus_makes_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for cpus in (None, 0.5, 0.7, float(len(available_cpus()))):
        monkeypatch.setattr(cgroup, "limits", lambda cpus=cpus: {"cpus": cpus, "memory_bytes": None})
        found = fingerprint(2)
        assert found["cgroup"]["cpus"] == cpus
        digests.add(found["digest"])
    assert len(digests) == 3, "as much as there are cores is no quota"


def test_there_is_a_thread_for_every_core_that_may_be_used() -> None:
    assert 1 <= default_threads() <= len(available_cpus())


TRY = """
import sys, fcntl, os
handle = os.open(sys.argv[1], os.O_RDONLY)
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except BlockingIOError:
    print("held")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fcntl")
def test_the_lock_is_held_against_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def tried() -> str:
        (lock,) = tmp_path.iterdir()
        return subprocess.check_output([sys.executable, "-c", TRY, str(lock)], text=True).strip()

    with measuring_lock():
        assert tried() == "held"
    assert tried() == "free"
    (tmp_path / "paretune-measuring.lock").chmod(0o444)  # another user's, who lets it be read
    with measuring_lock():
        assert tried() == "held"
