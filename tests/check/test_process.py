"""A child that fails in any way is a finding in one line, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check import process
from paretune.check.feed import Feed
from paretune.check.process import Child
from paretune.errors import MeasureError

Rogue = Callable[..., Target]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed.write([(np.ones((3, 4), np.float32),)], tmp_path / "feed")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "private"
    made.mkdir()
    return made


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("segfault", "was killed by SIGSEGV during 'infer'"),
        ("exit", "ended with 7 during 'infer'"),
        ("hang", "hangs: no answer to 'infer' within 1 s"),
    ],
)
def test_who_dies_or_hangs_is_buried(
    mode: str, says: str, model: Artifact, rogue: Rogue, feed: Feed, place: Path, tmp_path: Path
) -> None:
    before = children()
    child = Child(model, rogue(mode), 1, 3, place)
    with pytest.raises(MeasureError) as caught:
        child.infer(feed, tmp_path / "out", 1.0)
    assert_told(caught.value, says)
    assert not child.alive
    assert children() == before, "nothing runs on, and no zombie is left"
    assert not any(place.iterdir())
    with pytest.raises(MeasureError):
        child.memory()
    child.close()


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("raise", "infer failed: ValueError: no kernel for this"),
        ("list", "infer failed: TypeError: infer did not return a tuple of arrays"),
        ("shape", "infer failed: ValueError: answers of shape [(2, 3)] to a batch of 3 examples"),
        ("scalar", "infer failed: ValueError: answers of shape [()] to a batch of 3 examples"),
        ("text", "infer failed: TypeError: answers of dtype str"),
        ("object", "infer failed: TypeError: answers of dtype object are no numbers"),
    ],
)
def test_wrong_answers_are_told_and_the_child_can_still_be_asked(
    mode: str, says: str, model: Artifact, rogue: Rogue, feed: Feed, place: Path, tmp_path: Path
) -> None:
    with Child(model, rogue(mode), 1, 3, place) as child:
        with pytest.raises(MeasureError) as caught:
            child.infer(feed, tmp_path / "out", 60)
        assert_told(caught.value, says)
        assert child.memory()["peak_bytes"]
    assert not any(place.iterdir())


def test_what_cannot_be_opened_leaves_nothing(
    model: Artifact, rogue: Rogue, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    with pytest.raises(MeasureError) as caught:
        Child(model, rogue("no_open"), 1, 3, place)
    assert_told(caught.value, "open failed: RuntimeError: cannot be opened")
    monkeypatch.setattr(process, "OPEN_TIMEOUT_S", 2.0)
    with pytest.raises(MeasureError) as caught:
        Child(model, rogue("hang_open"), 1, 3, place)
    assert_told(caught.value, "hangs: no answer to 'open' within 2 s")
    assert children() == before
    assert not any(place.iterdir())


def test_half_an_answer_is_a_death(model: Artifact, rogue: Rogue, place: Path) -> None:
    with Child(model, rogue(), 1, 3, place) as child:
        os.kill(child.pid, signal.SIGKILL)
        child._process.wait()
        while child._answers.qsize():
            child._answers.get()
        child._answers.put('{"ok": true, "latencies_ms": [0.1, 0.')
        assert child._process.stdin is not None
        child._process.stdin.close()
        with Path(os.devnull).open("w") as child._process.stdin, pytest.raises(MeasureError, match="killed by SIGKILL"):
            child.memory()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
def test_the_idle_child_is_stopped_and_wakes_when_asked(model: Artifact, rogue: Rogue) -> None:
    with Child(model, rogue(), 1, 3) as child:
        for _ in range(2):
            assert status(child, psutil.STATUS_STOPPED)
            assert child.memory()["rss_bytes"]
        assert status(child, psutil.STATUS_STOPPED)
        assert child.alive, "a stopped child is no dead one"


def status(child: Child, wanted: str) -> bool:
    for _ in range(100):
        if psutil.Process(child.pid).status() == wanted:
            return True
        time.sleep(0.01)
    return False


def test_a_live_model_crosses_in_a_private_file(model: Artifact, rogue: Rogue, place: Path, feed: Feed) -> None:
    import dataclasses

    secret = {"weights": lambda: 3}  # a lambda, which plain pickle refuses
    with Child(dataclasses.replace(model, origin=secret), rogue(), 1, 3, place) as child:
        (private,) = place.iterdir()
        assert (private / "origin").is_file()
        assert private.stat().st_mode & 0o077 == 0
        assert child.time(feed, 0.0, 1, warm_s=0.0)["latencies_ms"]
    assert not any(place.iterdir())


def test_a_model_that_cannot_cross_is_told_with_a_way_out(model: Artifact, rogue: Rogue, place: Path) -> None:
    import dataclasses

    before = children()
    with pytest.raises(MeasureError, match=r"^dict: the model cannot be sent .* — keep locks"):
        Child(dataclasses.replace(model, origin={"lock": threading.Lock()}), rogue(), 1, 3, place)
    assert children() == before
    assert not any(place.iterdir())


def assert_told(error: MeasureError, says: str) -> None:
    text: Any = str(error)
    assert text.startswith("rogue: "), "the target is named"
    assert says in text
    assert "\n" not in text
    assert "Traceback" not in text
