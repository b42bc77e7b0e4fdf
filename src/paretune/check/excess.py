"""Excess: what a scenario costs a candidate beyond what it costs the original, and whether that is tolerable.

Both models see the same examples, clean and changed. For every example the *excess drop* is

    (original changed − candidate changed) − (original clean − candidate clean):

a candidate that is a point worse everywhere has none, one that gives way only under noise has it under noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from paretune.check.holm import step_down
from paretune.check.score_interval import of_mean, paired_shares
from paretune.check.statistics import Estimate

Array = np.ndarray[Any, Any]
Ruling = Literal["holds", "breaks", "undecided"]


@dataclass(frozen=True)
class Paired:
    """One score of each example [n], of both models, on clean and on changed data."""

    original: Array
    candidate: Array
    original_changed: Array
    candidate_changed: Array

    @property
    def values(self) -> Array:
        """The excess drop of every example, in the score's own unit."""
        found: Array = (self.original_changed - self.candidate_changed) - (self.original - self.candidate)
        return found

    @property
    def scores(self) -> Array:
        """All scores, for the range that they move in."""
        return np.concatenate([self.original, self.candidate, self.original_changed, self.candidate_changed])


@dataclass(frozen=True)
class Excess:
    """The mean excess drop in ``unit``, and what follows at the stated tolerance.

    ``estimate`` has the interval that decided, corrected within the family. ``more`` is about how many further examples
    would decide; None when it is decided, or the value lies on the limit itself.
    """

    estimate: Estimate
    unit: str
    verdict: Ruling
    more: int | None

    def describe(self) -> dict[str, Any]:
        return {**self.estimate.describe(), "unit": self.unit, "verdict": self.verdict, "more_examples": self.more}


def unit_of(scores: Array) -> str:
    """``pp`` for scores between 0 and 1, else ``%`` of the original's mean on the changed data."""
    return "pp" if scores.min() >= 0 and scores.max() <= 1 else "%"


def judged(pairs: Mapping[str, Paired], tolerance: float, confidence: float = 0.95) -> dict[str, Excess]:
    """Verdicts on one family of scenarios.

    Each scenario is tested against ``tolerance`` (in pp, or % where scores are not between 0 and 1) on both sides:
    it ``breaks`` when its excess is above, and ``holds`` when it is below. Either kind of verdict is corrected on its
    own by Holm's step-down procedure (:mod:`paretune.check.holm`) at half the allowed error, so the chance that any
    verdict in the family is wrong is at most 1 − ``confidence``.

    An interval is that of paired shares where each example's excess is −1, 0 or 1, and the score interval of a mean
    else (:mod:`paretune.check.score_interval`). What no example shows may still be a share of 1 − error^(1/n) of all:
    for scores between 0 and 1 the interval of a mean reaches at least as far.
    """
    found = {name: _Scaled.of(pair) for name, pair in pairs.items()}
    broken = step_down(found, lambda name, level: found[name].at(level)[0] > tolerance, confidence)
    held = step_down(found, lambda name, level: found[name].at(level)[1] < tolerance, confidence)
    verdicts = {}
    for name, one in found.items():
        low, high = one.at(broken[name][1])[0], one.at(held[name][1])[1]
        verdict: Ruling = "breaks" if broken[name][0] else "holds" if held[name][0] else "undecided"
        estimate = Estimate(one.value, min(low, one.value), max(high, one.value))
        # where both corrections are still open, the looser one decides first
        more = None if verdict != "undecided" else _more(one, min(broken[name][1], held[name][1]), tolerance)
        verdicts[name] = Excess(estimate, one.unit, verdict, more)
    return verdicts


def pooled(pairs: Sequence[Paired]) -> Paired:
    """The mean over several scenarios on the same examples: what the family costs as a whole."""
    stacked = [
        np.mean([getattr(pair, name) for pair in pairs], axis=0)
        for name in ("original", "candidate", "original_changed", "candidate_changed")
    ]
    return Paired(*stacked)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The excess of one scenario in its unit, and its interval at any confidence."""

    values: Array
    unit: str
    value: float
    count: int
    reach: float
    known: dict[float, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, pair: Paired) -> _Scaled:
        scores = pair.scores
        unit = unit_of(scores)
        scale = 1.0 if unit == "pp" else abs(float(pair.original_changed.mean())) or math.nan
        values = 100 * pair.values / scale
        reach = 100.0 if unit == "pp" else 100 * float(np.ptp(scores)) / scale
        return cls(values, unit, float(values.mean()), len(values), reach)

    def at(self, level: float, times: float = 1.0) -> tuple[float, float]:
        """The two-sided interval at the confidence ``level``; ``times``: what it would be with so many times the
        examples of the same kind."""
        if level not in self.known:
            self.known[level] = self._interval(level) if math.isfinite(self.value) else (-math.inf, math.inf)
        low, high = self.known[level]
        if times == 1.0 or not math.isfinite(self.value):
            return low, high
        if self._whole:
            return self._shares(level, times)
        return self.value + (low - self.value) / math.sqrt(times), self.value + (high - self.value) / math.sqrt(times)

    def _interval(self, level: float) -> tuple[float, float]:
        if self._whole:
            return self._shares(level)
        low, high = of_mean(self.values, level, self.reach)
        if self.unit == "pp":
            unseen = self._unseen(level)
            low, high = min(low, self.value - unseen), max(high, self.value + unseen)
        return low, high

    @property
    def _whole(self) -> bool:
        """Every example lost a right answer, won one, or neither."""
        return self.unit == "pp" and bool(np.isin(self.values, (-100, 0, 100)).all())

    def _shares(self, level: float, times: float = 1.0) -> tuple[float, float]:
        lost, won = (round(times * np.maximum(sign * self.values, 0).sum() / 100) for sign in (1, -1))
        count = max(round(times * self.count), lost + won)
        low, high = paired_shares(lost, won, count, level)
        return 100 * low, 100 * high

    def _unseen(self, level: float) -> float:
        return self.reach * (1 - float(((1 - level) / 2) ** (1 / self.count)))


def _more(one: _Scaled, level: float, tolerance: float) -> int | None:
    """About how many further examples of the same kind would decide: by bisection, up to ten thousand times as many."""

    def decides(times: float) -> bool:
        low, high = one.at(level, times)
        return low > tolerance or high < tolerance

    few, many = 0.0, 4.0
    if not math.isfinite(one.value) or not decides(10**many):
        return None
    for _ in range(20):
        middle = (few + many) / 2
        few, many = (few, middle) if decides(10**middle) else (middle, many)
    return max(1, math.ceil(one.count * (10**many - 1)))
