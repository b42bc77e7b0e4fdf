"""Intervals, paired tests and percentiles that are valid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

Array = np.ndarray[Any, Any]
Blocks = Sequence[Sequence[float]]
RESAMPLES = 1000
CLUSTERS = 3
"""Fewer sessions than these tell nothing of how much sessions differ."""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval at the stated confidence."""

    value: float
    low: float
    high: float

    def describe(self) -> dict[str, float | None]:
        """Plain JSON, which has no infinities and no NaN: they are null."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def order_interval(count: int, q: float, confidence: float) -> tuple[int, int] | None:
    """Indices (into sorted samples) of a distribution-free interval of the ``q`` quantile.

    None when ``count`` samples are too few for one to exist (David & Nagaraja, *Order Statistics*, 2003, §7.1): for
    95 % confidence p50 needs 6 samples, p90 36, p95 72, p99 368.
    """
    tail = (1 - confidence) / 2
    low = int(stats.binom.ppf(tail, count, q)) - 1
    high = int(stats.binom.ppf(1 - tail, count, q))
    if low < 0 or high >= count:
        return None
    return low, high


def percentile(blocks: Blocks, q: float, confidence: float = 0.95, sessions: int = 1) -> Estimate | None:
    """The ``q`` quantile of latencies taken in blocks; None when there are too few samples to state it.

    The interval is the wider of two: the distribution-free one, which takes samples for independent, and Woodruff's
    (1952, *Confidence intervals for medians and other position measures*, JASA 47), which bounds the share of samples
    below the value by how much that share differs between clusters, and reads the quantiles at its ends. Clusters are
    the ``sessions`` (openings of the process; ``blocks`` are in their order, equally many in each) where there are at
    least three, else the blocks: samples of one cluster share what disturbed the machine. Where clusters differ so
    much that the data bound one side no more, that end is 0 or infinite.
    """
    samples = np.sort(np.concatenate([np.asarray(block, float) for block in blocks])) if blocks else np.array([])
    ends = order_interval(len(samples), q, confidence)
    if ends is None:
        return None
    value = float(np.quantile(samples, q))
    low, high = float(samples[ends[0]]), float(samples[ends[1]])
    clusters = [np.concatenate(part) for part in _sessions(blocks, sessions)]
    if len(clusters) >= CLUSTERS:
        sizes = np.array([len(part) for part in clusters])
        below = np.array([np.mean(part <= value) for part in clusters])
        # the linearised mean of shares: clusters count by their samples
        off = sizes * (below - np.average(below, weights=sizes)) / sizes.mean()
        half = _half(off, confidence)
        # where clusters differ that much, the quantile may lie beyond all that was seen: that end stays open
        low = min(low, float(np.quantile(samples, q - half))) if q - half > 0 else 0.0
        high = max(high, float(np.quantile(samples, q + half))) if q + half < 1 else math.inf
    return Estimate(value, min(low, value), max(high, value))


def log_ratios(baseline: Blocks, trial: Blocks, sessions: int = 1, q: float = 0.5) -> Array:
    """Logarithms of baseline over trial latency at quantile ``q``, one for each session [sessions].

    A round of the one is compared with the same round of the other, as what slows the machine slows both; the median
    over a session's rounds leaves single disturbed rounds out. With fewer than three sessions, one for each round.
    Tails (``q`` above one half) are those of a whole session, as a round alone holds too few samples.
    """
    rounds = min(len(baseline), len(trial))
    whole = sessions if sessions >= CLUSTERS else 1
    if q > 0.5 and whole > 1:
        pairs = zip(_sessions(baseline[:rounds], whole), _sessions(trial[:rounds], whole), strict=True)
        tails = [[float(np.quantile(np.concatenate(side), q)) for side in pair] for pair in pairs]
        return np.array([math.log(ours / theirs) for ours, theirs in tails])
    logs = np.array(
        [math.log(np.quantile(a, q) / np.quantile(b, q)) for a, b in zip(baseline[:rounds], trial, strict=False)]
    )
    if whole == 1:
        return logs
    return np.array([float(np.median(part)) for part in np.array_split(logs, whole)])


def ratio(logs: Array, confidence: float = 0.95) -> Estimate:
    """The ratio whose logarithm is the mean of ``logs``, with Student's interval.

    From six values on, a fifth is trimmed at each end (Tukey & McLaughlin 1963, Sankhyā A 25): a few rounds that
    something else disturbed do not move it. One value bounds nothing.
    """
    cut = len(logs) // 5 if len(logs) >= 6 else 0
    ordered = np.sort(logs)
    centre = float(ordered[cut : len(logs) - cut].mean())
    if len(logs) < 2:
        return Estimate(math.exp(centre), 0.0, math.inf)
    winsorised = np.clip(ordered, ordered[cut], ordered[len(logs) - cut - 1])
    kept = len(logs) - 2 * cut
    error = float(winsorised.std(ddof=1)) * math.sqrt((len(logs) - 1) / (kept * (kept - 1)))
    half = float(stats.t.ppf((1 + confidence) / 2, kept - 1)) * error
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


def mean_logs(blocks: Blocks, sessions: int = 1) -> Array:
    """Logarithms of the mean latency, one for each session, or each block where there are no three sessions."""
    return np.log([np.concatenate(part).mean() for part in _sessions(blocks, sessions)])


def drop(baseline: Array, trial: Array, unit: str, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Mean baseline score minus mean trial score over the same examples, with a two-sided interval.

    ``baseline`` and ``trial`` are per-example scores [n]; ``unit`` is ``pp`` (difference × 100) or ``%`` (of the
    baseline's mean). Right-or-wrong scores get Tango's score interval (relative to the baseline, the wider of it and
    the bootstrap, which knows the denominator's spread but nothing of flips not seen), others a studentised bootstrap.
    Where all examples differ alike, anything else is rarer than some share of them: the interval reaches as
    far as that share of the scores' own range.
    """
    baseline, trial = np.asarray(baseline, float), np.asarray(trial, float)
    exact = _flips(baseline, trial, confidence)
    if unit == "pp" and exact is not None:
        return Estimate(100 * exact.value, 100 * exact.low, 100 * exact.high)
    difference = baseline - trial
    if unit == "pp":
        scale, value, influence = 1.0, float(difference.mean()), difference
    else:
        scale = abs(float(baseline.mean()))
        if scale == 0:
            return Estimate(math.nan, -math.inf, math.inf)
        value = float(difference.mean()) / scale
        # the ratio's linearisation: its mean is the ratio, its spread includes that of the denominator
        influence = value + (difference - value * np.sign(baseline.mean()) * baseline) / scale
    low, high = studentised(influence, confidence, seed)
    if np.ptp(difference) == 0:
        unseen = 1 - ((1 - confidence) / 2) ** (1 / len(baseline))
        reach = unseen * float(np.ptp(np.concatenate([baseline, trial]))) / scale
        low, high = low - reach, high + reach
    if exact is not None:
        low, high = min(low, exact.low / scale), max(high, exact.high / scale)
    return Estimate(100 * value, 100 * low, 100 * high)


