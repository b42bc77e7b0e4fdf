"""A child process with one opened artefact: started clean, stopped while others are timed, killed when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cloudpickle

from paretune.ask.artifact import Artifact
from paretune.ask.knob import values_of
from paretune.ask.target import Target
from paretune.check.feed import Arrays, Feed
from paretune.check.load import CutError, Schedule, Trace
from paretune.check.machine import spread_cpus
from paretune.errors import MeasureError

_MALLOC = {
    # glibc otherwise gives large tensors back to the system after every inference, and eager swings up to twofold
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
OPEN_TIMEOUT_S = 300.0
SOAK_MOST_BYTES = 1 << 30
"""A runner that gained so much leaks beyond doubt, and would only harm the machine."""


class Child:
    """One artefact opened on one target, for one batch size, in a process of its own.

    Parameters
    ----------
    artifact, target
        What to open, and with what.
    threads
        CPU threads it may use; it is bound to as many CPUs.
    batch
        The batch size it is opened for (a ragged last batch must run all the same).
    scratch
        Where its private files go while it lives; None: the system's temporary directory.
    wait
        Whether to wait until it is open; otherwise :meth:`opened` must be called before anything else, and several
        children open side by side meanwhile.
    spare
        CPUs that it is bound to besides, for threads that are not the runtime's: a load generator's.

    Raises
    ------
    MeasureError
        If it cannot be opened, dies or does not answer in time; the process is ended then.
    """

    def __init__(
        self,
        artifact: Artifact,
        target: Target,
        threads: int,
        batch: int,
        scratch: Path | None = None,
        wait: bool = True,
        spare: int = 0,
    ) -> None:
        self.target, self.batch = target, batch
        self._private = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{os.getpid()}-paretune-child-"))
        self._answers: queue.Queue[str] = queue.Queue()
        self._stopped = False
        try:
            self._start(threads, spare)
            self._send(
                "open",
                artifact=artifact.describe(),
                root=str(artifact.root.resolve()),
                origin=self._ship(artifact.origin),
                target=target.name,
                options=dict(values_of(target)),
                threads=threads,
                batch=batch,
            )
        except BaseException:
            self.close()
            raise
        if wait:
            self.opened()

    def opened(self) -> None:
        """Wait until it is open; from then on it stands stopped between calls."""
        try:
            with self._running():
                told = self._receive("open", OPEN_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        self.callers = int(told["callers"])
        self.import_bytes: int | None = told["import_bytes"]
        self.open_s = float(told["seconds"])

    def _start(self, threads: int, spare: int) -> None:
        cpus = spread_cpus()[: threads + spare] if sys.platform == "linux" else []
        environment = {
            **os.environ,
            **_MALLOC,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(self._private),  # what a runtime leaves there goes when the child goes
        }
        self._errors = (self._private / "stderr").open("wb")
        command = [sys.executable, "-m", "paretune.check.child", ",".join(map(str, cpus)), str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")

    def _ship(self, origin: object) -> str | None:
        """A user's live model crosses in a private file of this child alone."""
        if origin is None:
            return None
        path = self._private / "origin"
        try:
            path.write_bytes(cloudpickle.dumps(origin))
        except Exception as error:
            raise MeasureError(
                f"the model cannot be sent to the measuring process: {error}",
                where=type(origin).__qualname__,
                do="keep locks, open files and generators out of the module's attributes",
            ) from error
        return str(path)

    def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        with self._running():
            self._send(command, **arguments)
            return self._receive(command, timeout_s)

    def _send(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it died, or was ended before: no answer will tell
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()

    def _receive(self, command: str, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            late = MeasureError(f"hangs: no answer to {command!r} within {timeout_s:.0f} s", where=self.target.name)
            late.passing = True
            raise late from None
        if not line.endswith("\n"):  # nothing, or half an answer
            self._answers.put("")  # whoever asks again is told the same
            died = MeasureError(self._last_words(command), where=self.target.name)
            # the system's way of ending what takes too much memory
            died.passing = self._process.poll() == -9 or _lacks_memory(str(died))
            self.close()
            raise died
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            failed = MeasureError(f"{command} failed: {answer['error']}", where=self.target.name)
            failed.passing = _lacks_memory(answer["error"])
            raise failed
        return answer

    def _last_words(self, command: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        code = self._process.poll()
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        said = [line for line in self._said().splitlines() if line.strip()]
        return f"the measuring process {how} during {command!r}" + (f": {said[-1].strip()[:300]}" if said else "")

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return (self._private / "stderr").read_text(errors="replace")
        return ""

    def time(self, feed: Feed, seconds: float, count: int, warm_s: float) -> dict[str, Any]:
        """One block of latencies; see :meth:`paretune.check.child._Session.time`."""
        return self.call(
            "time", 120 + 20 * seconds + 20 * count, feed=str(feed.root), seconds=seconds, count=count,
            warm_s=warm_s, warm_count=2,
        )  # fmt: skip

    def load(self, feed: Feed, schedule: Schedule, notes: Path, warm_s: float = 0.3, patience_s: float = 120) -> Trace:
        """Send queries as a schedule says; the times are noted in the file ``notes`` while they are taken.

        Raises
        ------
        CutError
            If the process dies or does not end in time; it holds what was answered until then.
        """
        schedule.lay(notes)
        closed = schedule.due_ns is None
        wait_s = patience_s + (2 * schedule.seconds if closed else schedule.limit_s)
        try:
            self.call(
                "load", wait_s, feed=str(feed.root), notes=str(notes), closed=closed, seconds=schedule.seconds,
                count=schedule.count, limit_s=None if closed else schedule.limit_s, warm_s=warm_s, warm_count=3,
            )  # fmt: skip
        except MeasureError as error:
            raise CutError.short(error, Trace.read(notes, schedule, self.callers)) from error
        return Trace.read(notes, schedule, self.callers)

    def infer(self, feed: Feed, out: Path, timeout_s: float) -> list[Arrays]:
        """The answers to every batch of a feed."""
        self.call("infer", timeout_s, feed=str(feed.root), out=str(out))
        return Feed(out).read()

    def soak(self, feed: Feed, count: int, seconds: float) -> dict[str, Any]:
        """Anonymous memory while one batch is inferred on and on; see :meth:`paretune.check.child._Session.soak`."""
        return self.call(
            "soak", 120 + 20 * seconds, feed=str(feed.root), count=count, seconds=seconds, most_bytes=SOAK_MOST_BYTES
        )

    def memory(self) -> dict[str, int | None]:
        """Peak and present memory of the process, in bytes."""
        return self.call("memory", 60)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The idle child is stopped: a runtime's spinning threads would be charged to the next one otherwise."""
        if self._stopped and hasattr(signal, "SIGCONT"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._stopped = False
        try:
            yield
        finally:
            # where there is no SIGSTOP (Windows) idle children go on spinning, and ratios are noisier
            if hasattr(signal, "SIGSTOP") and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGSTOP)
                self._stopped = True

    def close(self) -> None:
        """End the process and remove its private files."""
        process = getattr(self, "_process", None)
        if process is not None:
            with contextlib.suppress(OSError):
                # what it started lives in its session and would outlive it; a reaped number may be another's by now
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        if hasattr(self, "_errors"):
            self._errors.close()
        shutil.rmtree(self._private, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lacks_memory(text: str) -> bool:
    """Whether a failure is for want of memory, which the machine may have another time."""
    return any(sign in text for sign in ("MemoryError", "bad_alloc", "bad allocation", "can't allocate memory"))
