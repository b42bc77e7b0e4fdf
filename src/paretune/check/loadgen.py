"""Loadgen: MLCommons' own load generator on the same opened runner, in the same kind of child: a second opinion.

Its queries, clock and summary are its own (``mlperf_log_detail.txt``); ours is only the system under test that answers
them. Both clocks look at the same queries too: the child notes when each reached it, when its runner was called, and
when that had answered. What lies between a query's issue by LoadGen and its arrival here, and between the answer and
LoadGen's taking note of it, is LoadGen's Python binding; :func:`null` is a runner on which that can be measured by
itself.
"""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from paretune.ask import plugin
from paretune.check.feed import Feed
from paretune.check.issuer import ANSWERED, DUE, SENT, notes, sharpen, together
from paretune.check.load import QUANTILES, CutError, Schedule, Trace
from paretune.check.process import Child
from paretune.errors import MeasureError

SCENARIOS: Mapping[str, str] = {
    "single-stream": "SingleStream", "multi-stream": "MultiStream", "server": "Server", "offline": "Offline",
}  # fmt: skip
DETAIL = "mlperf_log_detail.txt"
TRACE = "mlperf_log_trace.json"
_MARK = ":::MLLOG "
_NEVER_NS = 3_600_000_000_000
_SWEPT_BYTES = 2 << 20  # what a core's own caches hold


@dataclass(frozen=True)
class Loadgen:
    """One run of LoadGen.

    ``rate``: server, queries a second; ``pace_s``: about how long a query (offline: a batch) takes, from which LoadGen
    makes its queries beforehand; ``count``: at least so many queries. ``null``: nothing is inferred; see :func:`null`.
    """

    needs: ClassVar[Mapping[str, str]] = {"mlperf_loadgen": "mlcommons-loadgen>=6.0"}

    shape: str
    samples: int
    seconds: float
    count: int
    pace_s: float
    rate: float | None = None
    seed: int = 0
    null: bool = False


@dataclass(frozen=True)
class LoadgenSummary:
    """What LoadGen wrote of a run. Latencies in ms; ``throughput_per_s`` counts samples, ``samples`` is how many.

    ``early_stopping_ms`` is its estimate of the percentiles that the scenario asks for (single-stream p90 and p99,
    multi-stream p99), and ``discarded`` how many slower queries it left out for the first of them.

    ``trace`` holds the same queries by our own clock, in LoadGen's order. A query is due when it reaches the runner's
    process; in the server scenario when LoadGen had scheduled it, as its own trace tells, with its clock laid on ours
    so that the query that arrived soonest after its issue took no time to arrive. (It took some, as LoadGen's binding
    lies in between: by so much, a microsecond or so, these latencies are too short.)
    """

    queries: int
    samples: int
    latency_ms: Mapping[str, float]
    mean_ms: float
    throughput_per_s: float
    early_stopping_ms: Mapping[str, float]
    discarded: int | None
    trace: Trace


