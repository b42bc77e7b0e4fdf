"""Planted truths on held-out data: a drop of half a point, and one class that an average hides."""

from __future__ import annotations

import numpy as np

from paretune.check.slices import by_slice
from paretune.check.statistics import drop

RIGHT = 0.9


def drops_seen(count: int, flip_rate: float, true_drop: float, runs: int, seed: int) -> int:
    """How often the interval of a drop of ``true_drop`` pp lies above 0, of ``runs``."""
    lose, win = (flip_rate + true_drop / 100) / 2, (flip_rate - true_drop / 100) / 2
    rng = np.random.default_rng([seed, 11, count, round(1e4 * flip_rate)])
    drawn = rng.multinomial(count, [lose, win, 1 - lose - win], runs)
    seen = 0
    # examples that do not flip may be right or wrong, and their order does not matter
    for numbers, times in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        found = drop(np.repeat([1.0, 0, 1], numbers), np.repeat([0.0, 1, 1], numbers), "pp")
        seen += int(times) * (found.low > 0)
    return seen


def bad_class(lost_pp: float, limit: float, runs: int, seed: int) -> tuple[int, int, int]:
    """Ten classes of a thousand, of each of which 0.5 % are lost and won; the last loses ``lost_pp`` besides.

    How often, of ``runs``: the average alone is shown to be within ``limit`` pp; the bad class is said to break it; a
    good one is.
    """
    rng = np.random.default_rng([seed, 12, round(10 * lost_pp)])
    labels = np.repeat(np.arange(10), 1000)
    within, caught, accused = 0, 0, 0
    for _ in range(runs):
        base = (rng.random(10_000) < RIGHT).astype(float)
        flips = rng.random(10_000) < np.where(base == 1, 0.005 / RIGHT, 0.005 / (1 - RIGHT))
        lost = (labels == 9) & (base == 1) & (rng.random(10_000) < lost_pp / 100 / RIGHT)
        trial = np.where(lost, 0.0, np.where(flips, 1 - base, base))
        within += drop(base, trial, "pp").high <= limit
        broken = {one.name for one in by_slice(base, trial, limit, labels=labels).slices if one.verdict == "breaks"}
        caught += "class 9" in broken
        accused += bool(broken - {"class 9"})
    return within, caught, accused
