"""Load: the four ways in which queries arrive, as MLPerf inference defines them, and what their times say.

Reddi et al. (2020), *MLPerf Inference Benchmark*, ISCA, and the *MLPerf Inference Rules*: **single-stream** sends a
query of one sample as soon as the one before is answered; **multi-stream** the same with eight samples a query;
**server** sends single samples at the times of a Poisson process, whether or not earlier ones are answered;
**offline** has all samples there at the start.
Latency counts from when a query was *due*: time in a queue is the user's too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretune.check import early_stopping
from paretune.check.issuer import ANSWERED, DUE, SENT
from paretune.check.statistics import Estimate, percentile, student_half
from paretune.errors import CallError, MeasureError

Array = np.ndarray[Any, Any]
SAMPLES: Mapping[str, int] = {"single-stream": 1, "multi-stream": 8, "server": 1, "offline": 32}
"""The shapes, and how many samples a query holds; offline: how many are answered at a time."""
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
MOST_CLOSED = 1_000_000
BLOCKS = 20


@dataclass(frozen=True)
class Schedule:
    """When queries are sent, and how many samples each holds.

    ``due_ns``, int64 [queries], are the times from the start at which they are due; None: each as soon as the one
    before is answered, for ``seconds`` and at least ``count`` queries. No query is sent after ``limit_s``.
    """

    shape: str
    samples: int
    due_ns: Array | None
    seconds: float
    count: int
    limit_s: float
    rate: float | None = None

    @classmethod
    def streamed(cls, shape: str, samples: int, seconds: float, count: int) -> Schedule:
        """Single-stream or multi-stream: one query after the other."""
        return cls(shape, samples, None, seconds, count, math.inf)

    @classmethod
    def served(cls, samples: int, rate: float, count: int, seed: int) -> Schedule:
        """Server: ``count`` queries of a Poisson process of ``rate`` queries a second, drawn by ``seed``."""
        if not rate > 0 or not math.isfinite(rate) or count < 1:
            raise CallError(f"{rate} queries/s is no rate", where="rate", do="give a number above 0")
        gaps = np.random.default_rng(seed).exponential(1 / rate, count)
        due = np.cumsum(gaps)
        span = float(due[-1])
        return cls("server", samples, np.rint(due * 1e9).astype(np.int64), span, count, 2 * span + 10, rate)

    @classmethod
    def at_once(cls, samples: int, count: int, seconds: float) -> Schedule:
        """Offline: ``count`` batches of ``samples``, all there at the start; they should take about ``seconds``."""
        return cls("offline", samples, np.zeros(count, np.int64), seconds, count, 20 * seconds + 60)

    def lay(self, path: Path) -> None:
        """Write the file for each query's times: int64 [queries, 3]; see :mod:`paretune.check.issuer`."""
        with path.open("wb") as file:
            if self.due_ns is None:
                file.truncate(MOST_CLOSED * 3 * 8)  # sparse: what is not used takes no room
            else:
                rows = np.zeros((len(self.due_ns), 3), np.int64)
                rows[:, DUE] = self.due_ns
                file.write(rows.tobytes())


@dataclass(frozen=True)
class Trace:
    """When each query was due, sent and answered: int64 [queries], nanoseconds from the start.

    Whatever was answered is here, even if the process died afterwards; ``sent`` and ``answered`` of others are 0.
    """

    schedule: Schedule
    due_ns: Array
    sent_ns: Array
    answered_ns: Array
    callers: int = 1

    @classmethod
    def read(cls, path: Path, schedule: Schedule, callers: int = 1) -> Trace:
        rows = np.fromfile(path, np.int64).reshape(-1, 3)
        if schedule.due_ns is None:
            rows = rows[: np.count_nonzero(rows[:, ANSWERED])]
        return cls(schedule, rows[:, DUE], rows[:, SENT], rows[:, ANSWERED], callers)

    @property
    def done(self) -> Array:
        """Which queries were answered, bool [queries]."""
        return self.answered_ns > 0

    @property
    def latency_ms(self) -> Array:
        """From when a query was due to its answer, float [answered queries], in the order in which they were due."""
        return (self.answered_ns - self.due_ns)[self.done] / 1e6

    @property
    def service_ms(self) -> Array:
        """From when a query was sent to its answer: the latency without the time in the queue."""
        return (self.answered_ns - self.sent_ns)[self.done] / 1e6

    @property
    def seconds(self) -> float:
        """From the start to the last answer."""
        return float(self.answered_ns.max()) / 1e9 if self.done.any() else 0.0

    @property
    def lateness_us(self) -> Array:
        """How long after it was due a query was sent although nobody else was being answered: the generator's own part.

        Microseconds, float [such queries]; in a closed loop there is none.
        """
        if self.schedule.shape != "server" or not self.done.all() or self.callers > 1:
            return np.empty(0)
        free = np.concatenate([[0], self.answered_ns[:-1]]) <= self.due_ns
        return (self.sent_ns - self.due_ns)[free] / 1e3


