"""Rows of a table: missing, scaled, shifted, noisy and out of range; a feature's unit is its standard deviation."""

from __future__ import annotations

from typing import Any

import numpy as np

from paretune.check.scenario import scenario

Rng = np.random.Generator
Row = np.ndarray[Any, np.dtype[np.float64]]


def _some(row: Row, rng: Rng, share: float) -> Any:
    """Which features are meant: ``share`` of them on average, at least one."""
    drawn = rng.random(len(row))
    return (drawn < share) | (drawn == drawn.min())


@scenario("row", "row", (0.05, 0.10, 0.20, 0.35, 0.50))
def missing_values(row: Row, rng: Rng, strength: float) -> Row:
    """A share of the features is missing, and filled with the mean."""
    return np.where(_some(row, rng, strength), np.nan, row)


@scenario("row", "row", (1.1, 1.25, 1.5, 2.0, 3.0))
def scaled_values(row: Row, rng: Rng, strength: float) -> Row:
    """Every feature is farther from its mean by a factor of ``strength``."""
    return row * strength


@scenario("row", "row", (0.1, 0.25, 0.5, 1.0, 2.0))
def shifted_values(row: Row, rng: Rng, strength: float) -> Row:
    """Every feature drifts by ``strength`` deviations, up or down."""
    return row + strength * rng.choice([-1.0, 1.0], len(row))


@scenario("row", "row", (0.05, 0.1, 0.2, 0.4, 0.8))
def noisy_values(row: Row, rng: Rng, strength: float) -> Row:
    """Normal noise of ``strength`` deviations."""
    return row + strength * rng.normal(size=len(row))


@scenario("row", "row", (3.0, 5.0, 10.0, 30.0, 100.0))
def out_of_range(row: Row, rng: Rng, strength: float) -> Row:
    """One feature in ten, at least one, lies ``strength`` deviations from its mean."""
    return np.where(_some(row, rng, 0.1), strength * rng.choice([-1.0, 1.0], len(row)), row)
