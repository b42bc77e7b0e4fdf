"""Lighting: brighter, flatter, and colours that fade or glow."""

from __future__ import annotations

import numpy as np

from paretune.check.scenario import scenario
from paretune.check.scenes.strength import Image, Pair, at_size, clipped, ladder

Rng = np.random.Generator


@scenario("lighting", strengths=ladder((0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5)))
def brightness(image: Image, rng: Rng, strength: Pair) -> Image:
    """The value of each pixel (the largest channel) is raised, its hue and saturation stay."""
    value = image.max(axis=0, keepdims=True)
    raised = np.clip(value + at_size(image, strength), 0, 1)
    return clipped(np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised))


@scenario("lighting", strengths=ladder((0.75, 0.50, 0.40, 0.30, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)))
def contrast(image: Image, rng: Rng, strength: Pair) -> Image:
    """Distances from each channel's mean shrink to a share of ``strength``."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    return clipped(mean + (image - mean) * at_size(image, strength))


@scenario("lighting", strengths=((0.6, 0.6), (0.3, 0.3), (2.0, 2.2), (3.0, 4.0), (5.0, 8.0)))
def saturate(image: Image, rng: Rng, strength: Pair) -> Image:
    """The saturation is multiplied: colours fade at the first two severities and glow at the others."""
    value, least = image.max(axis=0, keepdims=True), image.min(axis=0, keepdims=True)
    chroma = value - least
    # a saturation of 1 is the most there is
    most = np.where(chroma > 0, value / np.where(chroma > 0, chroma, 1), 1.0)
    return clipped(value - (value - image) * np.minimum(at_size(image, strength), most))
