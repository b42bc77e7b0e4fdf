"""Weather: snow, frost, fog and what splashes on the lens; drawn by rules, so that no photograph is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from paretune.check.scenario import scenario
from paretune.check.scenes.blur import smooth, spread, streak
from paretune.check.scenes.strength import Image, Pair, at_size, clipped, ladder, pixels, side

Rng = np.random.Generator


def pairs(*ladders: tuple[Pair, ...]) -> Sequence[tuple[Pair, ...]]:
    """Several strengths at every severity."""
    return tuple(zip(*ladders, strict=True))


def clouds(shape: tuple[int, int], rng: Rng, roughness: float, coarsest: float = 1.0) -> Image:
    """Fractal noise [rows, columns] between 0 and 1: grids of random values, each twice as fine as the one before and
    weaker by 2^-roughness; the first has cells of ``coarsest`` times the shorter side."""
    total = np.zeros(shape)
    cell, weight = coarsest * min(shape), 1.0
    while True:
        grid = rng.random((math.ceil(shape[0] / cell) + 2, math.ceil(shape[1] / cell) + 2))
        rows, columns = (np.arange(size) / cell for size in shape)
        at = np.meshgrid(rows, columns, indexing="ij")
        total += weight * ndimage.map_coordinates(grid, at, order=1, mode="nearest")
        cell, weight = cell / 2, weight * 2**-roughness
        if cell < 1:
            break
    low, high = total.min(), total.max()
    return (total - low) / (high - low) if high > low else np.zeros(shape)


@scenario(
    "weather",
    strengths=pairs(ladder((0.2, 0.5, 0.75, 1.0, 1.5), (1.5, 2.0, 2.5, 2.7, 3.0)),
                    ladder((3.0, 3.0, 2.5, 2.0, 1.75), (2.0, 2.0, 1.7, 1.5, 1.4))),
)  # fmt: skip
def fog(image: Image, rng: Rng, strength: tuple[Pair, Pair]) -> Image:
    """A bright veil of fractal clouds; contrast shrinks as it thickens."""
    thick, roughness = at_size(image, strength[0]), at_size(image, strength[1])
    bright = max(float(image.max()), 0.05)
    veil = clouds(image.shape[1:], rng, math.log2(roughness) + 0.5)
    return clipped((image + thick * veil[None]) * bright / (bright + thick))


@scenario(
    "weather",
    strengths=pairs(ladder((1.0, 0.95, 0.9, 0.85, 0.8), (0.9, 0.8, 0.72, 0.66, 0.6)),
                    ladder((0.2, 0.3, 0.42, 0.54, 0.68), (0.45, 0.6, 0.72, 0.82, 0.92))),
)  # fmt: skip
def frost(image: Image, rng: Rng, strength: tuple[Pair, Pair]) -> Image:
    """Ice on the glass: bright ridges where two fields of clouds meet, densest towards the border."""
    kept, ice = at_size(image, strength[0]), at_size(image, strength[1])
    shape = image.shape[1:]
    first, second = (clouds(shape, rng, 0.8, 0.5) for _ in range(2))
    needles = np.clip(1 - 6 * np.abs(first - second), 0, 1) + 0.4 * clouds(shape, rng, 0.4, 0.2)
    down, right = (np.abs(np.linspace(-1, 1, size)) for size in shape)
    rim = np.maximum(down[:, None], right[None, :]) ** 1.5
    layer = np.clip(needles * (0.45 + 0.75 * rim) + 0.25 * rim, 0, 1)
    return clipped(kept * image + ice * layer[None])


@scenario(
    "weather",
    strengths=pairs(ladder((0.015, 0.025, 0.04, 0.055, 0.075), (0.02, 0.035, 0.06, 0.08, 0.11)),
                    ladder((0.95, 0.9, 0.85, 0.8, 0.75), (0.85, 0.8, 0.72, 0.67, 0.6))),
)  # fmt: skip
def snow(image: Image, rng: Rng, strength: tuple[Pair, Pair]) -> Image:
    """Flakes fall in streaks over a whitened scene; ``strength``: the share of flakes, and of the old colours."""
    share, kept = at_size(image, strength[0]), at_size(image, strength[1])
    shape = image.shape[1:]
    flake = max(1.0, 0.012 * side(image))
    drawn = rng.random(tuple(math.ceil(size / flake) for size in shape))
    size_of = rng.uniform(0.5, 1.0, drawn.shape)
    rows, columns = (np.minimum((np.arange(size) / flake).astype(int), drawn.shape[axis] - 1)
                     for axis, size in enumerate(shape))  # fmt: skip
    flakes = np.where(drawn < share, size_of, 0.0)[np.ix_(rows, columns)][None]
    fall = math.radians(rng.uniform(45, 135))
    length = max(1.0, 0.06 * side(image))
    streaks = np.clip(3.0 * spread(flakes, streak(length, length / 2, fall)), 0, 1)
    grey = image.mean(axis=0, keepdims=True)
    white = kept * image + (1 - kept) * np.maximum(image, grey * 1.5 + 0.5)
    return clipped(white + streaks + streaks[:, ::-1, ::-1])


@scenario("weather", strengths=ladder((0.05, 0.10, 0.16, 0.32, 0.44), (0.08, 0.13, 0.18, 0.38, 0.50)))
def spatter(image: Image, rng: Rng, strength: Pair) -> Image:
    """Drops on the lens cover a share of the picture: water (bright) below a fifth, else mud."""
    share = at_size(image, strength)
    field = smooth(rng.normal(size=(1, *image.shape[1:])), max(0.6, pixels(image, (1.0, 4.0))))
    edge = float(np.quantile(field, 1 - share))
    top = max(float(field.max()) - edge, 1e-9)
    cover = np.clip(3 * (field - edge) / top, 0, 1)
    water = np.linspace(0.7, 0.95, len(image)) if len(image) > 1 else np.array([0.9])
    mud = np.linspace(0.25, 0.08, len(image)) if len(image) > 1 else np.array([0.12])
    paint = water if share < 0.2 else mud
    return clipped(image * (1 - 0.9 * cover) + 0.9 * cover * paint[:, None, None])
