"""What the LoadGen benchmark concludes from runs of which the truth is known."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from paretune.check.load import Schedule, Trace
from paretune.check.loadgen import LoadgenSummary

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "loadgen.py"
BINDING_MS = 0.006


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_loadgen", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def trace_of(shape: str, samples: int, service_ms: np.ndarray, adapter_ms: float = 0.0) -> Trace:
    """One query after the other; ``adapter_ms`` lies between its arrival and the runner's call."""
    ends = np.cumsum(service_ms + adapter_ms)
    due = np.zeros(len(ends)) if shape == "offline" else ends - service_ms - adapter_ms
    times = [(1e6 * part).astype(np.int64) for part in (due, ends - service_ms, ends)]
    return Trace(Schedule.streamed(shape, samples, 1.0, len(ends)), *times)


def summary_of(bench: ModuleType, trace: Trace, above_ms: float) -> LoadgenSummary:
    """LoadGen's, which sees so much more of each query, or offline of the whole run."""
    latency, samples = trace.latency_ms + above_ms, trace.schedule.samples * len(trace.due_ns)
    told = {name: bench.quantile(latency, q) for name, q in bench.QUANTILES.items()}
    rate = samples / (trace.seconds + above_ms / 1e3)
    return LoadgenSummary(len(latency), samples, told, float(latency.mean()), rate, {}, None, trace)


def shape_of(
    bench: ModuleType, name: str, above_ms: Sequence[float], null_ms: Sequence[float], pace: float = 1.0
) -> Any:
    rng, found = np.random.default_rng(0), bench.Shape(name)
    for above, part in zip(above_ms, null_ms, strict=True):
        service = rng.gamma(20, 0.012, 2000)
        found.own.append(trace_of(name, 1, service))
        found.theirs.append(summary_of(bench, trace_of(name, 1, pace * service, 0.001), above))
        found.null.append(summary_of(bench, trace_of(name, 1, np.full(500, 0.24)), part))
    return found


def test_what_differs_by_the_binding_alone_agrees(bench: ModuleType) -> None:
    shapes = [shape_of(bench, name, [BINDING_MS] * 4, [BINDING_MS] * 4) for name in ("single-stream", "server")]
    rows = bench.compare([*shapes, shape_of(bench, "offline", [0.5] * 4, [0.5] * 4)])
    assert [row["figure"] for row in rows] == ["p50", "p90", "p99"] * 2 + ["samples/s"]
    for row in rows:
        assert row["agree"], row
        assert row["value"] == pytest.approx(1, abs=1e-6)
    for name in ("above_us", "binding_us"):
        assert rows[0][name] == pytest.approx(1e3 * BINDING_MS)
        assert rows[-1][name] == pytest.approx(500)


def test_a_summary_that_differs_by_more_does_not_agree(bench: ModuleType) -> None:
    rows = bench.compare([shape_of(bench, "single-stream", [0.03] * 4, [BINDING_MS] * 4)])
    assert not rows[0]["agree"]
    assert rows[0]["value"] == pytest.approx((rows[0]["ours"] + 0.03 - BINDING_MS) / rows[0]["ours"], rel=1e-3)
    rows = bench.compare([shape_of(bench, "offline", [30.0] * 4, [0.5] * 4)])
    assert not rows[0]["agree"]
    assert rows[0]["value"] < 1, "it counts fewer samples a second"


def test_the_binding_is_that_of_the_null_runs_and_not_of_the_queries_themselves(bench: ModuleType) -> None:
    shape = shape_of(bench, "single-stream", [0.03] * 4, [0.03] * 4)
    assert all(row["agree"] for row in bench.compare([shape]))
    shape.null[:] = [summary_of(bench, run.trace, 0.0) for run in shape.null]
    assert not bench.compare([shape])[0]["agree"]


def test_noise_counts_against_agreement(bench: ModuleType) -> None:
    noisy = [0.0, 0.03, 0.001, 0.025]
    row = bench.compare([shape_of(bench, "single-stream", [BINDING_MS] * 4, noisy)])[0]
    assert row["low"] < 1 < row["high"]
    assert not row["agree"]
    row = bench.compare([shape_of(bench, "single-stream", [BINDING_MS], [BINDING_MS])])[0]
    assert not row["agree"], "one round tells nothing of noise"


def test_with_too_few_queries_nothing_agrees(bench: ModuleType) -> None:
    shape = bench.Shape("multi-stream")
    for seed in range(3):
        trace = trace_of("multi-stream", 8, np.random.default_rng(seed).gamma(20, 0.012, 300))
        shape.own.append(trace)
        shape.theirs.append(summary_of(bench, trace, BINDING_MS))
        shape.null.append(summary_of(bench, trace, BINDING_MS))
    by_figure = {row["figure"]: row for row in bench.compare([shape])}
    assert by_figure["p50"]["agree"]
    assert by_figure["p99"]["bounds"] is None
    assert not by_figure["p99"]["agree"]
    assert "too few queries | no |" in bench.table(list(by_figure.values()))


def test_the_turns_are_the_product_of_their_factors(bench: ModuleType) -> None:
    shapes = [shape_of(bench, name, [BINDING_MS] * 3, [0.0] * 3, pace=1.25) for name in ("single-stream", "offline")]
    for row in bench.turns(shapes):
        assert row["whole"]["value"] == pytest.approx(row["clocks"]["value"] * row["pace"]["value"])
        assert row["whole"]["value"] == pytest.approx(row["loadgen"] / row["ours"])
    single = bench.turns(shapes)[0]
    # 1 µs before the runner is called is no part of its pace
    assert single["pace"]["value"] == pytest.approx(1.25, rel=1e-5)
    assert single["clocks"]["value"] == pytest.approx(1 + (BINDING_MS + 0.001) / single["ours_between"], rel=1e-3)
    assert "= the same queries | × the runner's pace" in bench.turns_table(bench.turns(shapes))


def test_more_figures_widen_every_interval(bench: ModuleType) -> None:
    noisy = [0.004, 0.006, 0.005]
    one = shape_of(bench, "single-stream", [BINDING_MS] * 3, noisy)
    alone, among = bench.compare([one])[0], bench.compare([one, one, one])[0]
    assert among["low"] < alone["low"] < alone["high"] < among["high"]
