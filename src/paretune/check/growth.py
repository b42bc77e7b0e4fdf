"""Growth: whether a runner's memory grows while it infers the same batch again and again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from paretune.check.statistics import Estimate

Array = np.ndarray[Any, Any]
Ruling = Literal["leaking", "steady", "undecided"]
INFERENCES = 10_000
"""In a pass, where the time allows it."""
SOAK_S = 60.0
"""The longest pass that a person asks for."""
BRIEF_S = 3.0
"""The longest pass that a run spends on its best candidate."""
FLOOR_BYTES = 128 * 1024
"""Growth over a whole pass that is not called a leak: one step of glibc's heap (M_TOP_PAD, mallopt(3))."""
LEAST = 12
"""Samples below which nothing is said."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Growth:
    """``per_thousand`` is the bytes of anonymous memory gained in a thousand inferences at the end of the pass."""

    verdict: Ruling
    per_thousand: Estimate | None
    inferences: int
    seconds: float
    text: str

    def describe(self) -> dict[str, Any]:
        told = self.per_thousand.describe() if self.per_thousand else None
        return {
            "verdict": self.verdict,
            "bytes_per_thousand": told,
            "inferences": self.inferences,
            "seconds": round(self.seconds, 3),
            "text": self.text,
        }


def growth(done: Sequence[int], anon_bytes: Sequence[int | None], seconds: float) -> Growth:
    """Judge samples of anonymous memory taken after ``done`` inferences, ascending.

    The slope is Theil and Sen's (Sen 1968, *Estimates of the regression coefficient based on Kendall's tau*, JASA 63),
    which single jumps do not move much. It leaks when both halves of the pass grow, each by its whole interval and at a
    pace that is more than one step of the allocator over the pass: caches that fill at the beginning, or one buffer
    that is made larger later, are no leak. It is steady when the second half's whole interval stays below that.
    """
    last = done[-1] if done else 0
    if len(done) < LEAST or any(value is None for value in anon_bytes):
        why = "anonymous memory cannot be read on this system"
        if len(done) < LEAST:
            why = f"{last:,} inferences in {seconds:.0f} s are too few to tell"
        return Growth("undecided", None, last, seconds, f"memory growth is undecided: {why}")
    x, y = np.asarray(done, float), np.asarray(anon_bytes, float)
    middle = len(x) // 2
    early, late = _slope(x[:middle], y[:middle]), _slope(x[middle:], y[middle:])
    allowed = FLOOR_BYTES / (x[-1] - x[0])
    verdict: Ruling = "undecided"
    if all(half.low > 0 and half.value > allowed for half in (early, late)):
        verdict = "leaking"
    elif late.high <= allowed:
        verdict = "steady"
    found = Estimate(*(1000 * end for end in (late.value, late.low, late.high)))
    return Growth(verdict, found, last, seconds, _text(verdict, found, last, seconds, 1000 * allowed))


def _text(verdict: str, found: Estimate, inferences: int, seconds: float, allowed: float) -> str:
    ends = f"{_kilobytes(found.value)} ({_kilobytes(found.low)} … {_kilobytes(found.high)}) in a thousand inferences"
    over = f"over {inferences:,} inferences of one batch in {seconds:.1f} s"
    if verdict == "leaking":
        return f"memory leaks: it grows by {ends}, {over}"
    if verdict == "steady":
        return f"memory is steady: it grows by less than {_kilobytes(allowed)} in a thousand inferences, {over}"
    return f"memory growth is undecided: {ends}, {over}; a longer pass would decide"


def _kilobytes(value: float) -> str:
    return f"{value / 1e3:,.3g} kB"


def _slope(x: Array, y: Array) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # samples that are all alike have no spread to divide by
        value, _, low, high = stats.theilslopes(y, x, CONFIDENCE)
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def growth_of(told: dict[str, Any]) -> Growth:
    """The growth from what a child answered to ``soak``; a pass that it broke off for its growth leaks beyond doubt."""
    done, taken = told["inferences"], told["anon_bytes"]
    if told.get("stopped") and len(done) < LEAST:
        gained = 1000.0 * (taken[-1] - taken[0]) / (done[-1] - done[0]) if len(done) > 1 else math.inf
        found = Estimate(gained, 0.0, math.inf)
        text = f"memory leaks: the pass was broken off after {done[-1]:,} inferences, so fast did it grow"
        return Growth("leaking", found, done[-1], told["elapsed_s"], text)
    return growth(told["inferences"], told["anon_bytes"], told["elapsed_s"])
