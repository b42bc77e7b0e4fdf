"""Accuracy: paired scores whose true drop is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from paretune.check.score_interval import newcombe, of_mean, paired_shares, tango
from paretune.check.statistics import drop
from simulation.cell import Cell

RATES = (0.001, 0.005, 0.01, 0.03, 0.05, 0.1, 0.2)
COUNTS = (50, 200, 1000, 5000, 10_000)
LOST = {"half are losses": 0.5, "three in four": 0.75, "all": 1.0}
RIGHT = 0.75
Random = np.random.Generator
Pair = Callable[[Random, int], tuple[np.ndarray, np.ndarray]]


def flips(
    unit: str,
    runs: int,
    seed: int,
    lost: tuple[str, ...] = tuple(LOST),
    rates: tuple[float, ...] = RATES,
    counts: tuple[int, ...] = COUNTS,
) -> Iterator[Cell]:
    """Right-or-wrong scores, a share of which flips, as losses or wins."""
    for place, name in enumerate(lost):
        for rate in rates:
            for count in counts:
                rng = np.random.default_rng([seed, 1, place, int(1e4 * rate), count])
                held = _held(count, rate, LOST[name], unit, runs, rng)
                yield Cell(f"{100 * rate:g} % flip, {name}", f"n = {count:,}", held, runs, count * rate >= 10 - 1e-9)


def _held(count: int, rate: float, share_lost: float, unit: str, runs: int, rng: Random) -> int:
    lose, win = rate * share_lost, rate * (1 - share_lost)
    truth = 100 * (lose - win) / (RIGHT if unit == "%" else 1)
    drawn = rng.multinomial(count, [lose, win, RIGHT - lose, 1 - RIGHT - win], runs)
    if unit == "pp":
        # how many stay right is all one
        drawn[:, 2] = np.minimum(int(RIGHT * count), count - drawn[:, 0] - drawn[:, 1])
        drawn[:, 3] = count - drawn[:, :3].sum(axis=1)
    held = 0
    for numbers, times in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        # losses, wins, right in both, wrong in both: the order of examples does not matter, which is tested
        found = drop(np.repeat([1.0, 0, 1, 0], numbers), np.repeat([0.0, 1, 1, 0], numbers), unit)
        held += int(times) * (found.low <= truth <= found.high)
    return held


def enumerated(counts: tuple[int, ...] = (50, 200, 1000), most: float = 40) -> Iterator[tuple[str, list[float]]]:
    """Exact coverage of three intervals of paired shares over a fine grid of flip rates and shares of losses.

    For each: the least over the whole grid, and the most from ten expected flips on, in per cent.
    """
    methods = {"Tango": tango, "Newcombe": newcombe, "the middle of both": paired_shares}
    for name, method in methods.items():
        found = []
        for count in counts:
            size = min(count, int(most + 8 * most**0.5)) + 1
            ends = np.array(
                [[method(lost, won, count) if lost + won <= count else (9.0, 9.0) for won in range(size)]
                 for lost in range(size)]
            )  # fmt: skip
            found += [(_exact(ends, count, expected / count, lost), expected)
                      for expected in np.arange(0.5, most + 0.1, 0.5) if expected <= 0.5 * count
                      for lost in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0)]  # fmt: skip
        least = min(share for share, _ in found)
        yield name, [100 * least, 100 * max(share for share, expected in found if expected >= 10)]


def _exact(ends: np.ndarray, count: int, rate: float, share_lost: float) -> float:
    from scipy.special import gammaln, xlogy

    lose, win = rate * share_lost, rate * (1 - share_lost)
    lost, won = np.indices(ends.shape[:2])
    rest = np.maximum(count - lost - won, 0)
    chance = np.exp(
        gammaln(count + 1) - gammaln(lost + 1) - gammaln(won + 1) - gammaln(rest + 1)
        + xlogy(lost, lose) + xlogy(won, win) + rest * np.log1p(-rate)
    )  # fmt: skip
    truth = lose - win
    return float(chance[(ends[..., 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[..., 1])].sum())


@dataclass(frozen=True)
class Kind:
    """A way in which scores change: draws of (baseline, trial), the true drop, and the baseline's true mean."""

    name: str
    draw: Pair
    drop: float
    mean: float
    share: float = 1.0


