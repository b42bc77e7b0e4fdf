"""Geometry: another camera angle, another distance, and something in the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage

from paretune.check.scenario import scenario
from paretune.check.scenes.strength import Image, clipped

Rng = np.random.Generator
Matrix = np.ndarray[Any, Any]


def warped(image: Image, matrix: Matrix) -> Image:
    """The picture through a projection: ``matrix`` [3, 3] takes a place in the new picture to one in the old, in
    coordinates (row, column, 1) that run from -1 to 1; what lies outside is mirrored."""
    rows, columns = (np.linspace(-1, 1, size) for size in image.shape[1:])
    down, right = np.meshgrid(rows, columns, indexing="ij")
    places = np.einsum("ij,jhw->ihw", matrix, np.stack([down, right, np.ones_like(down)]))
    scale = [(size - 1) / 2 for size in image.shape[1:]]
    at = [(places[axis] / places[2] + 1) * scale[axis] for axis in (0, 1)]
    found = np.stack([ndimage.map_coordinates(plane, at, order=1, mode="reflect") for plane in image])
    return clipped(found)


def _either(rng: Rng) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


@scenario("geometry", strengths=(5, 10, 15, 22, 30))
def rotation(image: Image, rng: Rng, strength: float) -> Image:
    """Turned by ``strength`` degrees, either way."""
    angle = math.radians(strength) * _either(rng)
    height, width = image.shape[1:]
    sine, cosine = math.sin(angle), math.cos(angle)
    # equal lengths on both axes, also where the picture is no square
    matrix = [[cosine, -sine * width / height, 0], [sine * height / width, cosine, 0], [0, 0, 1]]
    return warped(image, np.array(matrix))


@scenario("geometry", strengths=(0.06, 0.12, 0.18, 0.25, 0.33))
def perspective(image: Image, rng: Rng, strength: float) -> Image:
    """Seen from one side: the far border is smaller by about twice ``strength``."""
    tilt = np.zeros(2)
    tilt[rng.integers(2)] = strength * _either(rng)
    return warped(image, np.array([[1, 0, 0], [0, 1, 0], [*tilt, 1]]))


@scenario("geometry", strengths=(0.04, 0.08, 0.12, 0.17, 0.22))
def shift(image: Image, rng: Rng, strength: float) -> Image:
    """Moved by a share of ``strength`` of the sides, in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    down, right = 2 * strength * math.sin(angle), 2 * strength * math.cos(angle)
    return warped(image, np.array([[1, 0, down], [0, 1, right], [0, 0, 1]]))


@scenario("geometry", strengths=(0.92, 0.84, 0.76, 0.66, 0.55))
def scale(image: Image, rng: Rng, strength: float) -> Image:
    """Farther away: the picture shrinks to a share of ``strength`` of its sides."""
    return warped(image, np.diag([1 / strength, 1 / strength, 1]))


@scenario("geometry", strengths=(0.92, 0.84, 0.76, 0.66, 0.55))
def crop(image: Image, rng: Rng, strength: float) -> Image:
    """Nearer: a random part with sides of a share of ``strength`` fills the picture."""
    down, right = rng.uniform(-1, 1, 2) * (1 - strength)
    return warped(image, np.array([[strength, 0, down], [0, strength, right], [0, 0, 1]]))


@scenario("geometry", strengths=(0.15, 0.22, 0.30, 0.40, 0.50))
def occlusion(image: Image, rng: Rng, strength: float) -> Image:
    """A grey rectangle with sides of a share of ``strength`` hides a part."""
    _, height, width = image.shape
    rows, columns = max(1, round(height * strength)), max(1, round(width * strength))
    top = int(rng.random() * (height - rows + 1))
    left = int(rng.random() * (width - columns + 1))
    hidden = image.copy()
    hidden[:, top : top + rows, left : left + columns] = 0.5
    return hidden
