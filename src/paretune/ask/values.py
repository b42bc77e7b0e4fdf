"""What a user's code hands over (tensors, arrays, numbers, lists) as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from paretune.errors import DataError

Array = np.ndarray[Any, Any]


def as_array(value: Any, where: str) -> Array:
    """A tensor, array, number or list as a numpy array.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except Exception as error:
        raise DataError(
            f"cannot be made an array: {error}", where=where, do="return arrays, tensors or numbers from the dataset"
        ) from error
    if array.dtype == object or array.dtype.kind in "USMm":
        raise DataError(
            f"holds a {type(value).__qualname__} where an array or tensor belongs",
            where=where,
            do="decode it in the dataset, or give the workload a collate function",
        )
    return array
