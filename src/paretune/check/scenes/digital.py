"""Digital: JPEG, coarse pixels, and elastic distortion."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import resources

import numpy as np
from scipy import fft, ndimage

from paretune.check.scenario import scenario
from paretune.check.scenes.strength import Image, Pair, at_size, clipped, ladder, pixels, side

Rng = np.random.Generator
BLOCK = 8
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""RGB to luma and two colour differences (ITU-T T.871, the JPEG file interchange format)."""


@cache
def tables() -> tuple[Image, Image]:
    """The quantisation tables for luma and for colour differences [8, 8] of ITU-T T.81 (1992), annex K."""
    text = resources.files("paretune.check.scenes").joinpath("jpeg_tables.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return np.array(found["luma"], float), np.array(found["chroma"], float)


def quantised(plane: Image, table: Image, quality: float) -> Image:
    """A plane (values around 0, a range of 255) as JPEG keeps it: cosine coefficients of 8 × 8 blocks, rounded.

    ``quality`` between 1 and 100 scales the table as the Independent JPEG Group's library does.
    """
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = np.clip(np.floor((table * scale + 50) / 100), 1, 255)
    height, width = plane.shape
    wide = np.pad(plane, ((0, -height % BLOCK), (0, -width % BLOCK)), mode="edge")
    blocks = wide.reshape(wide.shape[0] // BLOCK, BLOCK, -1, BLOCK).swapaxes(1, 2)
    kept = np.rint(fft.dctn(blocks, axes=(2, 3), norm="ortho") / steps) * steps
    back: Image = fft.idctn(kept, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(wide.shape)
    return back[:height, :width]


@scenario("digital", strengths=ladder((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)))
def jpeg_compression(image: Image, rng: Rng, strength: Pair) -> Image:
    """JPEG at a quality of ``strength``: colour at half the resolution for three channels, else each as luma."""
    quality = at_size(image, strength)
    luma, chroma = tables()
    values = clipped(image) * 255
    if len(image) != 3:
        return clipped(np.stack([np.rint(quantised(plane - 128, luma, quality) + 128) for plane in values]) / 255)
    ycc = np.einsum("ij,jhw->ihw", _TO_YCC, values)
    planes = [quantised(ycc[0] - 128, luma, quality) + 128]
    for plane in ycc[1:]:
        small = _box(plane, math.ceil(plane.shape[0] / 2), math.ceil(plane.shape[1] / 2))
        coarse = quantised(small, chroma, quality)
        planes.append(_nearest(coarse, *plane.shape))
    return clipped(np.rint(np.einsum("ij,jhw->ihw", np.linalg.inv(_TO_YCC), np.stack(planes))) / 255)


@scenario("digital", strengths=ladder((0.95, 0.9, 0.8, 0.65, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)))
def pixelate(image: Image, rng: Rng, strength: Pair) -> Image:
    """A picture stored at a share of ``strength`` of its resolution."""
    share = at_size(image, strength)
    _, height, width = image.shape
    small = [_box(plane, max(1, round(height * share)), max(1, round(width * share))) for plane in image]
    return clipped(np.stack([_nearest(plane, height, width) for plane in small]))


@scenario("digital", strengths=ladder((0.5, 0.8, 1.1, 1.5, 2.0), (2.5, 4.0, 5.5, 7.0, 9.0)))
def elastic_transform(image: Image, rng: Rng, strength: Pair) -> Image:
    """A smooth random field moves every point, by ``strength`` pixels on average."""
    shape = image.shape[1:]
    sigma = max(1.0, 0.06 * side(image))
    field = ndimage.gaussian_filter(rng.uniform(-1, 1, (2, *shape)), (0, sigma, sigma), mode="reflect")
    field *= pixels(image, strength) / max(float(np.hypot(*field).mean()), 1e-12)
    at = np.mgrid[: shape[0], : shape[1]] + field
    moved = np.stack([ndimage.map_coordinates(plane, at, order=1, mode="reflect") for plane in image])
    return clipped(moved)


def _box(plane: Image, rows: int, columns: int) -> Image:
    """A plane at a lower resolution: the mean over the pixels of each cell."""
    for axis, count in enumerate((rows, columns)):
        starts = np.ceil(np.arange(count) * plane.shape[axis] / count).astype(int)
        sizes = np.diff([*starts, plane.shape[axis]])
        plane = np.add.reduceat(plane, starts, axis=axis) / (sizes[:, None] if axis == 0 else sizes[None, :])
    return plane


def _nearest(plane: Image, rows: int, columns: int) -> Image:
    """A plane enlarged by repeating its pixels; the inverse of the cells of :func:`_box`."""
    at = [np.arange(size) * small // size for size, small in zip((rows, columns), plane.shape, strict=True)]
    return plane[np.ix_(*at)]
