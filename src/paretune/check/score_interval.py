"""Score intervals of paired differences: for right-or-wrong scores, for any others, and relative to the original.

A score interval holds every value that a test would not reject whose variance is the one expected *under that value*.
That is what keeps it honest where few examples changed: the observed spread of a handful of changes is far too small
as often as not. How often each interval covers the truth stands in ``docs/statistics.md``, together with the command
that prints it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize, special

Array = np.ndarray[Any, Any]
Ends = tuple[float, float]


def quantile(confidence: float) -> float:
    """The standard normal quantile of a two-sided interval: 1.96 for 0.95."""
    return float(special.ndtri((1 + confidence) / 2))


def paired_shares(lost: int, won: int, count: int, confidence: float = 0.95) -> Ends:
    """Interval of (lost − won) / count: the middle between :func:`tango` and :func:`newcombe`.

    ``lost`` examples only the first gets right, ``won`` only the second, of ``count``. Enumerated over flip rates, 95 %
    intervals of Tango cover 93 % at the least, and Newcombe's up to 98 % where ten or more flips are expected; the mean
    of their ends covers 94.6 % or more everywhere and at most 97 % from ten expected flips on.
    """
    ours, theirs = tango(lost, won, count, confidence), newcombe(lost, won, count, confidence)
    return (ours[0] + theirs[0]) / 2, (ours[1] + theirs[1]) / 2


def tango(lost: int, won: int, count: int, confidence: float = 0.95) -> Ends:
    """Score interval of a difference of paired proportions, (lost − won) / count.

    ``lost`` examples only the first gets right, ``won`` only the second. Tango (1998), *Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design*, Statistics in Medicine 17.
    """
    z = quantile(confidence)

    def score(delta: float) -> float:
        a = 2 * count
        b = -lost - won + (2 * count - lost + won) * delta
        c = -won * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = count * (2 * q + delta * (1 - delta))
        top = lost - won - count * delta
        return top / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, top) if top else 0.0

    value = (lost - won) / count
    edge = 1 - 1e-12

    def bound(target: float, start: float, stop: float) -> float:
        if (score(stop) - target) * (score(start) - target) > 0:
            return stop
        return float(optimize.brentq(lambda delta: _finite(score(delta)) - target, start, stop, xtol=1e-10))

    tiny = 1e-12
    low = bound(z, max(value - tiny, -edge), -edge) if value > -1 else -1.0
    high = bound(-z, min(value + tiny, edge), edge) if value < 1 else 1.0
    return min(low, value), max(high, value)


def newcombe(lost: int, won: int, count: int, confidence: float = 0.95) -> Ends:
    """Square-and-add interval of (lost − won) / count from Wilson's intervals of the two shares.

    Newcombe (1998), *Improved confidence intervals for the difference between binomial proportions based on paired
    data*, Statistics in Medicine 17, with the shares of the two kinds of flips in place of the margins, and their
    multinomial correlation (Zou & Donner 2008, *Construction of confidence limits about effect measures*, Statistics in
    Medicine 27).
    """
    first, second = lost / count, won / count
    rest = math.sqrt((1 - first) * (1 - second))
    correlation = -math.sqrt(first * second) / rest if rest > 0 else -1.0
    return _square_and_add(
        (first, *wilson(lost, count, confidence)), (second, *wilson(won, count, confidence)), correlation
    )


def wilson(hits: float, count: int, confidence: float = 0.95) -> Ends:
    """Score interval of a share, hits / count. Wilson (1927), Journal of the American Statistical Association 22."""
    z2 = quantile(confidence) ** 2
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def paired_ratio(lost: int, won: int, kept: int, count: int, confidence: float = 0.95) -> Ends:
    """Interval of (lost − won) / (lost + kept): the drop as a share of what the original gets right.

    ``kept`` examples both get right. The limits are the ratios ρ at which 0 leaves the square-and-add interval of
    drop − ρ · original, made of :func:`paired_shares` and Wilson's interval as if they were independent (Donner & Zou
    2012, *Closed-form confidence intervals for functions of the normal mean and standard deviation*, Statistical
    Methods in Medical Research 21). They are not quite: for drops of tens of per cent it is a little too wide.
    Without bounds where the original gets nothing right.
    """
    right = lost + kept
    if right == 0:
        return -math.inf, math.inf
    drop, base = (lost - won) / count, right / count
    low, high = paired_shares(lost, won, count, confidence)
    base_low, base_high = wilson(right, count, confidence)

    def end(limit: float, sign: int) -> float:
        # (drop − ρ base)² = reach² + (ρ side)²; the side of the original's share that counts hangs on ρ's sign
        reach, side = limit - drop, base - base_low if limit * sign > 0 else base_high - base
        a = base**2 - side**2
        if a <= 0:
            return sign * math.inf
        root = math.sqrt(max((drop * base) ** 2 - a * (drop**2 - reach**2), 0.0))
        return (drop * base + sign * root) / a

    return min(end(low, -1), drop / base), max(end(high, 1), drop / base)


def of_mean(values: Array, confidence: float = 0.95, reach: float = 0.0) -> Ends:
    """Score interval of the mean of ``values`` [n], whatever their distribution, in their own unit.

    Tango's idea for values of any kind. Under a supposed mean the likeliest weights of the values are those of the
    empirical likelihood (Owen 2001, *Empirical Likelihood*, chapter 2), and the variance is that of the values so
    weighted. Values not yet seen take part: as in the adjusted empirical likelihood (Chen, Variyath & Abraham 2008,
    Journal of Computational and Graphical Statistics 17), one may lie on either side, as far from the mean as the most
    extreme one seen and a share of 2 / k further, where k values differ from the commonest; when all are alike,
    ``reach`` away. The order of the values does not matter and nothing is drawn. One value bounds nothing.
    """
    values = np.asarray(values, float)
    count, mean = len(values), float(values.mean())
    if count < 2:
        return -math.inf, math.inf
    apart = values - mean
    furthest = float(np.abs(apart).max())
    # equal values have a mean that differs from them by rounding
    if furthest > 1e-12 * float(np.abs(values).max()):
        # what rounding sets apart is alike
        changed = max(1, int((np.abs(values - np.median(values)) > 1e-9 * furthest).sum()))
        reach = furthest * (1 + 2 / changed)
    else:
        apart = np.zeros_like(apart)
    if reach == 0:
        return mean, mean
    z = quantile(confidence)
    apart = np.sort(apart) / reach
    return mean - reach * _upper(-apart[::-1], z), mean + reach * _upper(apart, z)


def _upper(values: Array, z: float) -> float:
    """How far above 0 the mean of ``values`` (mean 0, within ±1) may lie, when 1 is a value not yet seen."""
    count = len(values)

    def tilted(theta: float) -> tuple[float, float]:
        weights = 1 / (1 - theta * values)
        weights /= weights.sum()
        mean = float(weights @ values)
        return mean, max(float(weights @ (values - mean) ** 2), 0.0)

    def excess(theta: float) -> float:
        mean, variance = tilted(theta)
        return math.sqrt(count) * mean - z * math.sqrt(variance)

    most = 1 - 1e-9
    if values[-1] > 0 and excess(most) > 0:
        return tilted(float(optimize.brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-10)))[0]
    # the values alone cannot carry a mean so high: a share p lies at the one not seen, and n·mean² = z²·variance
    mean, variance = tilted(most) if values[-1] > 0 else (0.0, 0.0)
    gap = 1 - mean
    a, z2 = gap**2 * (count + z * z), z * z
    b = 2 * count * mean * gap + z2 * (variance - gap**2)
    c = count * mean**2 - z2 * variance
    share = (-b + math.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)
    return mean + share * gap


def _square_and_add(first: tuple[float, float, float], second: tuple[float, float, float], correlation: float) -> Ends:
    """Interval of first − second from (value, low, high) of each."""
    a, b = first[0] - first[1], second[2] - second[0]
    c, d = first[2] - first[0], second[0] - second[1]
    value = first[0] - second[0]
    below = math.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0))
    above = math.sqrt(max(c * c + d * d - 2 * correlation * c * d, 0.0))
    return max(-1.0, value - below), min(1.0, value + above)


def _finite(value: float) -> float:
    return max(min(value, 1e9), -1e9)
