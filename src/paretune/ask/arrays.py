"""A workload from a model file and a ``.npz`` of arrays: what ``model.onnx --data data.npz`` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.workload import Workload
from paretune.errors import DataError

Array = np.ndarray[Any, Any]
LABEL, TRAIN = "label", "train_"


def from_npz(model: Path, data: Path, score: str = "accuracy") -> Workload:
    """Arrays named like the model's inputs, plus ``label``; optional ``train_…`` arrays to learn from.

    Without ``train_…`` arrays a slice of the held-out examples, chosen by digest, is set aside to learn from.

    Raises
    ------
    DataError
        If the file cannot be read, holds pickled objects, has no ``label``, or arrays differ in length.
    """
    if not model.is_file():
        raise DataError("there is no such model file", where=str(model), do="check the path")
    arrays = _read(data)
    heldout = _examples({name: value for name, value in arrays.items() if not name.startswith(TRAIN)}, str(data))
    taught = {name.removeprefix(TRAIN): value for name, value in arrays.items() if name.startswith(TRAIN)}
    train = _examples(taught, f"{data} ({TRAIN}…)") if taught else None
    return Workload(model.stem, str(model), train, heldout, score)


def _read(data: Path) -> dict[str, Array]:
    try:
        if not data.is_file():
            raise DataError("there is no such file", where=str(data), do="check the path")
        file = np.load(data, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError("is one bare array", where=str(data), do="save it by np.savez with names")
        with file:
            return {name: file[name] for name in file.files}
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib, numpy's header parser …
        raise DataError(
            f"cannot be read as plain arrays ({type(error).__name__})",
            where=str(data),
            do="save them by np.savez(…, label=…); objects and pickles are not read",
        ) from error


def _examples(arrays: dict[str, Array], where: str) -> list[tuple[dict[str, Array], Any]]:
    if LABEL not in arrays:
        raise DataError(f"has no array {LABEL!r}", where=where, do="save the truth beside the inputs as label=…")
    inputs = {name: value for name, value in arrays.items() if name != LABEL}
    if not inputs:
        raise DataError("holds no inputs", where=where, do="name arrays like the model's inputs")
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        shown = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(
            f"arrays differ in their number of examples, or are empty: {shown}", where=where,
            do="give every array the examples as its first axis",
        )  # fmt: skip
    return [({name: value[i] for name, value in inputs.items()}, arrays[LABEL][i]) for i in range(lengths[LABEL])]
