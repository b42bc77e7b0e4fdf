"""Blur: out of focus, through frosted glass, by motion, by zooming, and a plain gaussian."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, signal

from paretune.check.scenario import scenario
from paretune.check.scenes.strength import Image, Pair, at_size, clipped, ladder, pixels

Rng = np.random.Generator


def spread(image: Image, kernel: Image) -> Image:
    """Every channel convolved with a kernel [rows, columns] of odd sides; the picture is mirrored at its borders."""
    if kernel.size == 1:
        return image
    rows, columns = (size // 2 for size in kernel.shape)
    wide = np.pad(image, ((0, 0), (rows, rows), (columns, columns)), mode="symmetric")
    found: Image = signal.fftconvolve(wide, (kernel / kernel.sum())[None], mode="valid", axes=(1, 2))
    return found


def smooth(image: Image, sigma: float) -> Image:
    """Every channel blurred by a gaussian of ``sigma`` pixels."""
    found: Image = ndimage.gaussian_filter(image, (0.0, sigma, sigma), mode="mirror")
    return found


def streak(length: float, sigma: float, angle: float) -> Image:
    """The kernel of a camera that moved ``length`` pixels at ``angle``, fading by a gaussian of ``sigma``."""
    half = math.ceil(length)
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    steps = np.linspace(0.0, length, max(2, 4 * half + 1))
    weights = np.exp(-(steps**2) / (2 * max(sigma, 1e-6) ** 2))
    # each step lies between four pixels and is shared among them
    down, right = half + steps * math.sin(angle), half + steps * math.cos(angle)
    top, left = np.floor(down).astype(int), np.floor(right).astype(int)
    for row, part in ((top, 1 - (down - top)), (top + 1, down - top)):
        for column, share in ((left, 1 - (right - left)), (left + 1, right - left)):
            inside = (row <= 2 * half) & (column <= 2 * half)
            np.add.at(kernel, (row[inside], column[inside]), (weights * part * share)[inside])
    return kernel


@scenario("blur", strengths=ladder((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)))
def gaussian_blur(image: Image, rng: Rng, strength: Pair) -> Image:
    """A gaussian of ``strength`` pixels."""
    return clipped(smooth(image, pixels(image, strength)))


@scenario("blur", strengths=ladder((0.6, 0.8, 1.0, 1.25, 1.6), (3, 4, 6, 8, 10)))
def defocus_blur(image: Image, rng: Rng, strength: Pair) -> Image:
    """A lens out of focus: every point becomes a disc of ``strength`` pixels' radius."""
    radius = pixels(image, strength)
    reach = math.ceil(radius + 0.5)
    away = np.arange(-reach, reach + 1)
    # the rim of the disc covers its pixels in part
    disc = np.clip(radius + 0.5 - np.hypot(away[:, None], away[None, :]), 0.0, 1.0)
    return clipped(spread(image, disc))


@scenario(
    "blur",
    strengths=tuple(
        zip(
            ladder((0.3, 0.35, 0.4, 0.45, 0.5), (0.7, 0.9, 1.0, 1.1, 1.5)),
            ladder((0.6, 0.8, 1.0, 1.4, 1.9), (1.5, 2, 2.5, 3, 4.5)),
            strict=True,
        )
    ),
)
def glass_blur(image: Image, rng: Rng, strength: tuple[Pair, Pair]) -> Image:
    """Frosted glass: pixels change places with near ones, between two gaussian blurs."""
    sigma, reach = pixels(image, strength[0]), pixels(image, strength[1])
    blurred = smooth(image, sigma)
    _, height, width = image.shape
    rows, columns = np.mgrid[:height, :width]
    for _ in range(2):
        shift = np.rint(rng.uniform(-1, 1, (2, height, width)) * reach).astype(int)
        blurred = blurred[:, np.clip(rows + shift[0], 0, height - 1), np.clip(columns + shift[1], 0, width - 1)]
    return clipped(smooth(blurred, sigma))


@scenario(
    "blur",
    strengths=tuple(
        zip(
            ladder((2.0, 2.5, 3.0, 3.5, 4.5), (10, 15, 15, 15, 20)),
            ladder((0.8, 1.2, 1.6, 2.2, 3.0), (3, 5, 8, 12, 15)),
            strict=True,
        )
    ),
)
def motion_blur(image: Image, rng: Rng, strength: tuple[Pair, Pair]) -> Image:
    """A camera that moves, at most 45 degrees from the horizontal."""
    angle = math.radians(rng.uniform(-45, 45))
    return clipped(spread(image, streak(pixels(image, strength[0]), pixels(image, strength[1]), angle)))


@scenario("blur", strengths=ladder((1.06, 1.11, 1.16, 1.21, 1.26), (1.11, 1.16, 1.21, 1.26, 1.33)))
def zoom_blur(image: Image, rng: Rng, strength: Pair) -> Image:
    """A lens that zooms while the shutter is open, up to a factor of ``strength``."""
    factors = np.linspace(1.0, at_size(image, strength), 9)
    return clipped(np.mean([zoomed(image, factor) for factor in factors], axis=0))


def zoomed(image: Image, factor: float) -> Image:
    """The picture enlarged about its middle, at the same size."""
    middle = (np.array(image.shape[1:]) - 1) / 2
    offset = middle - middle / factor
    return np.stack([
        ndimage.affine_transform(channel, (1 / factor, 1 / factor), offset, order=1, mode="nearest")
        for channel in image
    ])  # fmt: skip
