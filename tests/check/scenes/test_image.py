"""Every image scenario: shape, range, reproducibility, strength, and any size and number of channels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from paretune.check.scenario import Scenario, shipped
from paretune.check.scenes import digital, strength

IMAGE = [one for one in shipped() if one.fits == "image"]
STEMS = list(dict.fromkeys(one.stem for one in IMAGE))
NINETEEN = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "gaussian_blur", "snow", "frost", "fog", "spatter", "brightness", "contrast", "saturate",
    "jpeg_compression", "pixelate", "elastic_transform",
}  # fmt: skip
Array = Any


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Array:
    """Smooth pictures with a little grain and weak colours, between 0 and 1."""
    rng = np.random.default_rng(seed)
    sigma = (0, 0, shape[1] / 10, shape[2] / 10)
    base = ndimage.gaussian_filter(rng.random((count, 1, *shape[1:])), sigma)
    base = 0.1 + 0.7 * (base - base.min()) / np.ptp(base)
    tint = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), sigma)
    return np.clip(base + 0.08 * tint / tint.std() + 0.03 * rng.normal(size=(count, *shape)), 0, 1)


def at(stem: str, severity: int) -> Scenario:
    (found,) = [one for one in IMAGE if (one.stem, one.severity) == (stem, severity)]
    return found


def farness(one: Scenario, images: Array) -> float:
    moved = [one.change(image, one.rng(0, number)) - image for number, image in enumerate(images)]
    return float(np.mean([np.sqrt((change**2).mean()) for change in moved]))


def test_the_nineteen_corruptions_and_six_geometric_ones_have_five_severities_each() -> None:
    assert set(STEMS) >= NINETEEN
    assert len(STEMS) == 25
    for stem in STEMS:
        assert [one.severity for one in IMAGE if one.stem == stem] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (5, 9, 17)])
@pytest.mark.parametrize("stem", STEMS)
def test_an_image_of_any_size_stays_an_image(stem: str, shape: tuple[int, int, int]) -> None:
    for severity in (1, 5):
        one = at(stem, severity)
        for image in (pictures(1, shape)[0], np.zeros(shape), np.ones(shape)):
            before = image.copy()
            found = one.change(image, one.rng(3, 0))
            assert found.shape == shape
            assert found.dtype == np.float64
            assert np.isfinite(found).all()
            assert found.min() >= 0
            assert found.max() <= 1
            assert (image == before).all(), "the given image is not changed"


@pytest.mark.parametrize("stem", STEMS)
def test_it_is_reproducible_by_its_seed(stem: str) -> None:
    one, image = at(stem, 4), pictures(1, (3, 24, 24))[0]
    first, again = (one.change(image, one.rng(1, 7)) for _ in range(2))
    assert (first == again).all()
    plain = {"gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "jpeg_compression",
             "pixelate", "scale"}  # fmt: skip
    others = [one.change(image, one.rng(seed, index)) for seed, index in ((2, 7), (1, 8), (1, 9), (1, 10))]
    assert any((first != other).any() for other in others) != (stem in plain)


@pytest.mark.parametrize(("count", "shape"), [(10, (3, 32, 32)), (3, (3, 64, 64))])
@pytest.mark.parametrize("stem", STEMS)
def test_a_higher_severity_is_farther_from_the_original(stem: str, count: int, shape: tuple[int, int, int]) -> None:
    images = pictures(count, shape)
    # a dark picture hides mud, a bright one snow: each comes with its negative
    both = np.concatenate([images, 1 - images])
    far = [farness(at(stem, severity), both) for severity in range(1, 6)]
    assert far[0] > 0.001
    # at the least and the most there is no doubt; in between, sharp thresholds may leave a step out
    assert far[4] > 1.02 * far[0]
    assert all(later > 0.9 * earlier for earlier, later in pairwise(far)), far


@settings(max_examples=25, deadline=None)
@given(size=st.integers(8, 500), small=st.floats(0.1, 5), large=st.floats(0.1, 5))
def test_strengths_lie_between_their_ends(size: int, small: float, large: float) -> None:
    image = np.zeros((1, size, size + 3))
    found = strength.at_size(image, (small, large))
    assert min(small, large) - 1e-12 <= found <= max(small, large) + 1e-12
    if size <= 32:
        assert found == pytest.approx(small)
        assert strength.pixels(image, (small, large)) == pytest.approx(small)
    if size >= 224:
        assert strength.pixels(image, (small, large)) == pytest.approx(large * size / 224)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 99), quality=st.integers(1, 100))
def test_jpeg_errs_by_half_a_step_a_coefficient_at_most(rows: int, columns: int, seed: int, quality: int) -> None:
    plane = np.random.default_rng(seed).uniform(-128, 127, (rows, columns))
    table = np.full((8, 8), 16.0)
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    step = min(max((16 * scale + 50) // 100, 1), 255)
    error = digital.quantised(plane, table, quality) - plane
    # the transform keeps lengths, and the picture is filled up to whole blocks
    blocks = -(-rows // 8) * -(-columns // 8)
    assert (error**2).sum() <= blocks * 64 * (step / 2) ** 2 + 1e-6


def test_a_flat_picture_survives_what_only_moves_or_smooths_it() -> None:
    flat = np.full((3, 16, 20), 0.4)
    for stem in ("gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate",
                 "elastic_transform", "rotation", "perspective", "shift", "scale", "crop", "contrast"):  # fmt: skip
        one = at(stem, 5)
        assert one.change(flat, one.rng(0, 0)) == pytest.approx(flat, abs=1e-9), stem


def test_a_brighter_picture_keeps_its_hue() -> None:
    image = pictures(1, (3, 16, 16))[0] * 0.5
    one = at("brightness", 2)
    found = one.change(image, one.rng(0, 0))
    assert found.max(axis=0) == pytest.approx(image.max(axis=0) + 0.1)
    assert found / found.max(axis=0) == pytest.approx(image / image.max(axis=0))


def test_turning_there_and_back_is_the_identity_in_the_middle() -> None:
    from paretune.check.scenes.geometry import warped

    image = ndimage.gaussian_filter(np.random.default_rng(0).random((1, 40, 40)), (0, 3, 3))
    angle = np.radians(20)
    there = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    back = warped(warped(image, there), np.linalg.inv(there))
    assert back[:, 12:28, 12:28] == pytest.approx(image[:, 12:28, 12:28], abs=0.01)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_stated_strength(severity: int) -> None:
    grey = np.full((3, 32, 32), 0.5)
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    one = at("gaussian_noise", severity)
    assert (one.change(grey, one.rng(0, 0)) - grey).std() == pytest.approx(sigma, rel=0.05)
    lost = at("impulse_noise", severity)
    share = (lost.change(grey, lost.rng(0, 0)) != 0.5).mean()
    assert share == pytest.approx((0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1], rel=0.3)
