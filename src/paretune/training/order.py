"""Which examples a step takes: a function of seed and step alone, so that a resumed training takes the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Places = np.ndarray[Any, Any]
"""int64 [n]: places of examples in a split."""


@dataclass(frozen=True)
class Order:
    """Every epoch in an order of its own. All batches have one size: what does not fill one waits for another epoch.

    (A last batch of few examples has noisy gradients, and batch normalisation fails on a single one.)
    """

    examples: int
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return max(1, self.examples // self.batch)

    def places(self, step: int) -> Places:
        """The examples of a step (counted over all epochs): ``batch`` of them, or all when there are fewer."""
        epoch, number = divmod(step, self.steps)
        shuffled = _permutation(self.examples, self.seed, epoch)
        return shuffled[number * self.batch : (number + 1) * self.batch]


def parts(places: Places, size: int) -> list[Places]:
    """``places`` in as few parts of at most ``size`` as will do, their sizes as even as can be; 0: one part.

    Of an odd number in pairs one part has three: batch normalisation fails on a single example.
    """
    if size == 0 or len(places) <= size:
        return [places]
    number = -(-len(places) // size)
    return np.array_split(places, number - 1 if size == 2 and len(places) % 2 else number)


def parted(count: int, aside: float, seed: int) -> tuple[Places, Places]:
    """Places of examples (to learn from, to score on): a seeded share, at least one, is set aside where any is."""
    if not aside:
        return np.arange(count), np.arange(0)
    shuffled = np.random.default_rng(seed).permutation(count)
    number = max(1, round(aside * count))
    return np.sort(shuffled[number:]), shuffled[:number]


@lru_cache(maxsize=4)
def _permutation(examples: int, seed: int, epoch: int) -> Places:
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    order.flags.writeable = False
    return order
