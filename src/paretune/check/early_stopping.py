"""What so few queries can promise of a percentile: MLPerf LoadGen's early-stopping rule.

A percentile of a sample is as likely to lie below the true one as above it. The rule counts from above instead: the
``t``-th slowest of ``n`` queries is an upper bound of the ``q`` quantile at confidence ``c`` if ``t`` or fewer of ``n``
queries would lie above that quantile with a probability below ``1 - c`` (a binomial tail). MLCommons, *MLPerf Inference
Rules*, appendix "Early Stopping Criterion", and LoadGen's ``early_stopping.cc``: confidence 99 %, tolerance 0.
Queries count as independent of each other; where they queue, they are not quite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.99


def needed(q: float, over: int = 1, confidence: float = CONFIDENCE) -> int:
    """The fewest queries that prove a bound on the ``q`` quantile although ``over`` of them lie above it.

    With one above, as an estimate takes it: p50 needs 11 queries, p90 64, p95 130, p99 662 and p99.9 6,636.

    Raises
    ------
    ValueError
        If ``q`` or ``confidence`` is not between 0 and 1, or ``over`` is negative.
    """
    if not 0 < q < 1 or not 0 < confidence < 1 or over < 0:
        raise ValueError(f"no early-stopping rule for q={q}, over={over}, confidence={confidence}")
    low, high = over, max(2 * over, 1)
    while not holds(high, over, q, confidence):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle, over, q, confidence) else (middle, high)
    return high


def holds(count: int, over: int, q: float, confidence: float = CONFIDENCE) -> bool:
    """Whether ``count`` queries, ``over`` of them above a bound, prove that the ``q`` quantile lies below it."""
    return bool(stats.binom.cdf(over, count, 1 - q) < 1 - confidence)


def place(count: int, q: float, confidence: float = CONFIDENCE) -> int | None:
    """Which of ``count`` queries, counted from the slowest (1), is the estimate; None: there are too few."""
    above = int(stats.binom.ppf(1 - confidence, count, 1 - q))
    while above > 0 and not holds(count, above, q, confidence):
        above -= 1
    return above or None


def estimate(samples: np.ndarray[Any, Any], q: float) -> float | None:
    """The early-stopping estimate of the ``q`` quantile of samples [n], in their unit; None: there are too few."""
    above = place(len(samples), q)
    return None if above is None else float(np.sort(samples)[len(samples) - above])
