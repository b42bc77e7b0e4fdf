"""Augmentation: images as they might also have been, drawn from seed, view and place alone, so that a resumed training
sees the same ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from paretune.errors import BuildError
from paretune.training.lesson import Lesson

KINDS = ("none", "flip", "shift_flip", "erase_flip")
SHIFTED = 8
"""An image is shifted by up to its side divided by this: 4 pixels of 32, as in He et al. 2016, "Deep Residual Learning
for Image Recognition", section 4.2."""
ERASED = 4
"""What is erased is as wide and high as the image, divided by this."""

Draws = np.ndarray[Any, Any]
"""float64 [n, 3], each in [0, 1): for each example whether it is mirrored, and how far it is moved, or where it is
erased, down and right."""


@dataclass(frozen=True)
class Augmentation:
    """``flip`` mirrors half of the images left to right; ``shift_flip`` moves them too, and fills with zeros.

    ``erase_flip`` mirrors them and puts zeros into a rectangle around any pixel, cut at the borders (DeVries & Taylor
    2017, "Improved Regularization of Convolutional Neural Networks with Cutout"). It leaves pixels where they are,
    which is what images want that were compressed in squares at fixed places.

    Attributes
    ----------
    examples
        How many the data has.
    views
        How many views of the data there are, which epochs take in turn: what a teacher says to each is then worth
        remembering (Shen & Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition"). 0: every epoch
        has its own.
    """

    kind: str
    seed: int
    examples: int
    views: int = 0

    def __bool__(self) -> bool:
        return self.kind != "none"

    def view(self, epoch: int) -> int:
        """The view of an epoch, counted from 0: a number from 1 on; view 0 are the images as they are given."""
        return epoch % self.views + 1 if self.views else epoch + 1

    def draws(self, view: int) -> Draws:
        """What happens to each example in a view."""
        return _drawn(self.seed, view, KINDS.index(self.kind), self.examples)

    def of(self, lesson: Lesson, view: int) -> Lesson:
        """The lesson with its images as a view has them, all images of one example alike; labels and other inputs stay.

        Raises
        ------
        BuildError
            If no input is an image [n, channels, height, width] of floats, or labels lie on an image's pixels.
        """
        images = [_is_image(tensor) for tensor in lesson.inputs]
        if not any(images):
            shapes = ", ".join(f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in lesson.inputs)
            raise BuildError(
                f"no input is an image (floats [n, channels, height, width]) that could be mirrored: {shapes}",
                where="augment", do="use augment=none",
            )  # fmt: skip
        sides = {tensor.shape[2:] for tensor, image in zip(lesson.inputs, images, strict=True) if image}
        if lesson.labels is not None and lesson.labels.ndim > 2 and lesson.labels.shape[-2:] in sides:
            raise BuildError(
                f"labels of shape {list(lesson.labels.shape)} lie on the image's pixels, and would not move with them",
                where="augment", do="use augment=none",
            )  # fmt: skip
        draws = self.draws(view)[lesson.places.numpy()]
        inputs = tuple(
            self._changed(tensor, draws) if image else tensor
            for tensor, image in zip(lesson.inputs, images, strict=True)
        )
        return dataclasses.replace(lesson, inputs=inputs, view=view)

    def _changed(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        height, width = images.shape[2:]
        far = (height // SHIFTED, width // SHIFTED) if self.kind == "shift_flip" else (0, 0)
        rows = np.arange(height) + _offsets(draws[:, 1], far[0])
        columns = np.arange(width) + _offsets(draws[:, 2], far[1])
        columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns)
        padded = functional.pad(images, (far[1], far[1], far[0], far[0]))
        places = torch.arange(len(images), device=images.device)[:, None, None]
        down, right = (torch.from_numpy(one).to(images.device) for one in (rows, columns))
        # indexing by three axes puts the channels last
        found = padded[places, :, down[:, :, None], right[:, None, :]].movedim(-1, 1)
        if self.kind == "erase_flip":
            gone = _near(draws[:, 1], height)[:, None, :, None] & _near(draws[:, 2], width)[:, None, None, :]
            found = found.masked_fill(torch.from_numpy(gone).to(images.device), 0)
        innermost = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        return found.contiguous(memory_format=torch.channels_last if innermost else torch.contiguous_format)


@lru_cache(maxsize=2)
def _drawn(seed: int, view: int, kind: int, examples: int) -> Draws:
    drawn = np.random.default_rng([seed, view, kind]).random((examples, 3))
    drawn.flags.writeable = False
    return drawn


def _offsets(draws: Draws, far: int) -> Draws:
    """Where in a padded image each begins: int64 [n, 1], 0 … 2 · ``far``, all of them equally often."""
    steps: Draws = np.minimum(np.floor(draws * (2 * far + 1)), 2 * far).astype(np.int64)
    return steps[:, None]


def _near(draws: Draws, side: int) -> np.ndarray[Any, Any]:
    """Which pixels along a side are erased: bool [n, side], around one that every draw is as likely to name."""
    first = np.floor(draws * side).astype(np.int64)[:, None] - side // ERASED // 2
    pixels = np.arange(side)
    found: np.ndarray[Any, Any] = (pixels >= first) & (pixels < first + max(side // ERASED, 1))
    return found


def _is_image(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()
