"""What scores look at in a model's outputs: the tensor that counts, and the class that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paretune.errors import DataError

Array = np.ndarray[Any, Any]


def first_tensor(outputs: Any) -> Array:
    """What a built-in score looks at: the only output, ``logits`` of a dict that has it, else the first."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits", next(iter(outputs.values())))
    while isinstance(outputs, tuple | list):
        outputs = outputs[0]
    array: Array = np.asarray(outputs)
    return array


def classes(logits: Array) -> Array:
    """The predicted class along axis 1; a single column (or none) is a binary logit with its threshold at 0."""
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return (logits.reshape(len(logits)) > 0).astype(np.int64)
    return np.asarray(logits.argmax(axis=1))


def fitted(labels: Array, values: Array, name: str) -> Array:
    """The labels in the shape of ``values``.

    Raises
    ------
    DataError
        If there is not one label for each value; ``name`` is the score's.
    """
    labels = np.asarray(labels)
    if labels.size != values.size:
        raise DataError(
            f"labels of shape {labels.shape} do not fit answers of shape {values.shape}", where=f"score {name}",
            do="give one label for each answer, or a score of your own",
        )  # fmt: skip
    found: Array = labels.reshape(values.shape)
    return found
