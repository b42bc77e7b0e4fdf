"""The child itself: what it is told, what it may use, and with whom it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check.child import memory
from paretune.check.feed import Feed
from paretune.check.machine import available_cpus
from paretune.check.process import Child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="affinity and parent-death signals are Linux's")
Rogue = Callable[..., Target]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    rng = np.random.default_rng(0)
    return Feed.write(((rng.normal(size=(rows, 4)).astype(np.float32),) for rows in (3, 3, 1)), tmp_path / "feed")


def test_answers_are_those_of_the_runtime_and_ragged_batches_run(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    with Child(model, rogue(factor=2.0), 1, 3) as child:
        outputs = child.infer(feed, tmp_path / "out", 60)
    for (answer,), (x,) in zip(outputs, feed.read(), strict=True):
        assert np.array_equal(answer, 2 * x[:, :3])


def test_threads_bind_the_child_and_its_environment(model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path) -> None:
    with Child(model, rogue("environment"), 1, 3) as child:
        assert psutil.Process(child.pid).cpu_affinity() == available_cpus()[:1]
        cpus, threads, threshold = child.infer(feed, tmp_path / "out", 60)[0][0][0]
    assert (cpus, threads) == (1, 1)
    assert threshold == 32 << 20


def test_what_a_runtime_prints_does_not_mix_with_the_answers(model: Artifact, rogue: Rogue, feed: Feed) -> None:
    with Child(model, rogue("say", pause_ms=1.0), 1, 3) as child:
        found = child.time(feed, 0.01, 4, warm_s=0.0)
    assert len(found["latencies_ms"]) >= 4
    assert min(found["latencies_ms"]) >= 1, "the line that it printed says 0"


def test_latencies_are_those_of_single_inferences(model: Artifact, rogue: Rogue, feed: Feed) -> None:
    with Child(model, rogue(pause_ms=4.0), 1, 3) as child:
        found = child.time(feed, 0.0, 6, warm_s=0.0)
    assert len(found["latencies_ms"]) == 6
    assert min(found["latencies_ms"]) >= 4
    assert found["elapsed_s"] * 1e3 >= sum(found["latencies_ms"])


def test_a_runner_that_wants_callers_gets_them(model: Artifact, rogue: Rogue, feed: Feed) -> None:
    with Child(model, rogue(pause_ms=20.0, callers=4), 1, 3) as child:
        assert child.callers == 4
        found = child.time(feed, 0.0, 8, warm_s=0.0)
    assert len(found["latencies_ms"]) == 8
    assert found["elapsed_s"] * 1e3 < 0.7 * sum(found["latencies_ms"]), "they wait side by side"


def test_inputs_are_the_childs_own(model: Artifact, rogue: Rogue, feed: Feed) -> None:
    before = (feed.root / "inputs.bin").read_bytes()
    with Child(model, rogue("own_inputs"), 1, 3) as child:
        child.time(feed, 0.0, 3, warm_s=0.0)
    assert (feed.root / "inputs.bin").read_bytes() == before


def test_memory_is_the_childs_own_and_its_peak(model: Artifact, rogue: Rogue, feed: Feed) -> None:
    ballast = np.ones(300_000_000 // 8)  # what the parent holds is not the child's
    found: dict[str, dict[str, Any]] = {}
    for mode in ("fine", "allocate"):
        with Child(model, rogue(mode), 1, 3) as child:
            child.time(feed, 0.0, 2, warm_s=0.0)
            found[mode] = {**child.memory(), "import": child.import_bytes}
    fine, big = found["fine"], found["allocate"]
    assert ballast.nbytes > fine["peak_bytes"] >= fine["import"] > 5e6
    assert fine["peak_bytes"] >= fine["rss_bytes"]
    assert fine["rss_bytes"] >= fine["anon_bytes"] > 0
    assert fine["file_bytes"] > 0
    assert 190e6 < big["peak_bytes"] - fine["peak_bytes"] < 260e6
    assert 190e6 < big["anon_bytes"] - fine["anon_bytes"] < 260e6


def test_memory_of_this_process_is_plausible() -> None:
    found = memory()
    assert found["peak_bytes"]
    assert found["rss_bytes"]
    assert 0.5 < found["rss_bytes"] / psutil.Process().memory_info().rss < 2
    assert found["peak_bytes"] >= found["rss_bytes"]


PARENT = """
import json, sys, time
from pathlib import Path
from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.check.process import Child

child = Child(Artifact.open(Path(sys.argv[1])), plugin.load("targets", "rogue")(), 1, 3)
print(json.dumps(child.pid), flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_its_killed_parent_even_while_it_is_stopped(model: Artifact, rogues: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(rogues), *filter(None, sys.path)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model.root)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert parent.stdout is not None
        child = psutil.Process(json.loads(parent.stdout.readline()))
        assert ended_or(child, psutil.STATUS_STOPPED)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert ended_or(child, psutil.STATUS_ZOMBIE), "nobody may be there to bury it, but it must not run"
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def ended_or(process: psutil.Process, status: str) -> bool:
    """Whether it ends or comes to a status; given a while."""
    for _ in range(200):
        try:
            if process.status() == status:
                return True
        except psutil.NoSuchProcess:
            return status == psutil.STATUS_ZOMBIE
        time.sleep(0.05)
    return False
