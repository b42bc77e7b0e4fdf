"""Tokens: texts that reach the model as numbers; typing errors and case cannot be told from those."""

from __future__ import annotations

from typing import Any

import numpy as np

from paretune.check.scenario import scenario
from paretune.check.view import UNKNOWN

Rng = np.random.Generator
Ids = np.ndarray[Any, np.dtype[np.int64]]
SHARES = (0.05, 0.10, 0.20, 0.30, 0.45)


def _some(ids: Ids, rng: Rng, share: float) -> Any:
    """Which words are meant: ``share`` of them on average, at least one; a stronger share holds a weaker one's."""
    drawn = rng.random(len(ids))
    return (drawn < share) | (drawn == drawn.min())


@scenario("tokens", "tokens", SHARES)
def unknown_words(ids: Ids, rng: Rng, strength: float) -> Ids:
    """A share of the words is replaced by one that the data does not hold."""
    return np.where(_some(ids, rng, strength), UNKNOWN, ids)


@scenario("tokens", "tokens", (0.9, 0.75, 0.5, 0.3, 0.15))
def cut_short(ids: Ids, rng: Rng, strength: float) -> Ids:
    """Only the first part of the text arrives."""
    return ids[: max(1, round(len(ids) * strength))]


@scenario("tokens", "tokens", SHARES)
def swapped_words(ids: Ids, rng: Rng, strength: float) -> Ids:
    """Words change places with the next one."""
    changed = ids.copy()
    for place in np.flatnonzero(_some(ids, rng, strength)[:-1]):
        changed[[place, place + 1]] = changed[[place + 1, place]]
    return changed


@scenario("tokens", "tokens", SHARES)
def dropped_words(ids: Ids, rng: Rng, strength: float) -> Ids:
    """Words are missing; one is always left."""
    kept = ~_some(ids, rng, strength)
    return ids[kept] if kept.any() else ids[:1]


@scenario("tokens", "tokens", SHARES)
def repeated_words(ids: Ids, rng: Rng, strength: float) -> Ids:
    """Words stand twice; what no longer fits at the end is cut."""
    return np.repeat(ids, 1 + _some(ids, rng, strength))
