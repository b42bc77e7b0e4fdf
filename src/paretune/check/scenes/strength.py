"""Strengths that scale with the image: what ruins a picture of 32 pixels is hardly seen in one of 224."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Image = np.ndarray[Any, np.dtype[np.float64]]
Pair = tuple[float, float]
SMALL, LARGE = 32, 224


def ladder(small: tuple[float, ...], large: tuple[float, ...]) -> tuple[Pair, ...]:
    """Severities as pairs: the strength for an image of 32 pixels, and for one of 224."""
    return tuple(zip(small, large, strict=True))


def side(image: Image) -> int:
    """Pixels of the shorter side of [channels, height, width]."""
    return int(min(image.shape[1:]))


def at_size(image: Image, strength: Pair) -> float:
    """The strength for this image: between the two ends by the logarithm of its size, beyond them the nearer end."""
    share = math.log(side(image) / SMALL) / math.log(LARGE / SMALL)
    return strength[0] + min(max(share, 0.0), 1.0) * (strength[1] - strength[0])


def pixels(image: Image, strength: Pair) -> float:
    """A length in pixels, which grows with images of more than 32; ``strength`` is in pixels of 32 and of 224."""
    return at_size(image, (strength[0] / SMALL, strength[1] / LARGE)) * max(side(image), SMALL)


def clipped(image: Image) -> Image:
    """Values back between 0 and 1."""
    inside: Image = np.clip(image, 0.0, 1.0)
    return inside
