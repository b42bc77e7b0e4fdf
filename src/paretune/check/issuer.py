"""Sends queries to an opened runner when a schedule says so, and notes when; runs in the measuring child.

The notes are rows of three whole numbers in a file that is mapped into memory, so that what was answered is known
whatever becomes of the process: nanoseconds from the beginning at which a query was due, was sent, and was answered.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DUE, SENT, ANSWERED = range(3)
Notes = np.ndarray[Any, np.dtype[np.int64]]


def notes(path: Path) -> Notes:
    """The file's rows, int64 [queries, 3], shared with whoever else maps it; an answer at 0 is none."""
    return np.memmap(path, np.int64, "r+").reshape(-1, 3)


def closed(infer: Callable[[Any], Any], batches: Sequence[Any], into: Notes, seconds: float, count: int) -> int:
    """Send each query as soon as the one before is answered, for ``seconds`` and ``count`` queries; how many were."""
    clock = time.perf_counter_ns
    limit, now, number = int(seconds * 1e9), 0, 0
    begin = clock()
    while (number < count or now < limit) and number < len(into):
        inputs = batches[number % len(batches)]
        sent = clock() - begin
        infer(inputs)
        now = clock() - begin
        into[number] = (sent, sent, now)
        number += 1
    return number


def due(infer: Callable[[Any], Any], batches: Sequence[Any], into: Notes, callers: int, limit_s: float) -> None:
    """Send each query when it is due, or when one of ``callers`` is free again; none after ``limit_s``."""
    sharpen()
    clock = time.perf_counter_ns
    times: list[int] = into[:, DUE].tolist()
    following = itertools.count()
    failures: list[BaseException] = []
    limit = int(limit_s * 1e9)
    begin = clock()

    def call() -> None:
        try:
            while not failures and (number := next(following)) < len(times):
                wait = times[number] - (clock() - begin)
                if wait > 0:
                    time.sleep(wait / 1e9)
                sent = clock() - begin
                if sent > limit:
                    return
                infer(batches[number % len(batches)])
                into[number, 1:] = (sent, clock() - begin)
        except BaseException as error:
            failures.append(error)

    together(call, callers)
    if failures:
        raise failures[0]


def together(call: Callable[[], None], callers: int) -> None:
    """Run ``call`` in as many threads, the first of them this one, until all return."""
    threads = [threading.Thread(target=call) for _ in range(callers - 1)]
    for thread in threads:
        thread.start()
    call()
    for thread in threads:
        thread.join()


def sharpen() -> None:
    """Let this thread's sleeps (and those of threads it starts) end when they should.

    Linux lets them end 50 µs late to save wake-ups, which would be charged to a runner that answers in as much.
    """
    if sys.platform == "linux":
        import ctypes

        pr_set_timerslack = 29
        ctypes.CDLL(None).prctl(pr_set_timerslack, 1, 0, 0, 0)
