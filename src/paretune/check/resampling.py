"""Set-level metrics (F1, AUC, correlation, RMSE, mAP): one number for a whole set, bounded by leaving parts out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paretune.check.score_interval import of_mean
from paretune.check.statistics import Estimate
from paretune.errors import DataError

Array = np.ndarray[Any, Any]
Metric = Callable[[Any, Any], float]
PARTS = 1000
"""Most parts that are left out in turn; larger sets are left out in parts of several examples."""


def set_drop(
    metric: Metric,
    baseline_outputs: Any,
    trial_outputs: Any,
    labels: Any,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "pp",
    parts: int = PARTS,
) -> Estimate:
    """Baseline metric minus trial metric over the same examples, in ``unit``, with a two-sided interval at ``level``.

    Parameters
    ----------
    metric
        (outputs, labels) → one number for the set, higher is better.
    baseline_outputs, trial_outputs, labels
        Arrays with examples on their first axis, or tuples, lists or dicts of such arrays.
    seed
        Which examples are left out together, where there are more than ``parts``.
    unit
        ``pp`` (difference × 100) or ``%`` (of the baseline's metric).

    The paired jackknife (Tukey; Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 11): leaving the
    same example out of both sides gives its pseudo-value, how much it adds to the difference, and the interval is the
    score interval of their mean (:func:`~paretune.check.score_interval.of_mean`). Two calls of ``metric`` a part. A
    metric that jumps when one example leaves (a median) is bounded well only in parts of many examples. Where no
    example counts differently, what is not seen may reach as far as one counts in the baseline's metric. Without bounds
    where the metric of a part of the set is not defined, such as AUC when all of one class are left out.

    Raises
    ------
    DataError
        If the sides do not have equally many examples, or the metric fails or gives no finite number for the whole set.
    """
    count = _length(labels)
    for name, outputs in (("baseline outputs", baseline_outputs), ("trial outputs", trial_outputs)):
        if _length(outputs) != count:
            raise DataError(f"there are {_length(outputs)} for {count} labels", where=name)
    ours, theirs = (_value(metric, outputs, labels) for outputs in (baseline_outputs, trial_outputs))
    scale = abs(ours) if unit == "%" else 1.0
    if scale == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    value = (ours - theirs) / scale
    if count < 2:
        return Estimate(100 * value, -math.inf, math.inf)
    left_out = _left_out(metric, baseline_outputs, trial_outputs, labels, _parts(count, parts, seed))
    if not np.isfinite(left_out).all():
        return Estimate(100 * value, -math.inf, math.inf)
    base, trial = left_out.T
    number = len(base)
    scales = np.abs(base) if unit == "%" else np.ones(number)
    if not scales.all():
        return Estimate(100 * value, -math.inf, math.inf)
    # pseudo-value less the value itself
    counts = (number - 1) * (value - (base - trial) / scales)
    reach = (number - 1) * float(np.ptp(base)) / scale
    # a metric's rounding is no difference
    apart = counts - counts.mean() if np.ptp(counts) > 1e-9 * reach else np.zeros(number)
    low, high = of_mean(apart, level, reach)
    return Estimate(100 * value, 100 * (value + low), 100 * (value + high))


def _parts(count: int, most: int, seed: int) -> list[Array]:
    """The examples, in parts of (nearly) the same size."""
    size = math.ceil(count / most)
    places = np.arange(count) if size == 1 else np.random.default_rng(seed).permutation(count)
    return np.array_split(places, math.ceil(count / size))


def _left_out(metric: Metric, ours: Any, theirs: Any, labels: Any, parts: list[Array]) -> Array:
    """The metric of both sides without each part [parts, 2]; NaN where it is not defined."""
    found = np.full((len(parts), 2), math.nan)
    keep = np.ones(_length(labels), bool)
    for number, part in enumerate(parts):
        keep[part] = False
        truth = _take(labels, keep)
        for side, outputs in enumerate((ours, theirs)):
            try:
                found[number, side] = float(metric(_take(outputs, keep), truth))
            except (ValueError, ZeroDivisionError, ArithmeticError):
                return found
        keep[part] = True
    return found


def _value(metric: Metric, outputs: Any, labels: Any) -> float:
    where = f"metric {getattr(metric, '__name__', type(metric).__name__)}"
    try:
        value = float(metric(outputs, labels))
    except Exception as error:
        raise DataError(f"failed: {error!r}", where=where, do="return one number for the whole set") from error
    if not math.isfinite(value):
        raise DataError(f"gave {value}", where=where, do="return one finite number for the whole set")
    return value


def _take(values: Any, keep: Array) -> Any:
    if isinstance(values, Mapping):
        return {name: _take(one, keep) for name, one in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_take(one, keep) for one in values)
    return np.asarray(values)[keep]


def _length(values: Any) -> int:
    while isinstance(values, Mapping | tuple | list):
        values = next(iter(values.values())) if isinstance(values, Mapping) else values[0]
    return len(np.asarray(values))
