"""The load shapes: schedules, what is made of the times, and real children under load."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check.feed import Feed
from paretune.check.load import CutError, Schedule, Trace, summarise, throughput
from paretune.check.process import Child
from paretune.errors import CallError, MeasureError

Rogue = Callable[..., Target]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed.write([(np.ones((1, 4), np.float32),), (np.zeros((1, 4), np.float32),)], tmp_path / "feed")


def traced(schedule: Schedule, sent: Any, answered: Any, due: Any = None) -> Trace:
    sent, answered = np.asarray(sent, np.int64), np.asarray(answered, np.int64)
    return Trace(schedule, sent if due is None else np.asarray(due, np.int64), sent, answered)


def plain(told: dict[str, Any]) -> dict[str, Any]:
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


@given(st.floats(0.1, 1e5), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_server_queries_are_due_at_a_poisson_process(rate: float, count: int, seed: int) -> None:
    schedule = Schedule.served(1, rate, count, seed)
    due = schedule.due_ns
    assert due is not None
    assert due.dtype == np.int64
    assert len(due) == count
    assert (np.diff(due, prepend=0) >= 0).all()
    # the mean of n exponential gaps lies within six of its standard deviations
    assert abs(due[-1] / 1e9 * rate / count - 1) < 6 / math.sqrt(count) or count < 50
    assert np.array_equal(due, Schedule.served(1, rate, count, seed).due_ns)
    assert schedule.limit_s > schedule.seconds


def test_gaps_are_exponential_and_another_seed_gives_others() -> None:
    one, other = (Schedule.served(1, 250.0, 4000, seed).due_ns for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert not np.array_equal(one, other)
    assert stats.kstest(np.diff(one) / 1e9, "expon", (0, 1 / 250)).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(CallError, match="is no rate"):
        Schedule.served(1, rate, 10, 0)


def test_few_queries_state_no_percentile() -> None:
    sent = np.arange(40) * 1_000_000
    told = plain(summarise(traced(Schedule.streamed("single-stream", 1, 1, 1), sent, sent + 500_000)))
    assert told["latency_ms"]["p50"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert told["early_stopping_ms"]["p50"] == 0.5
    for name in ("p95", "p99", "p99.9"):
        assert told["latency_ms"][name] is None
        assert told["early_stopping_ms"][name] is None
    assert told["needed"] == {"p50": 11, "p90": 64, "p95": 130, "p99": 662, "p99.9": 6636}
    assert told["busy"] == pytest.approx(0.5, abs=0.02)


def test_latency_counts_from_when_a_query_was_due() -> None:
    due = np.arange(100) * 1_000_000 + 1
    sent = due + np.arange(100) * 1_000_000  # each is sent 1 ms later than the one before should have been
    trace = traced(Schedule("server", 1, due, 0.1, 100, 10.0, 1000.0), sent, sent + 2_000_000, due)
    assert trace.latency_ms[[0, 50, 99]].tolist() == [2.0, 52.0, 101.0]
    assert set(trace.service_ms) == {2.0}
    told = plain(summarise(trace))
    assert told["latency_ms"]["p50"]["value"] == pytest.approx(51.5)
    assert told["early_stopping_ms"]["p50"] > told["latency_ms"]["p50"]["value"]
    assert told["mean_service_ms"] == 2.0
    assert "overloaded" in told["findings"][0]
    assert told["rate_per_s"] == 1000


def test_what_was_not_answered_leaves_no_percentile() -> None:
    due = np.arange(1, 101) * 1_000_000
    answered = np.where(np.arange(100) < 90, due + 1_000_000, 0)
    trace = traced(Schedule("server", 1, due, 0.1, 100, 10.0, 1000.0), np.where(answered > 0, due, 0), answered, due)
    told = plain(summarise(trace))
    assert (told["queries"], told["answered"]) == (100, 90)
    assert set(told["latency_ms"].values()) == {None}
    assert told["findings"] == ["10 of 100 queries were not answered within 10 s, so no percentile is stated"]


def test_a_calm_server_has_no_finding_and_says_how_late_its_queries_were_sent() -> None:
    due = np.arange(1, 201) * 10_000_000
    trace = traced(Schedule("server", 1, due, 2.0, 200, 10.0, 100.0), due + 7_000, due + 1_007_000, due)
    told = plain(summarise(trace))
    assert told["findings"] == []
    assert told["lateness_us"] == {"p50": 7.0, "p99": 7.0}
    assert told["busy"] == pytest.approx(0.1, rel=0.02)


def test_offline_is_a_throughput_of_samples() -> None:
    done = np.cumsum(np.full(60, 4_000_000)) + np.tile([0, 100_000, -100_000], 20)
    trace = traced(Schedule.at_once(32, 60, 0.24), done - 4_000_000, done, np.zeros(60))
    told = plain(summarise(trace))
    assert told["throughput_per_s"]["value"] == pytest.approx(8000, rel=1e-3)
    assert told["throughput_per_s"]["low"] < 8000 < told["throughput_per_s"]["high"]
    assert set(told["latency_ms"].values()) == set(told["early_stopping_ms"].values()) == {None}
    assert told["lateness_us"] is None


def test_a_throughput_of_few_answers_has_no_interval() -> None:
    told = throughput(traced(Schedule.at_once(2, 4, 1.0), [0, 0, 0, 0], [10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9]))
    assert told.describe() == {"value": 2.0, "low": None, "high": None}


def test_the_throughputs_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        done = np.cumsum(rng.lognormal(0, 0.5, 200) * 1e6 / math.exp(0.125)).astype(np.int64)
        found = throughput(traced(Schedule.streamed("single-stream", 1, 1, 1), done - 1, done))
        hits += found.low <= 1000 <= found.high
    assert 0.91 <= hits / 400 <= 0.985


def test_streams_send_the_next_when_the_last_is_answered(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    with Child(model, rogue(pause_ms=2.0), 1, 1) as child:
        trace = child.load(feed, Schedule.streamed("single-stream", 1, 0.1, 20), tmp_path / "notes", warm_s=0)
    assert len(trace.latency_ms) >= 20
    assert trace.done.all()
    assert (trace.sent_ns == trace.due_ns).all()
    assert (trace.sent_ns[1:] >= trace.answered_ns[:-1]).all(), "one at a time"
    assert trace.service_ms.min() >= 2
    assert trace.seconds >= 0.1


def test_a_slow_server_charges_the_queue_to_the_query(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    schedule = Schedule.served(1, 400.0, 60, seed=0)  # twice what five milliseconds a query can take
    assert schedule.due_ns is not None
    with Child(model, rogue(pause_ms=5.0), 1, 1) as child:
        trace = child.load(feed, schedule, tmp_path / "notes", warm_s=0)
    assert np.array_equal(trace.due_ns, schedule.due_ns)
    assert (trace.sent_ns >= trace.due_ns).all(), "none is sent before it is due"
    # each one's answer takes 5 ms and they stand in line, so the last is this late at least
    assert trace.latency_ms[-1] >= 60 * 5 - schedule.due_ns[-1] / 1e6
    assert trace.latency_ms[-20:].mean() > 3 * trace.latency_ms[:20].mean()
    assert trace.service_ms[-20:].mean() < trace.latency_ms[-20:].mean() / 3, "a runner's own time shows none of it"
    assert "overloaded" in summarise(trace)["findings"][0]


def test_a_server_with_several_callers_answers_side_by_side(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    schedule = Schedule.served(1, 400.0, 60, seed=0)
    with Child(model, rogue(pause_ms=5.0, callers=4), 1, 1) as child:
        trace = child.load(feed, schedule, tmp_path / "notes", warm_s=0)
    assert trace.done.all()
    assert trace.callers == 4
    assert (trace.sent_ns[1:] < trace.answered_ns[:-1]).any()
    assert summarise(trace)["busy"] <= 1


def test_offline_has_everything_at_the_start(model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path) -> None:
    with Child(model, rogue(pause_ms=1.0), 1, 1) as child:
        trace = child.load(feed, Schedule.at_once(1, 50, 0.1), tmp_path / "notes", warm_s=0)
    assert (trace.due_ns == 0).all()
    assert trace.done.all()
    assert throughput(trace).value == pytest.approx(50 / trace.seconds)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("late_segfault", "was killed by SIGSEGV during 'load'"),
        ("late_exit", "ended with 7 during 'load'"),
        ("late_raise", "load failed: ValueError: no kernel for this"),
        ("late_hang", "hangs: no answer to 'load' within"),
    ],
)
@pytest.mark.parametrize("shape", ["single-stream", "server"])
def test_who_fails_in_the_middle_is_told_and_what_was_answered_is_kept(
    mode: str, says: str, shape: str, model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    served = Schedule("server", 1, np.arange(1, 101) * 100_000, 0.01, 100, 0.1, 1e4)
    schedule = served if shape == "server" else Schedule.streamed(shape, 1, 0.01, 100)
    with Child(model, rogue(mode, pause_ms=0.2), 1, 1) as child, pytest.raises(MeasureError) as caught:
        child.load(feed, schedule, tmp_path / "notes", warm_s=0, patience_s=1)
    error = caught.value
    assert isinstance(error, CutError)
    assert str(error).startswith("rogue: ")
    assert says in str(error)
    assert "27 queries were answered before (median " in str(error), "three of thirty were for warming up"
    assert "\n" not in str(error)
    assert int(error.trace.done.sum()) == 27
    assert (error.trace.latency_ms > 0).all()
