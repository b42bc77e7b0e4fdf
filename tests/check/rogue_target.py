"""A target whose runtime misbehaves as asked. The fixture ``rogues`` installs this file like a third party's."""

import contextlib
import ctypes
import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paretune.ask.knob import knob


@dataclass(frozen=True)
class Rogue:
    """Answers the inputs' first three columns, unless ``mode`` says how to fail."""

    name: ClassVar[str] = "rogue"
    accepts: ClassVar = frozenset({"rogue"})
    needs: ClassVar = {}
    reference: ClassVar = False
    cost: ClassVar = 0.1
    mode: str = knob("fine", "how it fails; late_…: it works for a while first")
    factor: float = knob(1.0, "answers are multiplied by it")
    pause_ms: float = knob(0.0, "how long an inference takes at least")
    callers: int = knob(1, "how many callers it wants")
    mark: str = knob("", "a file in which every opening is noted")

    @contextlib.contextmanager
    def open(self, artifact, settings):
        if self.mark:
            with open(self.mark, "a") as file:  # noqa: PTH123
                file.write(f"{os.getpid()} {settings.batch}\n")
        if self.mode == "no_open":
            raise RuntimeError("cannot be\n  opened")
        if self.mode == "hang_open":
            time.sleep(3600)
        yield Runner(self, settings.batch)

    def unavailable(self):
        return None

    @classmethod
    def light(cls, throughput):
        return (cls(),)


class Runner:
    def __init__(self, target, batch):
        self.target, self.mode, self.batch, self.callers = target, target.mode, batch, target.callers
        self.gpus = (0,) if target.mode == "gpu" else ()
        self.calls, self.busy, self.kept = 0, 0, []

    def infer(self, inputs):
        x, mode = inputs[0], self.mode
        self.calls += 1
        self._pause()
        if mode.startswith("late_"):
            mode = mode.removeprefix("late_") if self.calls > 30 else "fine"
        if mode != "lax" and (x.dtype != np.float32 or x.shape[1:] != (4,)):
            raise ValueError("takes float32 [batch, 4]")
        fail(mode)
        self._keep(mode)
        seen = self._with_odd_values(self._with_company(x, mode), mode)
        y = np.ascontiguousarray(seen[..., :3], np.float32) * np.float32(self.target.factor)
        if mode == "own_inputs":
            x[:] = 0
        return shaped(y, mode)

    def _pause(self):
        if self.target.pause_ms and self.mode != "spin":
            time.sleep(self.target.pause_ms / 1e3)
        end = time.thread_time() + self.target.pause_ms / 1e3
        while self.mode == "spin" and time.thread_time() < end:
            pass

    def _keep(self, mode):
        """Memory that it takes and never gives back."""
        if mode == "leak" or (mode == "cache" and len(self.kept) < 1000):
            self.kept.append(bytearray(1000))
        if mode == "allocate" and not self.kept:
            self.kept.append(np.ones(200_000_000 // 8))

    def _with_company(self, x, mode):
        """A row's answer hangs on what else is in its batch, on what came before, or on who asks beside it."""
        if mode == "small" and len(x) > self.batch:
            raise ValueError("batch too large")
        if mode == "alone" and len(x) == 1:
            x = x + 1
        if mode == "scale" and len(x):
            step = np.float32(np.abs(x).max() / 8)
            x = np.round(x / step) * step
        if mode == "drifts":
            x = x + np.float32(self.calls * 0.2)
        if mode == "crowded":
            self.busy += 1
            time.sleep(0.002)
            x = x + (self.busy - 1)
            self.busy -= 1
        return x

    def _with_odd_values(self, x, mode):
        """Numbers that are none, and arrays that cannot be written, do harm."""
        if mode == "writes":
            x *= 1
        if np.isnan(x).any():
            if mode == "dies":
                os._exit(3)
            if mode == "spills":
                x = x * np.float32("nan")
            if mode == "fickle":
                self.mode = "alone"
        return x


def fail(mode):
    """Modes that end the call, the process, or the protocol."""
    if mode == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "exit":
        os._exit(7)
    if mode == "hang":
        time.sleep(3600)
    if mode == "raise":
        raise ValueError("no kernel\n   for this")
    if mode == "say":
        print('{"ok": true, "latencies_ms": [0.0]}', flush=True)
        os.write(1, b"garbage\n")
        ctypes.CDLL(None).puts(b"more")


def shaped(y, mode):
    """The answer, or something that is none."""
    if mode == "environment":
        cpus, threads = len(os.sched_getaffinity(0)), int(os.environ["OMP_NUM_THREADS"])
        y = y * 0 + np.float32([cpus, threads, int(os.environ["MALLOC_MMAP_THRESHOLD_"])])
    return {
        "list": [y], "shape": (y[1:],), "scalar": (np.zeros((), np.float32),), "nan": (y * np.float32("nan"),),
        "inf": (y + np.float32("inf"),), "text": (y.astype(str),), "object": (y.astype(object),),
        "pair": (y, y.sum(axis=1)),
    }.get(mode, (y,))  # fmt: skip
