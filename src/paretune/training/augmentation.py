"""Augmentation: images as they might also have been, drawn from seed, view and place alone, so that a resumed training
sees the same ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from paretune.errors import BuildError
from paretune.training.lesson import Lesson
from paretune.training.order import Places, parted
from paretune.training.plan import AUGMENTATIONS, Plan

BLENDING = AUGMENTATIONS.index("mix_flip")
SHIFTED = 8
"""An image is shifted by up to its side divided by this: 4 pixels of 32, as in He et al. 2016, "Deep Residual Learning
for Image Recognition", section 4.2."""
ERASED = 4
"""A rectangle that is erased has the sides of the image divided by this, one pixel at least."""

Draws = np.ndarray[Any, Any]
"""float64 [n, 3] or [n, 4], each in [0, 1): for each example whether it is mirrored; and how far it is moved, or where
it is erased, down and right; or which other one it is blended with, how much of that, and whose label it gets."""


@dataclass(frozen=True)
class Augmentation:
    """``flip`` mirrors half of the images left to right; ``shift_flip`` moves them too, and fills with zeros.

    ``erase_flip`` mirrors them and puts zeros into a rectangle around any pixel, cut at the borders (DeVries & Taylor
    2017, "Improved Regularization of Convolutional Neural Networks with Cutout"). It leaves pixels where they are,
    which is what images want that were compressed in squares at fixed places.

    ``mix_flip`` mirrors them and blends each with another one, of which there is up to a half (Zhang, Cisse, Dauphin &
    Lopez-Paz 2018, "mixup: Beyond Empirical Risk Minimization"). The label is that of one of the two, drawn by their
    shares: in the mean over views any loss is then the paper's, blended as the images are. A teacher that knows its
    training images by heart shows in its answers to blends how it answers others (Beyer, Zhai, Royer, Markeeva, Anil &
    Kolesnikov 2022, "Knowledge distillation: A good teacher is patient and consistent", section 3).

    Attributes
    ----------
    examples
        How many the data has.
    views
        How many views of the data there are, which epochs take in turn: what a teacher says to each is then worth
        remembering (Shen & Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition"). 0: every epoch
        has its own.
    validation
        Share of the examples that is set aside: none of those is blended into another.
    """

    kind: str
    seed: int
    examples: int
    views: int = 0
    validation: float = 0.0

    @classmethod
    def planned(cls, plan: Plan, seed: int, examples: int) -> Augmentation:
        """That of a training by ``plan``."""
        return cls(plan.augment, seed, examples, plan.views, plan.validation)

    def __bool__(self) -> bool:
        return self.kind != "none"

    @property
    def blends(self) -> bool:
        """Whether each image has a part of another one."""
        return self.kind == "mix_flip"

    def view(self, epoch: int) -> int:
        """The view of an epoch, counted from 0: a number from 1 on; view 0 are the images as they are given."""
        return epoch % self.views + 1 if self.views else epoch + 1

    def draws(self, view: int) -> Draws:
        """What happens to each example in a view."""
        return _drawn(self.seed, view, AUGMENTATIONS.index(self.kind), self.examples)

    def partners(self, view: int) -> Places:
        """With which example each is blended: int64 [n], none of those set aside."""
        learnt, _ = _parted(self.examples, self.validation, self.seed)
        found: Places = learnt[(self.draws(view)[:, 1] * len(learnt)).astype(np.int64)]
        return found

    def of(self, lesson: Lesson, view: int, others: Callable[[Places], Lesson] | None = None) -> Lesson:
        """The lesson with its images as a view has them, all images of one example alike; other inputs stay, and labels
        do where images are not blended.

        ``others`` gives the examples at other places, as they are; needed where images are blended.

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
        places = lesson.places.numpy()
        inputs = self._all_changed(lesson, images, view)
        labels = lesson.labels
        if self.blends:
            assert others is not None
            beside = others(self.partners(view)[places])
            share = 0.5 * self.draws(view)[places, 2]
            inputs = tuple(
                torch.lerp(one, other, torch.from_numpy(share)[:, None, None, None].to(one)) if image else one
                for one, other, image in zip(inputs, self._all_changed(beside, images, view), images, strict=True)
            )
            labels = _either(labels, beside.labels, self.draws(view)[places, 3] < share)
        return dataclasses.replace(lesson, inputs=inputs, labels=labels, view=view)

    def mirrored(self, lesson: Lesson) -> Lesson:
        """The lesson with all of its images mirrored."""
        inputs = tuple(tensor.flip(-1) if _is_image(tensor) else tensor for tensor in lesson.inputs)
        return dataclasses.replace(lesson, inputs=inputs)

    def _all_changed(self, lesson: Lesson, images: list[bool], view: int) -> tuple[torch.Tensor, ...]:
        draws = self.draws(view)[lesson.places.numpy()]
        return tuple(
            self._changed(tensor, draws) if image else tensor
            for tensor, image in zip(lesson.inputs, images, strict=True)
        )

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
    drawn = np.random.default_rng([seed, view, kind]).random((examples, 4 if kind == BLENDING else 3))
    drawn.flags.writeable = False
    return drawn


@lru_cache(maxsize=2)
def _parted(examples: int, validation: float, seed: int) -> tuple[Places, Places]:
    return parted(examples, validation, seed)


def _either(
    labels: torch.Tensor | None, others: torch.Tensor | None, swapped: np.ndarray[Any, Any]
) -> torch.Tensor | None:
    """The labels with some of the others in their place; where one of both does not count, the own one stays."""
    if labels is None or others is None:
        return labels
    shape = (len(labels), *(1,) * (labels.ndim - 1))
    chosen = torch.from_numpy(swapped).to(labels.device).reshape(shape)
    if not labels.is_floating_point():
        chosen = chosen & (labels >= 0) & (others >= 0)
    return torch.where(chosen, others, labels)


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
