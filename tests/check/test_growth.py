"""A runner that leaks is found, and a steady one is never called leaking."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.target import Target
from paretune.check.feed import Feed
from paretune.check.growth import FLOOR_BYTES, INFERENCES, growth, growth_of
from paretune.check.process import Child
from paretune.errors import MeasureError

linux = pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told apart on Linux alone")
DONE = list(range(166, 10_000, 166))
PAGE = 4096


def pages(values: Any) -> list[int | None]:
    return [int(50e6) + PAGE * round(float(value) / PAGE) for value in values]


@given(st.floats(30, 10_000), st.integers(0, 2**32 - 1))
def test_any_leak_above_the_floor_is_found(bytes_each: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, PAGE, len(DONE))
    found = growth(DONE, pages(bytes_each * np.array(DONE) + noise), 1.0)
    assert found.verdict == "leaking", found.text
    assert found.per_thousand is not None
    assert found.per_thousand.low <= 1000 * bytes_each * 1.2
    assert found.per_thousand.high >= 1000 * bytes_each * 0.8


@given(st.integers(0, 2**32 - 1), st.integers(0, 59), st.floats(0, 50e6))
def test_noise_a_cache_that_fills_and_one_jump_are_no_leak(seed: int, place: int, size: float) -> None:
    random = np.random.default_rng(seed)
    x = np.array(DONE, float)
    jump = np.where(np.arange(len(x)) >= place, size, 0.0)
    fills = size * (1 - np.exp(-x / 300))
    saw = size * (np.arange(len(x)) % 7) / 7
    for values in (jump, jump + random.normal(0, PAGE, len(x)), fills, saw):
        found = growth(DONE, pages(values), 1.0)
        assert found.verdict != "leaking", found.text


def test_noise_alone_is_steady_and_the_floor_is_said() -> None:
    random = np.random.default_rng(0)
    for values in (np.zeros(len(DONE)), random.normal(0, PAGE, len(DONE)), -50.0 * np.array(DONE)):
        found = growth(DONE, pages(values), 1.0)
        assert found.verdict == "steady", found.text
    allowed = FLOOR_BYTES / (DONE[-1] - DONE[0])
    assert f"grows by less than {allowed:.3g} kB in a thousand inferences" in found.text
    assert f"over {DONE[-1]:,} inferences" in found.text


def test_too_little_is_undecided() -> None:
    few = growth(DONE[:8], pages(1e4 * np.arange(8)), 3.0)
    assert (few.verdict, few.per_thousand) == ("undecided", None)
    assert "1,328 inferences in 3 s are too few to tell" in few.text
    assert "too few" in growth([], [], 3.0).text
    blind = growth(DONE, [None] * len(DONE), 1.0)
    assert (blind.verdict, blind.describe()["bytes_per_thousand"]) == ("undecided", None)
    assert "cannot be read" in blind.text


@linux
@pytest.mark.parametrize(("mode", "verdict"), [("leak", "leaking"), ("cache", "steady"), ("fine", "steady")])
def test_a_planted_leak_is_found_on_the_bench(mode: str, verdict: str, workbench: Any, data: Split) -> None:
    for _ in range(2):
        found = workbench.bench.soak(workbench.subject(mode), data, 4, INFERENCES, 20.0)
        assert found.verdict == verdict, found.text
        assert found.inferences >= INFERENCES
    assert workbench.heard.cached == [("growth", False), ("growth", True)]
    if mode == "leak":
        assert found.per_thousand.low <= 1.1e6
        assert found.per_thousand.high >= 1e6, "a thousand bytes each"


@linux
def test_a_steady_runner_is_not_called_leaking_in_twenty_passes(
    model: Artifact, rogue: Callable[..., Target], tmp_path: Path
) -> None:
    feed = Feed.write([(np.ones((8, 4), np.float32),)] * 3, tmp_path / "feed")
    verdicts = []
    with Child(model, rogue(), 1, 8) as child:
        verdicts = [growth_of(child.soak(feed, 2000, 5.0)).verdict for _ in range(20)]
    assert "leaking" not in verdicts
    assert verdicts.count("steady") >= 18


@linux
def test_a_pass_ends_when_its_time_is_over_or_too_much_was_gained(
    model: Artifact, rogue: Callable[..., Target], tmp_path: Path
) -> None:
    feed = Feed.write([(np.ones((8, 4), np.float32),)], tmp_path / "feed")
    with Child(model, rogue("spin", pause_ms=2.0), 1, 8) as child:
        told = child.soak(feed, 10**6, 0.5)
    assert told["inferences"][-1] < 1000
    with Child(model, rogue("leak"), 1, 8) as child:
        told = child.call("soak", 60, feed=str(feed.root), count=10**6, seconds=20.0, most_bytes=1_000_000)
    assert told["inferences"][-1] < 10**5
    assert told["elapsed_s"] < 20


def test_a_subject_that_fails_meanwhile_is_a_finding(workbench: Any, data: Split) -> None:
    with pytest.raises(MeasureError, match="SIGSEGV") as caught:
        workbench.bench.soak(workbench.subject("segfault"), data, 1, 10, 1.0)
    assert caught.value.guilty == "segfault"


def test_a_pass_that_was_broken_off_for_its_growth_leaks() -> None:
    told = {
        "inferences": [10, 20, 30],
        "anon_bytes": [0, 600_000_000, 1_200_000_000],
        "elapsed_s": 0.5,
        "stopped": True,
    }
    found = growth_of(told)
    assert found.verdict == "leaking"
    assert "broken off after 30 inferences" in found.text
    assert growth_of({**told, "stopped": False}).verdict == "undecided"
