"""Selection: searches with thirty candidates whose true drops are known, and how often the chosen one is too bad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from paretune.check.front import finalists
from paretune.check.statistics import Estimate, drop
from paretune.check.verdict import Verdict

CANDIDATES = 30
LIMIT = 1.0
RIGHT = 0.9
ALIKE_BETWEEN = 0.5
Random = np.random.Generator


@dataclass(frozen=True)
class World:
    """What a search may meet: true drops in pp and speed-ups of its candidates; flips beyond the drop itself."""

    name: str
    low: float
    high: float
    faster_is_worse: bool = True
    flips: float = 0.02

    def draw(self, rng: Random) -> tuple[np.ndarray, np.ndarray]:
        drops = rng.uniform(self.low, self.high, CANDIDATES)
        speedups = np.exp(rng.uniform(0.1, 1.5, CANDIDATES))
        if self.faster_is_worse:
            drops.sort()
            speedups.sort()
        return drops, speedups


WORLDS = (
    World("drops from 0 to 3 pp, the faster the worse", 0, 3),
    World("drops from 0 to 3 pp, speed apart from drop", 0, 3, faster_is_worse=False),
    World("drops from 0.5 to 1.5 pp", 0.5, 1.5),
    World("all just over the limit, 1.05 pp", 1.05, 1.05, faster_is_worse=False),
    World("all just over, many flips", 1.05, 1.05, faster_is_worse=False, flips=0.08),
)


@dataclass(frozen=True)
class Tally:
    """Of all searches: in how many a way of choosing chose at all, and chose one that breaks the limit."""

    world: str
    way: str
    searches: int
    chose: int
    broke: int


def _scores(rng: Random, drops: np.ndarray, flips: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong for the baseline [count] and for every candidate [candidates, count].

    Examples are easy or hard for all candidates alike: two flip the same example more often than by chance.
    """
    base = rng.random(count) < RIGHT
    hard = rng.normal(0, ALIKE_BETWEEN**0.5, count)
    own = rng.normal(0, (1 - ALIKE_BETWEEN) ** 0.5, (len(drops), count))
    # half of the flips are wins, on top of which the drop is lost
    chance = np.where(base, (drops[:, None] / 100 + flips / 2) / RIGHT, flips / 2 / (1 - RIGHT))
    return base.astype(float), np.where(hard + own < special.ndtri(chance), ~base, base).astype(float)


def _ranked(number: int, base: np.ndarray, trial: np.ndarray, speed: float) -> Verdict:
    """What the search knows of a candidate; nothing but ranking data and speed enters."""
    found, pace = drop(base, trial, "pp"), Estimate(speed, speed, speed)
    return Verdict(
        id=f"{number:02}", verdict="breaks" if found.low > LIMIT else "undecided", findings=(), merit=pace, pace=pace,
        improves=speed > 1, speedups={1: pace}, reference_speedups={}, scores={}, drops={}, units={}, agreement=None,
        risk=float((base != trial).mean()), data="ranking", measurement=None,
    )  # fmt: skip


def _meets(base: np.ndarray, trial: np.ndarray) -> bool:
    return drop(base, trial, "pp").high <= LIMIT


def _in_sequence(order: Sequence[Verdict], base: np.ndarray, trials: np.ndarray) -> int | None:
    """The rule of the loop's confirming step: from the safest on, until the first that fails; the last that passed."""
    chosen = None
    for verdict in order:
        number = int(verdict.id)
        if not _meets(base, trials[number]):
            break
        chosen = number
    return chosen


def searches(world: World, runs: int, seed: int, ranking: int = 2000, heldout: int = 5000) -> Iterator[Tally]:
    """Choose in three ways from the same simulated searches."""
    rng = np.random.default_rng([seed, 8, WORLDS.index(world)])
    chosen: dict[str, list[int | None]] = {"fixed sequence of finalists": [], "fastest of all that pass": [],
                                           "fastest whose measured drop is within": []}  # fmt: skip
    broke = dict.fromkeys(chosen, 0)
    for _ in range(runs):
        drops, speedups = world.draw(rng)
        base, trials = _scores(rng, drops, world.flips, ranking)
        ranked = [_ranked(number, base, trials[number], speedups[number]) for number in range(CANDIDATES)]
        base, trials = _scores(rng, drops, world.flips, heldout)
        seen = 100 * (base - trials).mean(axis=1)
        picks = (
            _in_sequence(finalists(ranked, [1]), base, trials),
            _fastest(speedups, [number for number in range(CANDIDATES)
                                if seen[number] <= LIMIT and _meets(base, trials[number])]),
            _fastest(speedups, np.flatnonzero(seen <= LIMIT).tolist()),
        )  # fmt: skip
        for way, pick in zip(chosen, picks, strict=True):
            chosen[way].append(pick)
            broke[way] += pick is not None and drops[pick] > LIMIT
    for way, picked in chosen.items():
        yield Tally(world.name, way, runs, sum(pick is not None for pick in picked), broke[way])


def _fastest(speedups: np.ndarray, numbers: Sequence[int]) -> int | None:
    return max(numbers, key=lambda number: speedups[number], default=None)