def drive(child: Child, feed: Feed, asked: Loadgen, out: Path, warm_s: float = 0.3) -> LoadgenSummary:
    """Let LoadGen put its queries to an opened child; its logs are written into the directory ``out``.

    Raises
    ------
    PluginError
        If LoadGen is not installed, with the command that installs it.
    CutError
        If the child dies or hangs; it holds what was answered before.
    """
    plugin.require(Loadgen, "a run of LoadGen")
    out.mkdir(parents=True, exist_ok=True)
    schedule = Schedule.streamed(asked.shape, asked.samples, asked.seconds, asked.count)
    schedule.lay(out / "notes")
    try:
        patience_s = 120 + 10 * asked.seconds + 20 * asked.count * asked.pace_s
        child.call(
            "loadgen", patience_s, feed=str(feed.root), out=str(out.resolve()), asked=asdict(asked), warm_s=warm_s,
            warm_count=3,
        )  # fmt: skip
    except MeasureError as error:
        raise CutError.short(error, Trace.read(out / "notes", schedule, child.callers)) from error
    trace = Trace.read(out / "notes", schedule, child.callers)
    if asked.shape == "server":
        trace = dated(trace, *planned(out / TRACE), where=str(out / TRACE))
    return _summary(read(out / DETAIL), trace, asked)


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a ``mlperf_log_detail.txt``; of a key that occurs again, the last.

    Raises
    ------
    MeasureError
        If it is not there or holds no result.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        entries = [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
        found = {entry["key"]: entry["value"] for entry in entries}
    except (OSError, ValueError, KeyError) as error:
        raise MeasureError(f"LoadGen's log cannot be read: {error}", where=str(path)) from error
    if "result_query_count" not in found:
        raise MeasureError("LoadGen's log holds no result", where=str(path))
    return found


def planned(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """When LoadGen had scheduled each query of one sample, and when it issued it, by a ``mlperf_log_trace.json``.

    Both int64 [queries], in the order of issue, nanoseconds of LoadGen's clock from an origin of its own.

    Raises
    ------
    MeasureError
        If the file is not there or is no such trace.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        begun = (line for line in lines if '"name":"Sample"' in line and '"ph":"b"' in line)
        events = [json.loads(line.strip().removesuffix(",")) for line in begun]
        rows = sorted((one["args"]["query_seq"], one["ts"], one["args"]["issue_start_ns"]) for one in events)
    except (OSError, ValueError, KeyError) as error:
        raise MeasureError(f"LoadGen's trace cannot be read: {error}", where=str(path)) from error
    # microseconds with three decimals
    scheduled = np.array([round(1000 * ts) for _, ts, _ in rows], np.int64)
    return scheduled, scheduled + np.array([late for *_, late in rows], np.int64)


def dated(trace: Trace, scheduled: np.ndarray[Any, Any], issued: np.ndarray[Any, Any], where: str = "") -> Trace:
    """The trace with queries due when LoadGen had scheduled them, instead of when they arrived.

    ``scheduled`` and ``issued``, int64 [queries], are nanoseconds of LoadGen's clock, whose origin on ours is taken
    from the query that arrived soonest after its issue.

    Raises
    ------
    MeasureError
        If they are not as many as the trace has queries.
    """
    if len(scheduled) != len(trace.due_ns) or not len(scheduled):
        raise MeasureError(f"LoadGen traced {len(scheduled):,} of {len(trace.due_ns):,} queries", where=where)
    return replace(trace, due_ns=scheduled + int((trace.due_ns - issued).min()))


def _summary(found: Mapping[str, Any], trace: Trace, asked: Loadgen) -> LoadgenSummary:
    own = "per_query_latency_ns" if asked.shape == "multi-stream" else "latency_ns"
    mean = "result_mean_query_latency_ns" if asked.shape == "multi-stream" else "result_mean_latency_ns"
    latencies = {name: found[f"result_{100 * q:.2f}_percentile_{own}"] / 1e6 for name, q in QUANTILES.items()}
    samples = asked.samples if asked.shape == "multi-stream" else 1
    rate = found.get("result_samples_per_second") or found.get("result_completed_samples_per_sec")
    if rate is None:
        rate = samples / (found[mean] / 1e9)
    asks = {"early_stopping_latency_ss": "p90", "early_stopping_latency_ms": "p99"}
    early = {name: found[key] / 1e6 for key, name in asks.items() if found.get(key)}
    left_out = re.search(r"discard (\d+) highest", str(found.get("early_stopping_result")))
    discarded = int(left_out[1]) if left_out else None
    count = int(found["result_query_count"])
    answered = count * int(found["generated_samples_per_query"])
    return LoadgenSummary(count, answered, latencies, found[mean] / 1e6, float(rate), early, discarded, trace)


def answer(infer: Callable[[Any], Any], batches: Sequence[Any], asked: Loadgen, out: Path, callers: int) -> None:
    """In the child: run LoadGen on a runner until it has enough."""
    import mlperf_loadgen as lg

    sharpen()
    under_test = _UnderTest(lg, infer, batches, asked, out / "notes", callers)
    sut = lg.ConstructSUT(under_test.issue, lambda: None)
    library = lg.ConstructQSL(len(batches), len(batches), lambda samples: None, lambda samples: None)
    logs = lg.LogSettings()
    logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = str(out), False
    logs.enable_trace = asked.shape == "server"  # its schedule; elsewhere it would only be work
    try:
        under_test.start()
        lg.StartTestWithLogSettings(sut, library, _settings(lg, asked), logs)
    finally:
        under_test.stop()
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)
    if under_test.failures:
        raise under_test.failures[0]


def _settings(lg: Any, asked: Loadgen) -> Any:
    made = lg.TestSettings()
    made.scenario = getattr(lg.TestScenario, SCENARIOS[asked.shape])
    made.mode = lg.TestMode.PerformanceOnly
    made.min_duration_ms, made.min_query_count = round(asked.seconds * 1000), asked.count
    made.qsl_rng_seed = made.sample_index_rng_seed = made.schedule_rng_seed = asked.seed + 1
    # half of what was seen: it ends early when it runs out of the queries that it made beforehand
    expected_ns = max(1, round(asked.pace_s * 0.5e9))
    made.single_stream_expected_latency_ns = made.multi_stream_expected_latency_ns = expected_ns
    made.multi_stream_samples_per_query = asked.samples
    made.server_target_qps, made.server_target_latency_ns = asked.rate or 1.0, _NEVER_NS
    made.offline_expected_qps = asked.samples / asked.pace_s
    return made


def null(answer: Any, seconds: float) -> Callable[[Any], Any]:
    """A runner that infers nothing: it reads as much memory as a core's caches hold, over and over.

    After about ``seconds`` it returns ``answer``. As after a real inference, LoadGen's code and data have left the
    caches by then, and queues are as long as a real runner's; a runner that answered at once would make the binding
    look cheaper than it is.
    """
    import time

    block = np.ones(_SWEPT_BYTES // 8)
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        block.sum()
        spent.append(time.perf_counter() - begin)
    sweeps = seconds / min(spent[1:])
    whole, rest = int(sweeps), block[: int(sweeps % 1 * len(block))]

    def infer(_: Any) -> Any:
        for _ in range(whole):
            block.sum()
        rest.sum()
        return answer

    return infer


class _UnderTest:
    """Answers LoadGen's queries: in its own thread where the runner takes one caller, else in as many as it wants."""

    def __init__(
        self, lg: Any, infer: Callable[[Any], Any], batches: Sequence[Any], asked: Loadgen, path: Path, callers: int
    ) -> None:
        import itertools
        import threading
        import time

        self.failures: list[BaseException] = []
        self._lg, self._infer, self._batches, self._asked = lg, infer, batches, asked
        self._notes, self._clock, self._number = notes(path), time.perf_counter_ns, itertools.count()
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._callers = callers
        self._threads = threading.Thread(target=together, args=(self._work, callers)) if callers > 1 else None
        self._begin: int | None = None

    def start(self) -> None:
        if self._threads is not None:
            self._threads.start()

    def stop(self) -> None:
        if self._threads is not None:
            for _ in range(self._callers):
                self._waiting.put(None)
            self._threads.join()

    def issue(self, samples: Sequence[Any]) -> None:
        arrived = self._clock()
        if self._begin is None:
            self._begin = arrived
        due, step = arrived - self._begin, self._asked.samples
        for start in range(0, len(samples), step):
            part = samples[start : start + step]
            # index and id alone: LoadGen's list does not outlive this call
            query = (next(self._number), due, part[0].index, [sample.id for sample in part])
            if self._threads is None:
                self._answer(*query)
            else:
                self._waiting.put(query)

    def _work(self) -> None:
        while (query := self._waiting.get()) is not None:
            self._answer(*query)

    def _answer(self, number: int, due: int, index: int, ids: Sequence[int]) -> None:
        times = None
        done = [self._lg.QuerySampleResponse(id, 0, 0) for id in ids]
        try:
            if not self.failures:  # after one, the rest is only ended
                sent = self._clock()
                self._infer(self._batches[index % len(self._batches)])
                times = (sent, self._clock())
        except BaseException as error:
            self.failures.append(error)
        self._lg.QuerySamplesComplete(done)
        # only now: what is noted before would count in LoadGen's latency
        if times is not None and self._begin is not None and number < len(self._notes):
            self._notes[number, [DUE, SENT, ANSWERED]] = (due, times[0] - self._begin, times[1] - self._begin)
