"""Lesson: some training examples as tensors on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, fit_inputs
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.order import Places


@dataclass(frozen=True)
class Lesson:
    """A batch: inputs in the order of the artefact's, labels, and the places of its examples in the data.

    Attributes
    ----------
    labels
        Of the dtype that the data gives them; unsigned integers as int64.
    view
        Which view of the examples the inputs are (see :class:`~paretune.training.augmentation.Augmentation`): 0 as they
        are given. Answers to one view are no answers to another.
    names
        Those of the inputs, where the data names them.
    batch_labels
        Where the lesson is a part of a batch only: the labels of all of it.
    classes_last
        Whether the model answers along a free axis, and with classes along the last one: a batch may happen to be as
        long as there are classes.
    """

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor | None
    places: torch.Tensor
    view: int = 0
    names: tuple[str, ...] | None = None
    batch_labels: torch.Tensor | None = None
    classes_last: bool = False

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Lessons:
    """Makes lessons of a split's examples, checked against the inputs that ``artifact`` takes."""

    split: Split
    artifact: Artifact
    device: torch.device
    channels_last: bool = False

    def __len__(self) -> int:
        return len(self.split)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Those of the inputs, where the model takes them by keyword."""
        return form.keywords(self.artifact)

    @property
    def _classes_last(self) -> bool:
        outputs = self.artifact.outputs
        shape = next((spec.shape for spec in outputs if spec.name == "logits"), outputs[0].shape if outputs else ())
        return len(shape) > 2 and isinstance(shape[-1], int) and not isinstance(shape[1], int)

    def at(self, places: Places) -> Lesson:
        """The examples at these places, in this order.

        Raises
        ------
        DataError
            If they cannot be read or do not fit the model's inputs.
        """
        chosen = Split(self.split.examples, tuple(self.split.indices[place] for place in places))
        batch = next(chosen.batches(len(chosen)))
        arrays = fit_inputs(batch.inputs, self.split.keys, self.artifact, self.split.name)
        return Lesson(
            tuple(self._tensor(form.native(array)) for array in arrays),
            None if batch.labels is None else self._moved(_labels(batch.labels)),
            torch.as_tensor(places.copy()),
            names=self.names,
            classes_last=self._classes_last,
        )

    def labels(self, places: Places) -> torch.Tensor | None:
        """The labels of the examples at these places, on the CPU."""
        chosen = Split(self.split.examples, tuple(self.split.indices[place] for place in places))
        labels = next(chosen.batches(len(chosen))).labels
        return None if labels is None else _labels(labels)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            tensor = tensor.float()  # it has no double
        return tensor.to(self.device)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = self._moved(tensor)
        four = self.channels_last and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if four else tensor


def _labels(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Labels as torch computes with them: it has next to nothing for unsigned integers, where -100 is another class."""
    labels = form.native(array)
    return labels.long() if array.dtype.kind == "u" else labels


def demand_lessons(split: Split | None, where: str) -> Split:
    """``split``, if there is one.

    Raises
    ------
    BuildError
        If there is no training data.
    """
    if split is None or not len(split):
        raise BuildError("needs training data to learn from", where=where, do="give the workload train=")
    return split


def demand_classes(split: Split) -> None:
    """Refuse labels that teach nothing; reads on until two classes were seen. Float labels may be alike.

    Raises
    ------
    BuildError
        If the examples have no labels, or all have one class.
    """
    seen: set[int] = set()
    for batch in split.batches(32):
        if batch.labels is None:
            raise BuildError("has no labels to learn from", where=split.name, do="return (inputs, label) items")
        if batch.labels.dtype.kind not in "iub":
            return
        seen |= {int(label) for label in np.unique(batch.labels) if label >= 0}
        if len(seen) > 1:
            return
    only = f"all of its {len(split)} examples are of class {seen.pop()}" if seen else "none of its labels is a class"
    raise BuildError(
        f"{only}: a model trained on them would forget the others", where=split.name,
        do="give training data with two classes or more",
    )  # fmt: skip
