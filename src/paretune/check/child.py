"""The process in which an artefact is opened and run: ``python -m paretune.check.child CPUS PARENT``.

It only infers, arrays in and arrays out; scores are computed where the user's callables live. Requests and answers are
one JSON document a line. Nothing but numpy and the runtime is loaded, and the affinity is set before either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paretune.check.meter import Meters


def _isolate(cpus: str, parent: int) -> None:
    """Die with the parent, and run only on the given CPUs. Linux only; elsewhere neither is guaranteed."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})


def memory() -> dict[str, int | None]:
    """Peak and present resident memory in bytes (VmHWM, VmRSS, and its anonymous and file-backed parts)."""
    names = {"VmHWM": "peak_bytes", "VmRSS": "rss_bytes", "RssAnon": "anon_bytes", "RssFile": "file_bytes"}
    found: dict[str, int | None] = dict.fromkeys(names.values())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                found[names[name]] = int(rest.split()[0]) * 1024
    except OSError:
        import psutil

        info = psutil.Process().memory_info()
        found.update(peak_bytes=getattr(info, "peak_wset", info.rss), rss_bytes=info.rss)
    return found


def anonymous() -> int | None:
    """Resident anonymous memory in bytes, to the page where the kernel walks them (a process's own counters lag)."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return memory()["anon_bytes"]


class _Session:
    """What one child holds: an opened runner and the feeds it was shown."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.runner: Any = None
        self.feeds: dict[str, list[Any]] = {}
        self.callers = 1
        self.warmed = 0
        self.meters = Meters()
        self.commands = {
            "open": self.open, "time": self.time, "infer": self.infer, "soak": self.soak, "load": self.load,
            "loadgen": self.loadgen, "strain": self.strain,
        }  # fmt: skip

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        import importlib

        from paretune.ask import plugin
        from paretune.ask.artifact import Artifact
        from paretune.ask.knob import make
        from paretune.ask.target import Settings

        if request["origin"]:
            import cloudpickle  # written by the parent for this child alone, never from a store or a bundle

            with Path(request["origin"]).open("rb") as file:
                origin = cloudpickle.load(file)
        else:
            origin = None
        kind = plugin.load("targets", request["target"])
        plugin.require(kind, request["target"])
        for module in kind.needs:
            importlib.import_module(module)
        imported = memory()["rss_bytes"]
        described = Artifact.describe_from(request["artifact"], Path(request["root"]))
        artifact = Artifact(**{**vars(described), "origin": origin})
        started = time.perf_counter()
        target = make(kind, request["options"], request["target"])
        settings = Settings(request["threads"], request["batch"])
        self.runner = self.stack.enter_context(target.open(artifact, settings))
        self.callers = int(getattr(self.runner, "callers", 1))
        self.meters = Meters(tuple(getattr(self.runner, "gpus", ())))
        return {"callers": self.callers, "import_bytes": imported, "seconds": time.perf_counter() - started}

    def batches(self, root: str) -> list[Any]:
        from paretune.check.feed import Feed

        if root not in self.feeds:
            self.feeds[root] = Feed(Path(root)).read()
        return self.feeds[root]

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Latencies (ms) of at least ``count`` inferences within about ``seconds``, after discarding the first ones."""
        batches = self.batches(request["feed"])
        self._warm(batches, request["warm_s"], request["warm_count"])
        timed = self._time_callers if self.callers > 1 else self._time_one
        begun = self.meters.read()
        found = timed(batches, request["seconds"], request["count"])
        return {**found, "spent": dataclasses.asdict(self.meters.since(begun))}

    def _time_one(self, batches: list[Any], seconds: float, count: int) -> dict[str, Any]:
        latencies: list[float] = []
        begin = time.perf_counter_ns()
        limit = begin + int(seconds * 1e9)
        now = begin
        while len(latencies) < count or now < limit:
            inputs = batches[len(latencies) % len(batches)]
            start = time.perf_counter_ns()
            self.runner.infer(inputs)
            now = time.perf_counter_ns()
            latencies.append((now - start) / 1e6)
        return {"latencies_ms": latencies, "elapsed_s": (now - begin) / 1e9}

    def _warm(self, batches: list[Any], seconds: float, count: int) -> None:
        limit = time.perf_counter() + seconds
        done = 0
        while done < count or time.perf_counter() < limit:
            self.runner.infer(batches[done % len(batches)])
            done += 1
        self.warmed = done

    def _time_callers(self, batches: list[Any], seconds: float, count: int) -> dict[str, Any]:
        latencies: list[float] = []
        failures: list[BaseException] = []
        begin = time.perf_counter_ns()
        limit = begin + int(seconds * 1e9)

        def call(offset: int) -> None:
            done, now = 0, begin
            try:
                while done * self.callers < count or now < limit:
                    start = time.perf_counter_ns()
                    self.runner.infer(batches[(done + offset) % len(batches)])
                    now = time.perf_counter_ns()
                    latencies.append((now - start) / 1e6)
                    done += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(self.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return {"latencies_ms": latencies, "elapsed_s": (time.perf_counter_ns() - begin) / 1e9}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Queries sent as a schedule says, their times noted in a shared file; see :mod:`paretune.check.issuer`."""
        from paretune.check import issuer

        batches = self.batches(request["feed"])
        self._warm(batches, request["warm_s"], request["warm_count"])
        into = issuer.notes(Path(request["notes"]))
        if request["closed"]:
            issuer.closed(self.runner.infer, batches, into, request["seconds"], request["count"])
        else:
            issuer.due(self.runner.infer, batches, into, self.callers, request["limit_s"])
        return {}

    def loadgen(self, request: dict[str, Any]) -> dict[str, Any]:
        """Queries sent by MLCommons' LoadGen; see :mod:`paretune.check.loadgen`."""
        from paretune.check import loadgen

        batches = self.batches(request["feed"])
        self._warm(batches, request["warm_s"], request["warm_count"])
        asked = loadgen.Loadgen(**request["asked"])
        infer = loadgen.null(self.runner.infer(batches[0]), asked.pace_s) if asked.null else self.runner.infer
        loadgen.answer(infer, batches, asked, Path(request["out"]), self.callers)
        return {}

    def soak(self, request: dict[str, Any]) -> dict[str, Any]:
        """Anonymous memory (bytes) after so many inferences of one batch, at about 60 evenly spaced points.

        ``count`` inferences, or as many as fit in ``seconds``; it also ends when ``most_bytes`` were gained.
        """
        batch = self.batches(request["feed"])[:1]
        began = time.perf_counter()
        self._warm(batch, 0.2, 10)
        probed = time.perf_counter()
        self._warm(batch, 0.05, 3)
        pace = (time.perf_counter() - probed) / self.warmed
        step = max(1, int(min(request["count"], request["seconds"] / pace) / 60))
        done, limit = 0, began + request["seconds"]
        found: dict[str, list[Any]] = {"inferences": [], "anon_bytes": []}
        first, stopped = anonymous(), False
        while done < request["count"] and time.perf_counter() < limit:
            self._warm(batch, 0.0, step)
            done += step
            found["inferences"].append(done)
            found["anon_bytes"].append(now := anonymous())
            if first is not None and now is not None and now - first > request["most_bytes"]:
                stopped = True
                break
        return {**found, "elapsed_s": time.perf_counter() - began, "stopped": stopped}

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run every batch of a feed once and write each output, batches end to end, as ``N.npy``."""
        import numpy as np

        from paretune.check.feed import Feed

        def answers() -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
            for batch in self.batches(request["feed"]):
                answer = self.runner.infer(batch)
                if not isinstance(answer, tuple) or not all(isinstance(part, np.ndarray) for part in answer):
                    raise TypeError("infer did not return a tuple of arrays")
                if any(part.dtype.kind not in "biufc" for part in answer):
                    raise TypeError(f"answers of dtype {', '.join(part.dtype.name for part in answer)} are no numbers")
                if any(part.ndim == 0 or len(part) != len(batch[0]) for part in answer):
                    shapes = [part.shape for part in answer]
                    raise ValueError(f"answers of shape {shapes} to a batch of {len(batch[0])} examples")
                yield answer

        Feed.write(answers(), Path(request["out"]))
        return {}

    def strain(self, request: dict[str, Any]) -> dict[str, Any]:
        """Unusual questions; see :func:`paretune.check.stress.strain`."""
        from paretune.check.stress import strain

        return strain(self.runner, request)


def main() -> None:
    """Answer requests until the input ends."""
    _isolate(sys.argv[1], int(sys.argv[2]))
    # what runtimes print must not mix with the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session = _Session()
    with session.stack:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                command = request["command"]
                if command == "memory":
                    answer: dict[str, Any] = dict(memory())
                else:
                    answer = session.commands[command](request)
                answers.write(json.dumps({"ok": True, **answer}) + "\n")
            except Exception as error:
                import traceback

                traceback.print_exc()
                text = " ".join(str(error).split())[:400]
                answers.write(json.dumps({"ok": False, "error": f"{type(error).__name__}: {text}"}) + "\n")


if __name__ == "__main__":
    main()
