"""Data as a user has it → decoded, cached examples and batches of numpy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.code import fingerprint_of
from paretune.ask.target import Arrays
from paretune.ask.values import Array, as_array
from paretune.errors import DataError

Collate = Callable[[list[Any]], Any]
_MAP_STYLE = "give a map-style dataset of (inputs, label) items, or a DataLoader over one"


@dataclass(frozen=True)
class Batch:
    """Inputs in the order of the data (a tuple's, a dict's or the only one), and labels; both with a batch axis."""

    inputs: Arrays
    labels: Array | None

    def __len__(self) -> int:
        return len(self.inputs[0])


class Examples:
    """A user's dataset, decoded on first access and kept for the rest of the run.

    Parameters
    ----------
    data
        A map-style dataset (``len`` and ``[]``), or a ``DataLoader`` over one. An item is ``(inputs, label)``; inputs
        are one array or tensor, a tuple in the model's order, or a dict by the model's keyword names, without a batch
        axis. A loader's sampler counts where it restricts the loader to some of the examples.
    collate
        Makes ``(inputs, labels)`` of a list of items; None stacks them.
    name
        What messages call it: ``train`` or ``heldout``.

    Raises
    ------
    DataError
        If it is not a map-style dataset, or is empty.
    """

    def __init__(self, data: Any, collate: Collate | None, name: str) -> None:
        chosen: Sequence[int] | None = None
        if hasattr(data, "dataset") and hasattr(data, "collate_fn"):
            chosen, data, collate = _chosen(data), data.dataset, collate or _collate_of(data)
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise DataError(
                f"is a {type(data).__qualname__}, which has no length or cannot be indexed", where=name, do=_MAP_STYLE
            )
        try:
            self._order: Sequence[int] = range(len(data)) if chosen is None else chosen
        except Exception as error:
            raise DataError(f"its length cannot be asked: {error!r}", where=name, do=_MAP_STYLE) from error
        if len(self._order) == 0:
            raise DataError("holds no examples", where=name, do=_MAP_STYLE)
        self.name, self.collate, self._data = name, collate, data
        self._items: dict[int, Any] = {}
        self._keys: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self._order)

    def forget(self) -> None:
        """Drop what was decoded: it is read again when asked for."""
        self._items = {}

    def item(self, index: int) -> Any:
        """The decoded item; with the default collate its leaves are numpy arrays."""
        if index not in self._items:
            try:
                item = self._data[self._order[index]]
            except NotImplementedError as error:
                raise DataError(
                    f"is a {type(self._data).__qualname__}, which cannot be indexed", where=self.name, do=_MAP_STYLE
                ) from error
            except Exception as error:
                raise DataError(
                    f"reading it failed: {error!r}", where=f"{self.name}[{index}]", do="mend the dataset's __getitem__"
                ) from error
            if self.collate is None:
                item = self._as_arrays(item, index)
            self._items[index] = item
        return self._items[index]

    def _as_arrays(self, item: Any, index: int) -> tuple[Any, Any]:
        where = f"{self.name}[{index}]"
        if not (isinstance(item, tuple | list) and len(item) == 2):
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(
                f"is a {type(item).__qualname__}{size}, not a pair (inputs, label)",
                where=where,
                do="return (inputs, label); the label may be None for a model that is only measured",
            )
        inputs, label = item
        if isinstance(inputs, Mapping):
            inputs = {key: as_array(value, where) for key, value in inputs.items()}
        elif isinstance(inputs, tuple | list):
            inputs = tuple(as_array(value, where) for value in inputs)
        else:
            inputs = as_array(inputs, where)
        return inputs, None if label is None else as_array(label, where)

    def batch(self, indices: Sequence[int]) -> tuple[tuple[str, ...] | None, Batch]:
        """The collated batch, and the inputs' names where the data is a dict."""
        items = [self.item(index) for index in indices]
        where = f"{self.name}[{indices[0]}…{indices[-1]}]" if len(indices) > 1 else f"{self.name}[{indices[0]}]"
        collated = _stack(items, where) if self.collate is None else self._user_collate(items, where)
        inputs, labels = collated
        keys: tuple[str, ...] | None = None
        if isinstance(inputs, Mapping):
            keys = self._same_keys(tuple(inputs), where)
            inputs = tuple(inputs[key] for key in keys)
        elif not isinstance(inputs, tuple | list):
            inputs = (inputs,)
        arrays = tuple(as_array(value, where) for value in inputs)
        if not arrays or any(array.ndim == 0 or len(array) != len(indices) for array in arrays):
            shapes = ", ".join(str(array.shape) for array in arrays) or "nothing"
            raise DataError(
                f"collating {len(indices)} items gave inputs of shape {shapes}", where=where,
                do="the first axis of every input must be the batch",
            )  # fmt: skip
        truth = None if labels is None else as_array(labels, where)
        if truth is not None and (truth.ndim == 0 or len(truth) != len(indices)):
            raise DataError(
                f"collating {len(indices)} items gave labels of shape {truth.shape}", where=where,
                do="the first axis of the labels must be the batch",
            )  # fmt: skip
        return keys, Batch(arrays, truth)

    def _same_keys(self, keys: tuple[str, ...], where: str) -> tuple[str, ...]:
        """The inputs' names in the order of the first batch, so that dicts in another order are not mixed up."""
        self._keys = self._keys or keys
        if set(keys) != set(self._keys):
            raise DataError(
                f"names its inputs {', '.join(keys)}, and others {', '.join(self._keys)}", where=where,
                do="name the inputs of every example alike",
            )  # fmt: skip
        return self._keys

    def _user_collate(self, items: list[Any], where: str) -> tuple[Any, Any]:
        assert self.collate is not None
        try:
            collated = self.collate(items)
        except Exception as error:
            raise DataError(f"collate failed: {error!r}", where=where, do="mend the collate function") from error
        if not (isinstance(collated, tuple | list) and len(collated) == 2):
            raise DataError(
                f"collate returned a {type(collated).__qualname__}", where=where, do="return (inputs, labels)"
            )
        return collated[0], collated[1]


