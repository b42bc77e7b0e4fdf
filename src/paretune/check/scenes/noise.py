"""Noise: of the sensor (gaussian, shot), of the line (impulse), and one that grows with the signal (speckle)."""

from __future__ import annotations

import numpy as np

from paretune.check.scenario import scenario
from paretune.check.scenes.strength import Image, Pair, at_size, clipped, ladder

Rng = np.random.Generator


@scenario("noise", strengths=ladder((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)))
def gaussian_noise(image: Image, rng: Rng, strength: Pair) -> Image:
    """Normal noise, as in low light."""
    return clipped(image + rng.normal(size=image.shape) * at_size(image, strength))


@scenario("noise", strengths=ladder((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)))
def shot_noise(image: Image, rng: Rng, strength: Pair) -> Image:
    """Poisson noise: light comes in ``strength`` grains at full brightness."""
    grains = at_size(image, strength)
    return clipped(rng.poisson(clipped(image) * grains) / grains)


@scenario("noise", strengths=ladder((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)))
def impulse_noise(image: Image, rng: Rng, strength: Pair) -> Image:
    """Salt and pepper: a share of the values is lost, and reads 0 or 1."""
    drawn = rng.random(image.shape)
    share = at_size(image, strength)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, image))


@scenario("noise", strengths=ladder((0.06, 0.10, 0.12, 0.16, 0.20), (0.15, 0.20, 0.35, 0.45, 0.60)))
def speckle_noise(image: Image, rng: Rng, strength: Pair) -> Image:
    """Normal noise in proportion to each value."""
    return clipped(image + image * rng.normal(size=image.shape) * at_size(image, strength))
