"""Scores of a whole set (F1, AUC, correlation, RMSE, mAP), bounded by leaving parts of the set out.

Tukey's jackknife (Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 11): leaving an example out
gives its pseudo-value, how much it adds to the score, and the interval is the score interval of the pseudo-values' mean
(:func:`~paretune.check.score_interval.of_mean`). A metric that jumps when one example leaves (a median) is bounded well
only in parts of many examples. There are no bounds where the metric is not defined without one of the parts, such as
the AUC of two classes when all examples of one are in that part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.check.score_interval import of_mean
from paretune.check.statistics import Estimate
from paretune.errors import DataError, MeasureError, ParetuneError

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], Any]
PARTS = 200
"""Most parts that are left out in turn; larger sets are left out in parts of several examples."""
SPOILT = 20
"""Examples whose answer is spoilt in turn."""


@dataclass(frozen=True, eq=False)
class Whole:
    """A score of ``count`` examples: of all of them, and ``without`` each part in turn [parts], NaN where undefined.

    ``spoilt`` is how far one wrong answer was seen to move it, NaN where none could be made up, and ``best`` the most
    that the score can be, None where it has no such end.
    """

    value: float
    without: Array
    count: int
    spoilt: float = math.nan
    best: float | None = None

    @property
    def bounded(self) -> bool:
        return len(self.without) > 1 and bool(np.isfinite(self.without).all())

    @property
    def reach(self) -> float:
        """How far the pseudo-value of something not yet seen may lie: as of a part with one wrong answer more."""
        return len(self.without) * self.spoilt


def leave_out(
    metric: Metric,
    kept: Array,
    labels: Array,
    where: str,
    best: float | None = None,
    parts: int = PARTS,
    seed: int = 0,
) -> Whole:
    """The score of a set, of the set without each of its parts, and with one answer spoilt.

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
    kept, labels = kept.copy(), labels.copy()
    kept.flags.writeable = labels.flags.writeable = False  # a metric that sorts in place would spoil what follows
    chosen = _parts(len(kept), parts, seed) if len(kept) > 1 else []
    without = np.full(len(chosen), math.nan)
    keep = np.ones(len(kept), bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not defined is NaN, which is seen to
        value = _value(metric, kept, labels, where)
        for number, part in enumerate(chosen):
            keep[part] = False
            without[number] = _or_nan(metric, kept[keep], labels[keep])
            keep[part] = True
        moved = [abs(_or_nan(metric, wrong, labels) - value) for wrong in _spoilt(kept, labels)]
    known = [size for size in moved if math.isfinite(size)]
    return Whole(value, without, len(kept), max(known, default=math.nan), best)


def whole(of: Whole, confidence: float = 0.95) -> Estimate:
    """The score with its two-sided interval, in the metric's own unit."""
    low, high = _ends(of.value, of.without, of.reach, confidence) if of.bounded else (-math.inf, math.inf)
    return Estimate(of.value, low, high if of.best is None else max(of.value, min(high, of.best)))


def whole_drop(baseline: Whole, trial: Whole, unit: str = "pp", confidence: float = 0.95) -> Estimate:
    """Baseline score minus trial score over the same examples, with a two-sided interval.

    ``unit`` is ``pp`` (difference × 100) or ``%`` (of the baseline's score). Each part is left out of both sides at
    once, so that only what changed counts. Where no part counts differently, what is not seen may reach as far as one
    wrong answer moves either side. NaN without bounds for a share of a score that is 0.

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
    if not baseline.bounded or not trial.bounded or not scales.all():
        return Estimate(100 * value, -math.inf, math.inf)
    reach = max(baseline.reach, trial.reach) / scale
    low, high = _ends(value, (baseline.without - trial.without) / scales, reach, confidence)
    return Estimate(100 * value, 100 * low, 100 * high)


def _ends(value: float, without: Array, reach: float, confidence: float) -> tuple[float, float]:
    """The interval of ``value`` from what it is without each part; ``reach`` where they are all alike."""
    number = len(without)
    # pseudo-values less the value itself
    counts = (number - 1) * (value - without)
    apart = counts - counts.mean()
    # a metric's rounding is no difference
    if np.ptp(counts) <= 1e-9 * max(reach if math.isfinite(reach) else 0.0, (number - 1) * abs(value)):
        if not reach > 0:  # nothing differs, and no wrong answer is known to count
            return -math.inf, math.inf
        apart = np.zeros(number)
    low, high = of_mean(apart, confidence, reach)
    return value + low, value + high


def _parts(count: int, most: int, seed: int) -> list[Array]:
    """The examples, in parts of (nearly) the same size."""
    size = math.ceil(count / most)
    places = np.arange(count) if size == 1 else np.random.default_rng(seed).permutation(count)
    return np.array_split(places, math.ceil(count / size))


def _spoilt(kept: Array, labels: Array) -> Iterator[Array]:
    """The answers with one of them made that of an example with another label, for examples of all kinds of labels."""
    truth = labels.reshape(len(labels), -1)[:, :8]  # enough to tell kinds apart
    order = np.lexsort(truth.T[::-1])
    _, first = np.unique(truth, axis=0, return_index=True)
    rest = order[np.linspace(0, len(order) - 1, SPOILT).astype(int)]
    for place in dict.fromkeys([*first[:SPOILT].tolist(), *rest.tolist()]):
        # of all labels, the one furthest off in order
        other = order[-1] if (truth[order[0]] == truth[place]).all() else order[0]
        if (truth[other] != truth[place]).any():
            wrong = kept.copy()
            wrong[place] = kept[other]
            yield wrong


def _or_nan(metric: Metric, kept: Array, labels: Array) -> float:
    """The metric of a part of the set, NaN where it is not defined there."""
    try:
        return float(metric(kept, labels))
    except Exception:  # of the whole set it was a number: a class that is missing, say
        return math.nan


def _value(metric: Metric, kept: Array, labels: Array, where: str) -> float:
    try:
        value = float(metric(kept, labels))
    except ParetuneError:
        raise
    except Exception as error:
        raise DataError(f"failed: {error!r}", where=where, do="return one number for the whole set") from error
    if not math.isfinite(value):
        raise MeasureError(
            f"is {value} for the whole set of {len(labels):,} examples", where=where,
            do="look whether all classes are there, and whether the answers differ at all",
        )  # fmt: skip
    return value
