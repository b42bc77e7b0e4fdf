"""Intervals, paired tests and percentiles that are valid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from paretune.check.score_interval import of_mean, paired_ratio, paired_shares, wilson

Array = np.ndarray[Any, Any]
Blocks = Sequence[Sequence[float]]
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

    The interval holds three. The distribution-free one takes samples for independent. Woodruff's (1952, *Confidence
    intervals for medians and other position measures*, JASA 47) bounds the share of samples below the value by how much
    that share differs between clusters, and reads the quantiles at its ends. Student's, of the logarithms of the
    clusters' own quantiles, sees clusters differ where that share no longer can, as in a tail that all samples of most
    clusters lie below. Clusters are the ``sessions`` (openings of the process; ``blocks`` are in their order, equally
    many in each) where there are at least three, else the blocks: samples of one cluster share what disturbed the
    machine. Where clusters differ so much that the data bound one side no more, that end is 0 or infinite.
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
        half = student_half(off, confidence)
        # where clusters differ that much, the quantile may lie beyond all that was seen: that end stays open
        low = min(low, float(np.quantile(samples, q - half))) if q - half > 0 else 0.0
        high = max(high, float(np.quantile(samples, q + half))) if q + half < 1 else math.inf
        own = ratio(np.log([np.quantile(part, q) for part in clusters]), confidence)
        low, high = min(low, own.low), max(high, own.high)
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


def ratio(logs: Array, confidence: float = 0.95, trimmed: bool = False) -> Estimate:
    """The ratio whose logarithm is the mean of ``logs``, with Student's interval. One value bounds nothing.

    ``trimmed``: a fifth is left out at each end (Tukey & McLaughlin 1963, Sankhyā A 25), so that a few rounds that
    something else disturbed do not move it. Sessions, medians themselves, need no trimming, and an interval over six
    of them covers less often with it.
    """
    cut = len(logs) // 5 if trimmed else 0
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


def drop(baseline: Array, trial: Array, unit: str, confidence: float = 0.95) -> Estimate:
    """Mean baseline score minus mean trial score over the same examples, with a two-sided interval.

    ``baseline`` and ``trial`` are per-example scores [n]; ``unit`` is ``pp`` (difference × 100) or ``%`` (of the
    baseline's mean). Right-or-wrong scores get the score intervals of flips
    (:func:`~paretune.check.score_interval.paired_shares`, :func:`~paretune.check.score_interval.paired_ratio`), others
    that of a mean (:func:`~paretune.check.score_interval.of_mean`). Where all examples differ alike, what is not seen
    may reach as far as the scores' own range. NaN without bounds for a share of a mean that is 0.
    """
    baseline, trial = np.asarray(baseline, float), np.asarray(trial, float)
    count, difference = len(baseline), baseline - trial
    scale = abs(float(baseline.mean())) if unit == "%" else 1.0
    if scale == 0:
        return Estimate(math.nan, -math.inf, math.inf)
    value = float(difference.mean()) / scale
    if _binary(baseline) and _binary(trial):
        lost, won = int((difference > 0).sum()), int((difference < 0).sum())
        kept = int(baseline.sum()) - lost
        low, high = (
            paired_ratio(lost, won, kept, count, confidence)
            if unit == "%"
            else paired_shares(lost, won, count, confidence)
        )
        return Estimate(100 * value, 100 * low, 100 * high)
    reach = float(np.ptp(np.concatenate([baseline, trial])))
    low, high = (end / scale for end in of_mean(difference, confidence, reach))
    if unit == "%" and count > 1:
        # a ratio's linearisation: its mean is the ratio, its spread includes that of the denominator
        linear = (difference - value * np.sign(baseline.mean()) * baseline) / scale
        ends = of_mean(linear, confidence)
        low, high = min(low, value + ends[0]), max(high, value + ends[1])
    return Estimate(100 * value, 100 * low, 100 * high)


def share(hits: int, count: int, confidence: float = 0.95) -> Estimate:
    """A proportion with its Wilson score interval."""
    return Estimate(hits / count, *wilson(hits, count, confidence))


def mean(values: Array, confidence: float = 0.95) -> Estimate:
    """A mean with its score interval: Wilson's for right-or-wrong values."""
    values = np.asarray(values, float)
    if _binary(values):
        return share(int(values.sum()), len(values), confidence)
    return Estimate(float(values.mean()), *of_mean(values, confidence))


def likeness(original: Array, answers: Array, confidence: float = 0.95) -> Estimate:
    """How alike answers are: the share of equal classes, or for floats R² against the original's answers."""
    if original.dtype.kind in "iub":
        same = (original == answers).reshape(len(original), -1)
        return mean(same.mean(axis=1) if same.shape[1] > 1 else same[:, 0].astype(float), confidence)
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (original, answers))
    error, spread = ((a - b) ** 2).sum(axis=1), ((a - a.mean(axis=0)) ** 2).sum(axis=1)
    if spread.sum() == 0:
        return Estimate(float(np.allclose(a, b)), 0.0, 1.0)
    lost = float(error.sum() / spread.sum())
    # a ratio's linearisation, as in drop
    low, high = of_mean((error - lost * spread) / spread.mean(), confidence)
    return Estimate(1 - lost, 1 - lost - high, min(1.0, 1 - lost - low))


def _binary(values: Array) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _sessions(blocks: Blocks, sessions: int) -> list[list[Array]]:
    """The blocks of each session, or each block alone where there are fewer than three sessions."""
    count = sessions if sessions >= CLUSTERS else len(blocks)
    places = np.array_split(np.arange(len(blocks)), max(count, 1))
    return [[np.asarray(blocks[place], float) for place in part] for part in places if len(part)]


def student_half(values: Array, confidence: float) -> float:
    """Half the length of Student's interval of the mean of ``values`` [n], n > 1."""
    count = len(values)
    return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