def _changed(share: float, amounts: Callable[[Random, int], np.ndarray]) -> Pair:
    def draw(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        base = np.sqrt(rng.random(count))
        return base, base - np.where(rng.random(count) < share, amounts(rng, count), 0.0)

    return draw


def _redone(share: float) -> Pair:
    def draw(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        base = np.sqrt(rng.random(count))
        return base, np.where(rng.random(count) < share, rng.random(count), base)

    return draw


def _squared(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
    error = rng.laplace(0, 1, count)
    return -(error**2), -((error + rng.normal(0, 0.2, count)) ** 2)


def _shifted(amounts: Callable[[Random, int], np.ndarray]) -> Pair:
    def draw(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        base = rng.normal(5, 1, count)
        return base, base - amounts(rng, count)

    return draw


def kinds() -> list[Kind]:
    found = [
        Kind("normal", _shifted(lambda rng, count: rng.normal(0.05, 0.2, count)), 0.05, 5),
        Kind("heavy tails (t, 3 degrees)", _shifted(lambda rng, count: 0.05 + 0.2 * rng.standard_t(3, count)), 0.05, 5),
        Kind("skewed (log-normal, σ = 1)", _shifted(lambda rng, count: 0.1 * rng.lognormal(0, 1, count)),
             0.1 * float(np.exp(0.5)), 5),
        Kind("squared errors", _squared, 0.04, -2),
    ]  # fmt: skip
    for share in (0.01, 0.03, 0.1, 0.2):
        found += [
            Kind(f"{100 * share:g} % change, exponential",
                 _changed(share, lambda rng, count: rng.exponential(0.2, count)), 0.2 * share, 2 / 3, share),
            Kind(f"{100 * share:g} % change, normal",
                 _changed(share, lambda rng, count: rng.normal(0.3, 0.3, count)), 0.3 * share, 2 / 3, share),
            Kind(f"{100 * share:g} % drawn anew", _redone(share), share * (2 / 3 - 0.5), 2 / 3, share),
        ]  # fmt: skip
    return found


def scores(unit: str, runs: int, seed: int, counts: tuple[int, ...] = COUNTS) -> Iterator[Cell]:
    """Scores of any kind, one number an example."""
    for place, kind in enumerate(kinds()):
        truth = 100 * kind.drop / (abs(kind.mean) if unit == "%" else 1)
        for count in counts:
            rng = np.random.default_rng([seed, 2, place, count])
            held = 0
            for _ in range(runs):
                found = drop(*kind.draw(rng, count), unit)
                held += found.low <= truth <= found.high
            yield Cell(kind.name, f"n = {count:,}", held, runs, kind.share < 1 and count * kind.share >= 10 - 1e-9)


def compared(runs: int, seed: int, count: int = 200) -> Iterator[Cell]:
    """The score interval beside Student's, the studentised bootstrap and BCa, on the same draws."""
    methods = {"score interval": None, "Student": _student, "studentised bootstrap": _studentised, "BCa": _bca}
    for place, kind in enumerate(kind for kind in kinds() if kind.share in (0.01, 0.03, 0.1, 1.0)):
        for name, method in methods.items():
            rng = np.random.default_rng([seed, 3, place, count])
            held = 0
            for _ in range(runs):
                base, trial = kind.draw(rng, count)
                low, high = method(base - trial) if method else of_mean(base - trial, reach=np.ptp([base, trial]))
                held += low <= kind.drop <= high
            yield Cell(kind.name, name, held, runs)


def _student(values: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


DRAWS = 1000
_WEIGHTS: dict[int, np.ndarray] = {}


def _weights(count: int) -> np.ndarray:
    """How often each example stands in each resample, the same for all runs [DRAWS, count]."""
    if count not in _WEIGHTS:
        rng = np.random.default_rng(0)
        _WEIGHTS[count] = rng.multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)
    return _WEIGHTS[count]


def _studentised(values: np.ndarray) -> tuple[float, float]:
    apart, count = values - values.mean(), len(values)
    means = _weights(count) @ apart / count
    spread = np.sqrt(np.maximum(_weights(count) @ apart**2 / count - means**2, 0) * count / (count - 1))
    usable = spread > 1e-9 * (values.std(ddof=1) or 1)
    if not usable.all():
        return _student(values)
    low, high = np.quantile(means / spread, [0.025, 0.975]) * values.std(ddof=1)
    return values.mean() - high, values.mean() - low


def _bca(values: np.ndarray) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    apart, count = values - values.mean(), len(values)
    cubes, squares = (apart**3).sum(), (apart**2).sum()
    if squares == 0:
        return values.mean(), values.mean()
    means = _weights(count) @ apart / count
    below = np.clip((means < 0).mean() + (means == 0).mean() / 2, 1 / DRAWS, 1 - 1 / DRAWS)
    shift, speed = ndtri(below), cubes / (6 * squares**1.5)
    at = [ndtr(shift + (shift + z) / (1 - speed * (shift + z))) for z in (-1.959964, 1.959964)]
    low, high = np.quantile(means, at)
    return values.mean() + low, values.mean() + high
