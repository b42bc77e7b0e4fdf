"""Power: what drop a held-out set can prove, told before anything is built.

All functions speak of right-or-wrong scores. ``flip_rate`` is the share of examples that only one of the two gets
right, drops and limits are in percentage points (pp), and a limit is proven when the whole interval of
:func:`~paretune.check.statistics.drop` lies at or below it. :func:`provable_limit` and :func:`examples_needed` follow a
formula; :func:`chance_to_prove` sums over all outcomes and is what the formula is checked against.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special, stats

from paretune.check.score_interval import paired_shares, quantile

TYPICAL_DROP = 0.3
"""A small true drop in pp, assumed: what a limit should still be provable at."""
TYPICAL_FLIPS = 0.01
"""A share of flips as INT8 after training has it, assumed with that drop."""
POWER = 0.8
"""The chance with which a proof should succeed."""
MOST_EXAMPLES = 10**9


def half_width(count: int, flip_rate: float, confidence: float = 0.95) -> float:
    """About half the length in pp of the two-sided interval of a drop of 0, from ``count`` examples."""
    return 50 * (_limit(count, flip_rate, 0.0, 0.0, confidence) - _limit(count, flip_rate, 0.0, 0.0, confidence, -1))


def provable_limit(
    count: int, flip_rate: float, true_drop: float = TYPICAL_DROP, power: float = POWER, confidence: float = 0.95
) -> float:
    """The smallest limit in pp that ``count`` examples prove with chance ``power`` when the drop is ``true_drop`` pp.

    A drop cannot exceed the flip rate: with fewer flips, all are losses. Without any flip it is z² / (n + z²): 1 pp
    takes 381 examples at 95 %. Normal approximation to the score test, whose variance is Tango's under the limit
    (1998).
    """
    return 100 * _limit(count, flip_rate, true_drop / 100, float(special.ndtri(power)), confidence)


def examples_needed(
    limit: float, flip_rate: float, true_drop: float = TYPICAL_DROP, power: float = POWER, confidence: float = 0.95
) -> int | None:
    """About how many examples prove ``limit`` pp with chance ``power``; None when no number does (a drop too large)."""

    def enough(count: int) -> bool:
        return provable_limit(count, flip_rate, true_drop, power, confidence) <= limit

    if not enough(MOST_EXAMPLES):
        return None
    below, above = 0, MOST_EXAMPLES
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if enough(middle) else (middle, above)
    return above


def chance_to_prove(
    limit: float, count: int, flip_rate: float, true_drop: float = TYPICAL_DROP, confidence: float = 0.95
) -> float:
    """The exact chance that ``count`` examples prove ``limit`` pp when the drop is ``true_drop`` pp.

    Summed over the number of flips and of losses among them (but one part in 10⁹), with the interval that verdicts use.
    """
    true_drop = _possible(true_drop / 100, flip_rate)
    if flip_rate == 0:
        return float(paired_shares(0, 0, count, confidence)[1] <= limit / 100)
    flips = np.arange(int(stats.binom.ppf(5e-10, count, flip_rate)), int(stats.binom.isf(5e-10, count, flip_rate)) + 1)
    most, losses = -1, []
    for number in flips.tolist():
        # one flip more allows at most one loss more, and never fewer
        while most < number and paired_shares(most + 1, number - most - 1, count, confidence)[1] <= limit / 100:
            most += 1
        while most >= 0 and paired_shares(most, number - most, count, confidence)[1] > limit / 100:
            most -= 1
        losses.append(most)
    share_lost = (flip_rate + true_drop) / (2 * flip_rate)
    chances = stats.binom.pmf(flips, count, flip_rate) * stats.binom.cdf(losses, flips, share_lost)
    return min(1.0, float(chances.sum()))


def _possible(true_drop: float, flip_rate: float) -> float:
    return max(-flip_rate, min(true_drop, flip_rate))


def _limit(count: int, flip_rate: float, true_drop: float, quantile_of_power: float, confidence: float,
           side: int = 1) -> float:  # fmt: skip
    """The share that the test at its boundary just rejects, the observed drop lying a quantile above the true one."""
    z, true_drop = quantile(confidence), _possible(true_drop, flip_rate)
    observed = true_drop + side * quantile_of_power * math.sqrt(max(flip_rate - true_drop**2, 0.0) / count)
    rate = max(flip_rate, abs(observed))
    lost, won = count * (rate + observed) / 2, count * (rate - observed) / 2

    def excess(limit: float) -> float:
        b = -lost - won + (2 * count - lost + won) * limit
        q = (math.sqrt(max(b * b + 8 * count * won * limit * (1 - limit), 0.0)) - b) / (4 * count)
        return side * (limit - observed) * count - z * math.sqrt(max(count * (2 * q + limit * (1 - limit)), 0.0))

    start, stop = observed, side * (1 - 1e-12)
    if excess(stop) <= 0:
        return float(side)
    # at the start the difference is 0 and the variance is not, unless nothing flips
    return float(optimize.brentq(excess, start + side * 1e-12, stop, xtol=1e-14))