def _flips(baseline: Array, trial: Array, confidence: float) -> Estimate | None:
    """The drop of right-or-wrong scores, as a share of all examples; None for other scores."""
    if not (_binary(baseline) and _binary(trial)):
        return None
    lost = int(((baseline == 1) & (trial == 0)).sum())
    won = int(((baseline == 0) & (trial == 1)).sum())
    return Estimate((lost - won) / len(baseline), *tango(lost, won, len(baseline), confidence))


def tango(lost: int, won: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a difference of paired proportions, (lost − won) / count.

    ``lost`` examples only the first gets right, ``won`` only the second. Tango (1998), *Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design*, Statistics in Medicine 17.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))

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


def studentised(values: Array, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap-t interval of a mean. Efron & Tibshirani (1993), *An Introduction to the Bootstrap*, chapter 12.

    One value bounds nothing; values that are all alike have no spread to tell from.
    """
    values = np.asarray(values, float)
    count, mean = len(values), float(values.mean())
    if count < 2:
        return -math.inf, math.inf
    spread = float(values.std(ddof=1))
    if np.ptp(values) == 0 or spread == 0:
        return mean, mean
    random = np.random.default_rng(seed)
    resamples = min(2000, max(400, 20_000_000 // count))
    rows = max(1, 1_000_000 // count)
    moments = np.concatenate([
        (picked.mean(axis=1), picked.std(axis=1, ddof=1))
        for begin in range(0, resamples, rows)
        for picked in [values[random.integers(0, count, (min(rows, resamples - begin), count))]]
    ], axis=1).T  # fmt: skip
    # equal values have a spread of rounding errors, not of nothing
    usable = moments[:, 1] > 1e-9 * spread
    t = (moments[usable, 0] - mean) / (moments[usable, 1] / math.sqrt(count))
    if len(t) < resamples:
        # so few values differ that some resamples miss them all: leaving those out would bound the mean by itself
        half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * spread / math.sqrt(count)
        return mean - half, mean + half
    t_low, t_high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    error = spread / math.sqrt(count)
    return mean - float(t_high) * error, mean - float(t_low) * error


def share(hits: int, count: int, confidence: float = 0.95) -> Estimate:
    """A proportion with its Wilson score interval."""
    interval = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high))


def mean(values: Array, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """A mean with its interval: Wilson's for right-or-wrong values, else a studentised bootstrap."""
    values = np.asarray(values, float)
    if _binary(values):
        return share(int(values.sum()), len(values), confidence)
    low, high = studentised(values, confidence, seed)
    return Estimate(float(values.mean()), low, high)


def likeness(original: Array, answers: Array, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """How alike answers are: the share of equal classes, or for floats R² against the original's answers."""
    if original.dtype.kind in "iub":
        same = (original == answers).reshape(len(original), -1)
        return mean(same.mean(axis=1) if same.shape[1] > 1 else same[:, 0].astype(float), confidence, seed)
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (original, answers))
    error, spread = ((a - b) ** 2).sum(axis=1), ((a - a.mean(axis=0)) ** 2).sum(axis=1)
    if spread.sum() == 0:
        return Estimate(float(np.allclose(a, b)), 0.0, 1.0)
    value = 1 - float(error.sum() / spread.sum())
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(a), (RESAMPLES, len(a)))
    totals = spread[picks].sum(axis=1)
    draws = 1 - error[picks].sum(axis=1) / np.where(totals > 0, totals, 1)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _binary(values: Array) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def _finite(value: float) -> float:
    return max(min(value, 1e9), -1e9)


def _sessions(blocks: Blocks, sessions: int) -> list[list[Array]]:
    """The blocks of each session, or each block alone where there are fewer than three sessions."""
    count = sessions if sessions >= CLUSTERS else len(blocks)
    places = np.array_split(np.arange(len(blocks)), max(count, 1))
    return [[np.asarray(blocks[place], float) for place in part] for part in places if len(part)]


def _half(values: Array, confidence: float) -> float:
    """Half of Student's interval of a mean."""
    count = len(values)
    return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
