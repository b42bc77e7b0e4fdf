"""What a measuring child does when it is asked unusual questions: arrays laid out oddly, several callers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paretune.check.feed import Arrays, Feed

Array = np.ndarray[Any, Any]


def _strided(array: Array) -> Array:
    """Every second element of a wider array: the last axis is not contiguous."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _readonly(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _misaligned(array: Array) -> Array:
    """One byte past where the processor would like it."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    shifted = raw[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


LAYOUTS: Mapping[str, Callable[[Array], Array]] = {
    "plain": lambda array: array,
    "fortran": np.asfortranarray,
    "strided": _strided,
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "readonly": _readonly,
    "misaligned": _misaligned,
}
"""Name → the same values, laid out otherwise in memory."""


def strain(runner: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run every batch of a feed ``rounds`` times in each of ``callers`` threads at once.

    The first caller's first answers are written to ``out``. Returned are all latencies (ms), the seconds that passed,
    and ``worst``: the largest distance between two answers to the same batch (infinite for other shapes or dtypes).
    """
    lay = LAYOUTS[request["layout"]]
    batches = [tuple(map(lay, batch)) for batch in Feed(Path(request["feed"])).read()]
    callers, rounds = int(request["callers"]), int(request["rounds"])
    answers: list[list[Arrays]] = [[] for _ in range(callers)]
    latencies: list[float] = []
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for _ in range(rounds):
                for batch in batches:
                    start = time.perf_counter()
                    answer = runner.infer(batch)
                    latencies.append((time.perf_counter() - start) * 1e3)
                    answers[number].append(tuple(np.array(part) for part in answer))
        except BaseException as error:
            failures.append(error)

    begin = time.perf_counter()
    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, callers)]
    for thread in threads:
        thread.start()
    call(0)
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begin
    if failures:
        raise failures[0]
    first = answers[0][: len(batches)]
    worst = max(
        (distance(first[place % len(batches)], answer) for mine in answers for place, answer in enumerate(mine)),
        default=0.0,
    )
    Feed.write(first, Path(request["out"]))
    return {"latencies_ms": latencies, "elapsed_s": elapsed, "worst": worst if np.isfinite(worst) else None}


def distance(ones: Sequence[Array], others: Sequence[Array]) -> float:
    """The largest absolute difference between two answers; infinite where shapes differ or only one is a number."""
    if len(ones) != len(others):
        return float("inf")
    worst = 0.0
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape:
            return float("inf")
        a, b = one.astype(np.float64), other.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            apart = np.where(same, 0.0, np.abs(a - b))
        worst = max(worst, float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0)))
    return worst