class CutError(MeasureError):
    """The process ended in the middle of a load; ``trace`` holds all that was answered before."""

    trace: Trace

    @classmethod
    def short(cls, error: MeasureError, trace: Trace) -> CutError:
        answered = int(trace.done.sum())
        before = f"{answered:,} queries were answered before"
        if answered:
            before += f" (median {np.median(trace.latency_ms):.3g} ms)"
        cut = cls(f"{error.what}; {before}", where=error.where, do=error.do)
        cut.passing, cut.trace = error.passing, trace
        return cut


def summarise(trace: Trace, confidence: float = 0.95) -> dict[str, Any]:
    """What a trace says, as plain JSON.

    ``latency_ms``: percentiles with intervals (order statistics, and Woodruff's over stretches of the run: the wider
    counts); ``early_stopping_ms``: LoadGen's bounds at 99 %; each null where there are too few queries. Offline has a
    throughput and no latencies. ``throughput_per_s`` counts samples; its interval is Student's over the means of
    consecutive stretches (batch means; Law, *Simulation Modeling and Analysis*, 2015, §9.5.3).
    """
    schedule, latency = trace.schedule, trace.latency_ms
    findings = _findings(trace)
    steady = schedule.shape != "offline" and trace.done.all() and len(latency) > 0
    blocks = [part.tolist() for part in _stretches(latency)]
    percentiles = {name: percentile(blocks, q, confidence) if steady else None for name, q in QUANTILES.items()}
    bounds = {name: early_stopping.estimate(latency, q) if steady else None for name, q in QUANTILES.items()}
    service, late = trace.service_ms, trace.lateness_us
    lateness = {name: float(np.quantile(late, QUANTILES[name])) for name in ("p50", "p99")} if len(late) else None
    return {
        "shape": schedule.shape,
        "samples_per_query": schedule.samples,
        "rate_per_s": schedule.rate,
        "queries": len(trace.due_ns),
        "answered": int(trace.done.sum()),
        "seconds": trace.seconds,
        "throughput_per_s": throughput(trace, confidence).describe() if len(service) else None,
        "latency_ms": {name: value.describe() if value else None for name, value in percentiles.items()},
        "early_stopping_ms": bounds,
        "needed": {name: early_stopping.needed(q) for name, q in QUANTILES.items()},
        "mean_service_ms": float(service.mean()) if len(service) else None,
        "busy": float(service.sum()) / 1e3 / trace.callers / trace.seconds if len(service) else None,
        "lateness_us": lateness,
        "findings": findings,
    }  # fmt: skip


def throughput(trace: Trace, confidence: float = 0.95) -> Estimate:
    """Samples answered a second; without ten answers its interval is unbounded."""
    times = np.sort(trace.answered_ns[trace.done]) / 1e9
    samples = trace.schedule.samples
    value = samples * len(times) / float(times[-1])
    gaps = [float(part.mean()) for part in _stretches(np.diff(times, prepend=0.0), least=2)]
    if len(gaps) < 5:
        return Estimate(value, -math.inf, math.inf)
    mean = float(times[-1]) / len(times)
    half = student_half(np.array(gaps), confidence)
    slowest = samples / (mean + half)
    return Estimate(value, min(slowest, value), samples / (mean - half) if mean > half else math.inf)


def _stretches(values: Array, least: int = 10) -> list[Array]:
    """Up to twenty consecutive parts of at least ``least`` values."""
    parts = min(BLOCKS, len(values) // least)
    return np.array_split(values, parts) if parts else [values] if len(values) else []


def _findings(trace: Trace) -> list[str]:
    left = len(trace.due_ns) - int(trace.done.sum())
    if left:
        return [
            f"{left:,} of {len(trace.due_ns):,} queries were not answered within {trace.schedule.limit_s:,.0f} s, "
            "so no percentile is stated"
        ]
    if trace.schedule.shape != "server":
        return []
    backlog_s = trace.seconds - float(trace.due_ns[-1]) / 1e9
    # a queue that is as long as a twentieth of the run when the run ends was still growing
    if backlog_s > 0.05 * trace.schedule.seconds and backlog_s > 10e-3 * float(np.median(trace.service_ms)):
        return [
            f"overloaded: when the last query was due, {backlog_s:.2g} s of work stood in the queue; "
            "the longer such a run, the longer its latencies"
        ]
    return []