@dataclass(frozen=True, eq=False)
class Split:
    """Some of the examples of a dataset, in a fixed order."""

    examples: Examples
    indices: tuple[int, ...]

    @classmethod
    def whole(cls, data: Any, collate: Collate | None, name: str) -> Split:
        """All examples of a user's dataset."""
        examples = Examples(data, collate, name)
        return cls(examples, tuple(range(len(examples))))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def name(self) -> str:
        return self.examples.name

    def take(self, count: int, seed: int) -> Split:
        """``count`` examples drawn without replacement (all, when there are no more), in a seeded order."""
        order = np.random.default_rng(seed).permutation(len(self.indices))[:count]
        return Split(self.examples, tuple(self.indices[i] for i in order))

    def head(self, count: int) -> Split:
        """The first ``count`` examples."""
        return Split(self.examples, self.indices[:count])

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches in order; the last one may be smaller."""
        for start in range(0, len(self.indices), size):
            yield self.examples.batch(self.indices[start : start + size])[1]

    @cached_property
    def keys(self) -> tuple[str, ...] | None:
        """The inputs' names where the data is a dict, else None."""
        return self.examples.batch(self.indices[:1])[0]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """sha256 of each example's inputs."""
        return tuple(_digest(self.examples.batch([index])[1].inputs) for index in self.indices)

    @cached_property
    def digest(self) -> str:
        """sha256 over all examples' inputs and labels, in order, and the user's collate: it may pad what it batches."""
        collate = self.examples.collate
        total = hashlib.sha256(b"" if collate is None else fingerprint_of(collate).encode())
        for index in self.indices:
            batch = self.examples.batch([index])[1]
            total.update(_digest(batch.inputs if batch.labels is None else (*batch.inputs, batch.labels)).encode())
        return total.hexdigest()

    def input_specs(self, names: Sequence[str]) -> tuple[TensorSpec, ...]:
        """Specs of the inputs: the batch axis is free, and so is every axis whose length differs between examples."""
        sample = self.head(64)
        singles = [next(Split(self.examples, (index,)).batches(1)).inputs for index in sample.indices]
        specs = []
        for position, first in enumerate(singles[0]):
            if any(arrays[position].ndim != first.ndim for arrays in singles):
                raise DataError(
                    "the number of axes differs between examples", where=f"{self.name}: {names[position]}",
                    do="return inputs of one rank from the dataset",
                )  # fmt: skip
            lengths = [{arrays[position].shape[axis] for arrays in singles} for axis in range(first.ndim)]
            shape = tuple(
                "batch" if axis == 0 else lengths[axis].pop() if len(lengths[axis]) == 1 else f"length_{axis}"
                for axis in range(first.ndim)
            )
            specs.append(TensorSpec(names[position], first.dtype.name, shape))
        return tuple(specs)


