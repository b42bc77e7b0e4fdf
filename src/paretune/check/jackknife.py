"""Scores of a whole set (F1, AUC, correlation, RMSE, mAP), bounded by leaving parts of the set out.

Tukey's jackknife (Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 11): leaving an example out
gives its pseudo-value, how much it adds to the score, and the interval is the score interval of the pseudo-values' mean
(:func:`~paretune.check.score_interval.of_mean`). A metric that jumps when one example leaves (a median) is bounded well
only in parts of many examples. There are no bounds where the metric of a part of the set is not defined, such as AUC
when all of one class are left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.check.score_interval import of_mean
from paretune.check.statistics import Estimate
from paretune.errors import DataError, MeasureError, ParetuneError

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], Any]
PARTS = 1000
"""Most parts that are left out in turn; larger sets are left out in parts of several examples."""


@dataclass(frozen=True, eq=False)
class Whole:
    """A score of ``count`` examples: of all of them, and ``without`` each part in turn [parts], NaN where undefined."""

    value: float
    without: Array
    count: int


def leave_out(metric: Metric, kept: Array, labels: Array, where: str, parts: int = PARTS, seed: int = 0) -> Whole:
    """The score of a set, and of the set without each of its parts.

    Parameters
    ----------
    metric
        (kept, labels) → one number for the set, higher is better.
    kept, labels
        What the metric needs of the outputs, and the truth: examples on the first axis.
    where
        The score's name, for errors.
    seed
        Which examples are left out together, where there are more than ``parts``. Two sides that are to be compared
        need the same examples in the same order, ``parts`` and ``seed``.

    Raises
    ------
    DataError
        If there is not one label for each example, or the metric fails or gives something else than one number.
    MeasureError
        If the number is not finite.
    """
    if len(kept) != len(labels):
        raise DataError(f"there are {len(kept)} answers for {len(labels)} labels", where=where)
    value = _value(metric, kept, labels, where)
    chosen = _parts(len(kept), parts, seed) if len(kept) > 1 else []
    without = np.full(len(chosen), math.nan)
    keep = np.ones(len(kept), bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not defined is NaN, which is seen to
        for number, part in enumerate(chosen):
            keep[part] = False
            try:
                without[number] = float(metric(kept[keep], labels[keep]))
            except (ValueError, ArithmeticError):
                break  # not defined for this part: nothing will be bounded
            keep[part] = True
    return Whole(value, without, len(kept))


def whole(of: Whole, confidence: float = 0.95) -> Estimate:
    """The score with its two-sided interval, in the metric's own unit.

    Where no example counts differently (all are right), what is not seen may count nothing at all, but not more.
    """
    if not _bounded(of):
        return Estimate(of.value, -math.inf, math.inf)
    low, high = _ends(of.value, of.without, abs(of.value), confidence)
    if low < of.value < high and not np.ptp(of.without):
        low, high = (low, of.value) if of.value > 0 else (of.value, high)
    return Estimate(of.value, low, high)


def whole_drop(baseline: Whole, trial: Whole, unit: str = "pp", confidence: float = 0.95) -> Estimate:
    """Baseline score minus trial score over the same examples, with a two-sided interval.

    ``unit`` is ``pp`` (difference × 100) or ``%`` (of the baseline's score). Each part is left out of both sides at
    once, so that only what changed counts. Where no example counts differently, what is not seen may reach as far as
    one counts in the baseline's score. NaN without bounds for a share of a score that is 0.

    Raises
    ------
    DataError
        If the two do not have equally many examples and parts.
    """
    if (baseline.count, len(baseline.without)) != (trial.count, len(trial.without)):
        raise DataError(
            f"there are {trial.count} examples in {len(trial.without)} parts and {baseline.count} in "
            f"{len(baseline.without)} of the baseline", where="trial",
        )  # fmt: skip
    scale = abs(baseline.value) if unit == "%" else 1.0
    if scale == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    value = (baseline.value - trial.value) / scale
    scales = np.abs(baseline.without) if unit == "%" else np.ones(len(baseline.without))
    if not _bounded(baseline) or not _bounded(trial) or not scales.all():
        return Estimate(100 * value, -math.inf, math.inf)
    reach = (len(scales) - 1) * float(np.ptp(baseline.without)) / scale
    low, high = _ends(value, (baseline.without - trial.without) / scales, reach, confidence)
    return Estimate(100 * value, 100 * low, 100 * high)


def _bounded(of: Whole) -> bool:
    return len(of.without) > 1 and bool(np.isfinite(of.without).all())


def _ends(value: float, without: Array, reach: float, confidence: float) -> tuple[float, float]:
    """The interval of ``value`` from what it is without each part; ``reach`` where they are all alike."""
    number = len(without)
    # pseudo-values less the value itself
    counts = (number - 1) * (value - without)
    # a metric's rounding is no difference
    rounding = 1e-9 * max(reach, (number - 1) * abs(value))
    apart = counts - counts.mean() if np.ptp(counts) > rounding else np.zeros(number)
    low, high = of_mean(apart, confidence, reach)
    return value + low, value + high


def _parts(count: int, most: int, seed: int) -> list[Array]:
    """The examples, in parts of (nearly) the same size."""
    size = math.ceil(count / most)
    places = np.arange(count) if size == 1 else np.random.default_rng(seed).permutation(count)
    return np.array_split(places, math.ceil(count / size))


def _value(metric: Metric, kept: Array, labels: Array, where: str) -> float:
    do = "return one number for the whole set"
    try:
        value = float(metric(kept, labels))
    except ParetuneError:
        raise
    except Exception as error:
        raise DataError(f"failed: {error!r}", where=where, do=do) from error
    if not math.isfinite(value):
        raise MeasureError(f"is {value} for the whole set", where=where)
    return value
