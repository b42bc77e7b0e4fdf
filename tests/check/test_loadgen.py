"""MLCommons' LoadGen on a real child; what it lacks, and what it tells, is said."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check import early_stopping
from paretune.check.feed import Feed
from paretune.check.load import SAMPLES, CutError, Schedule, Trace
from paretune.check.loadgen import TRACE, Loadgen, LoadgenSummary, dated, drive, null, planned, read
from paretune.check.process import Child
from paretune.errors import MeasureError, PluginError

INSTALLED = importlib.util.find_spec("mlperf_loadgen") is not None
needs_loadgen = pytest.mark.skipif(not INSTALLED, reason="LoadGen is an extra: pip install 'paretune[loadgen]'")
Rogue = Callable[..., Target]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed.write(((np.full((1, 4), row, np.float32),) for row in range(4)), tmp_path / "feed")


@needs_loadgen
@pytest.mark.parametrize(("shape", "callers"), [*((shape, 1) for shape in SAMPLES), ("server", 3)])
def test_its_four_scenarios_run_on_the_opened_runner(
    shape: str, callers: int, model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    samples = SAMPLES[shape]
    asked = Loadgen(shape, samples, 0.2, 64, pace_s=0.001, rate=300.0)
    with Child(model, rogue(pause_ms=1.0, callers=callers), 1, 1) as child:
        found = drive(child, feed, asked, tmp_path / "out")
        assert child.memory()["peak_bytes"], "the child can still be asked"
    service = found.trace.service_ms
    assert service.min() >= 1
    queries = found.queries if shape != "offline" else len(service)
    assert len(service) == queries
    assert 0 <= samples * queries - found.samples < samples, "all samples LoadGen counts, in whole batches"
    assert found.mean_ms >= service.mean()
    assert found.latency_ms["p50"] >= np.quantile(service, 0.4)
    if shape == "single-stream":
        assert found.discarded == (early_stopping.place(found.queries, 0.9) or 0) - 1
        assert found.early_stopping_ms["p90"] >= found.latency_ms["p90"]
    if shape == "offline":
        assert found.throughput_per_s == pytest.approx(samples * queries / found.trace.seconds, rel=0.2)
    if shape == "server":
        assert found.throughput_per_s == pytest.approx(300, rel=0.5)
        check_server(found, tmp_path / "out" / TRACE, callers)
    elif shape != "offline":
        ordered = np.sort(found.trace.latency_ms)
        assert found.latency_ms["p50"] >= ordered[len(ordered) // 2], "what reaches us later is answered to it later"
    else:
        assert len(set(found.trace.due_ns.tolist())) == 1, "all are there at the start"


def check_server(found: LoadgenSummary, path: Path, callers: int) -> None:
    scheduled, issued = planned(path)
    trace = found.trace
    assert len(scheduled) == found.queries
    assert np.array_equal(np.diff(trace.due_ns), np.diff(scheduled)), "its schedule, on our clock"
    assert (np.diff(scheduled) > 0).all()
    assert (issued >= scheduled).all()
    # no query is handed to the runner before LoadGen issued it
    assert (trace.sent_ns - trace.due_ns >= issued - scheduled).all()
    ordered = np.sort(trace.latency_ms)
    assert found.latency_ms["p50"] >= ordered[len(ordered) // 2]
    if callers == 1:
        assert (trace.sent_ns[1:] >= trace.answered_ns[:-1]).all()


@needs_loadgen
def test_a_null_run_infers_once_and_is_told_like_another(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    asked = Loadgen("single-stream", 1, 0.1, 64, pace_s=0.0005, null=True)
    with Child(model, rogue(pause_ms=200.0), 1, 1) as child:
        found = drive(child, feed, asked, tmp_path / "out", warm_s=0)
    service = found.trace.service_ms
    assert len(service) == found.queries == found.samples >= 64
    assert np.median(service) < 100, "the runner, which takes 200 ms, is not asked"


def test_a_null_runner_gives_the_answer_it_was_given() -> None:
    answer = (np.zeros((1, 3), np.float32),)
    for seconds in (0.0, 1e-5, 2e-3):
        assert null(answer, seconds)((np.ones((1, 4), np.float32),)) is answer


def sample(query: int, ts: float, late: int) -> str:
    args = {"sample_seq": query, "query_seq": query, "issue_start_ns": late, "complete_ns": late + 5}
    event = {"name": "Sample", "cat": "default", "ph": "b", "pid": 1, "id": query, "ts": ts, "args": args}
    return json.dumps(event, separators=(",", ":")) + ","


def test_a_schedule_is_read_to_the_nanosecond_in_the_order_of_issue(tmp_path: Path) -> None:
    path = tmp_path / TRACE
    other = '{"name":"Scheduling","ph":"X","pid":1,"tid":1,"ts":788.253,"dur":0.066,"args":{}},'
    lines = ['{"traceEvents":[', other, sample(1, 2788.098, 20), sample(0, 788.097, 181), '{"name":"LastTrace"}]}']
    path.write_text("\n".join(lines))
    scheduled, issued = planned(path)
    assert scheduled.tolist() == [788_097, 2_788_098]
    assert issued.tolist() == [788_278, 2_788_118]


@pytest.mark.parametrize("rest", [None, "", ',"args":{}}'])
def test_a_trace_that_is_none_is_told(rest: str | None, tmp_path: Path) -> None:
    if rest is not None:
        (tmp_path / TRACE).write_text('{"name":"Sample","ph":"b","ts":1' + rest)
    with pytest.raises(MeasureError, match="LoadGen's trace cannot be read") as caught:
        planned(tmp_path / TRACE)
    assert caught.value.where == str(tmp_path / TRACE)


def arrivals(*due: int) -> Trace:
    times = np.array(due, np.int64)
    return Trace(Schedule.streamed("server", 1, 1.0, 2), times, times + 10, times + 1000)


def test_queries_are_due_when_they_were_scheduled_on_our_clock() -> None:
    scheduled, late = np.array([500, 1500, 2500]), np.array([0, 300, 100])
    # our clock is 7,000 behind, and the binding takes 40, 90 and 25
    arrived = scheduled + late - 7000 + np.array([40, 90, 25])
    found = dated(arrivals(*arrived), scheduled, scheduled + late)
    assert (found.due_ns - (scheduled - 7000)).tolist() == [25, 25, 25], "off by the least the binding takes"
    assert found.answered_ns.tolist() == (arrived + 1000).tolist()


def test_a_schedule_of_other_queries_is_refused() -> None:
    with pytest.raises(MeasureError, match="traced 2 of 3 queries"):
        dated(arrivals(1, 2, 3), np.array([1, 2]), np.array([1, 2]))
    with pytest.raises(MeasureError, match="traced 0 of 0"):
        dated(arrivals(), np.array([], np.int64), np.array([], np.int64))


@needs_loadgen
@pytest.mark.parametrize(
    ("mode", "says"), [("late_raise", "ValueError: no kernel for this"), ("late_segfault", "killed by SIGSEGV")]
)
def test_a_runner_that_fails_in_the_middle_is_told(
    mode: str, says: str, model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    asked = Loadgen("single-stream", 1, 0.1, 64, pace_s=0.001)
    with Child(model, rogue(mode, pause_ms=1.0), 1, 1) as child, pytest.raises(CutError, match=says) as caught:
        drive(child, feed, asked, tmp_path / "out", warm_s=0)
    assert 0 < caught.value.trace.done.sum() <= 30


def test_a_missing_extra_names_its_command(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.ask import plugin

    monkeypatch.setattr(plugin, "_found", lambda module: module != "mlperf_loadgen")
    with Child(model, rogue(), 1, 1) as child, pytest.raises(PluginError, match="install 'mlcommons-loadgen>=6"):
        drive(child, feed, Loadgen("offline", 1, 0.1, 64, pace_s=0.001), tmp_path / "out")


def test_a_log_without_a_result_is_told(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(MeasureError, match="cannot be read"):
        read(log)
    log.write_text(':::MLLOG {"key": "loadgen_version", "value": "6"}\nnoise\n')
    with pytest.raises(MeasureError, match="holds no result"):
        read(log)
    log.write_text(':::MLLOG {"key": "resul')
    with pytest.raises(MeasureError, match="cannot be read"):
        read(log)