def feeds(split: Split, artifact: Artifact, batch: int) -> Iterator[Arrays]:
    """The split's inputs in the order of ``artifact.inputs``, batch by batch.

    Where the model's batch axis is fixed, a ragged last batch is filled up with repetitions.

    Raises
    ------
    DataError
        If number, names, dtypes or fixed axes do not fit the model's inputs.
    """
    fixed = artifact.fixed_batch == batch
    for part in split.batches(batch):
        short = fixed and len(part) < batch
        inputs = tuple(tile(array, batch) for array in part.inputs) if short else part.inputs
        yield fit_inputs(inputs, split.keys, artifact, split.name)


def check_inputs(split: Split, artifact: Artifact) -> None:
    """Read every example once: shapes and dtypes fit the model, and no float is missing or infinite.

    Raises
    ------
    DataError
        Naming the example and the input.
    """
    size = artifact.fixed_batch or 64
    for number, inputs in enumerate(feeds(split, artifact, size)):
        for spec, array in zip(artifact.inputs, inputs, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
                index = split.indices[number * size + row]
                raise DataError(
                    "holds a number that is not finite (NaN or infinity)",
                    where=f"{split.name}[{index}]: {spec.name}", do="clean the data, or leave the example out",
                )  # fmt: skip


def tile(array: Array, batch: int) -> Array:
    """Rows repeated in order until there are ``batch`` of them."""
    return np.resize(array, (batch, *array.shape[1:]))


def fit_inputs(inputs: Arrays, keys: tuple[str, ...] | None, artifact: Artifact, where: str) -> Arrays:
    """``inputs`` in the order of ``artifact.inputs``, checked against the specs; raises :class:`DataError`."""
    names = [spec.name for spec in artifact.inputs]
    if keys is not None:
        if set(keys) != set(names):
            raise DataError(
                f"the data names its inputs {', '.join(keys)} and the model {', '.join(names)}", where=where,
                do="name them alike",
            )  # fmt: skip
        inputs = tuple(inputs[keys.index(name)] for name in names)
    if len(inputs) != len(names):
        raise DataError(
            f"gives {len(inputs)} inputs and the model takes {len(names)}: {', '.join(names)}", where=where,
            do="return them as a tuple in the model's order, or a dict by name",
        )  # fmt: skip
    for array, spec in zip(inputs, artifact.inputs, strict=True):
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"has shape {array.shape} and the model takes {spec.shape}", where=f"{where}: {spec.name}",
                do="resize or transpose it in the dataset; items have no batch axis",
            )  # fmt: skip
        if array.dtype.name != spec.dtype:
            raise DataError(
                f"is {array.dtype.name} and the model takes {spec.dtype}", where=f"{where}: {spec.name}",
                do=f"convert it in the dataset, .astype('{spec.dtype}')",
            )  # fmt: skip
    return inputs


def _stack(items: list[Any], where: str) -> tuple[Any, Any]:
    def stack(values: list[Array]) -> Array:
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise DataError(
                f"examples differ in shape: {' and '.join(map(str, sorted(shapes)[:2]))}",
                where=where,
                do="give the workload a collate function that pads them",
            )
        return np.stack(values)

    first, first_label = items[0]
    if len({_structure(item[0]) for item in items}) > 1:
        raise DataError(
            "examples differ in the number or names of their inputs", where=where,
            do="return the same inputs for every example",
        )  # fmt: skip
    if isinstance(first, Mapping):
        inputs: Any = {key: stack([item[0][key] for item in items]) for key in first}
    elif isinstance(first, tuple):
        inputs = tuple(stack([item[0][position] for item in items]) for position in range(len(first)))
    else:
        inputs = stack([item[0] for item in items])
    if any((item[1] is None) != (first_label is None) for item in items):
        raise DataError("some labels are missing", where=where, do="give every example a label, or none")
    return inputs, None if first_label is None else stack([item[1] for item in items])


def _structure(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return frozenset(inputs)
    return len(inputs) if isinstance(inputs, tuple) else None


def _chosen(loader: Any) -> list[int] | None:
    """The examples that a loader's sampler is restricted to; None when it draws from all of them.

    Training and held-out data are often one dataset under two samplers: taking all of it would mix them.
    """
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    indices = getattr(getattr(loader, "sampler", None) if sampler is None else sampler, "indices", None)
    return None if indices is None else [int(index) for index in indices]


def _collate_of(loader: Any) -> Collate | None:
    # with batch_size=None and no batch sampler a loader hands out single items: its collate_fn takes no list
    collate: Collate | None = loader.collate_fn if getattr(loader, "batch_sampler", loader) is not None else None
    return collate


def _digest(arrays: Sequence[Array]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
