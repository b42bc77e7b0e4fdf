"""View: how an example is shown to a scenario, and carried back: in the data's own range, learnt from a sample.

Images reach a model normalised, texts as numbers, tables as standard scores. A scenario is written once, for images
between 0 and 1 say; a view carries any data there and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from paretune.ask.data import Split
from paretune.ask.values import as_array
from paretune.errors import DataError

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]
LEAST = 8
"""Pixels that the shorter side of an image has at least."""
UNKNOWN = -1
"""What a token scenario writes where a word is to be unknown."""
COLOUR = frozenset({"saturate"})
"""Scenarios that do nothing to an image of one channel."""


class View(Protocol):
    """There and back, for one kind of input; inputs are one example's by name, without a batch axis."""

    def see(self, inputs: Inputs) -> Any:
        """What the scenario's function is given."""
        ...

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        """The inputs with the changed one in its place; raises :class:`DataError` if it is not what it should be."""
        ...

    def takes(self, stem: str) -> bool:
        """Whether the scenario does anything to this data."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that determines what is shown, as plain JSON."""
        ...


def views(split: Split, names: Sequence[str]) -> dict[str, View]:
    """A view for every kind of input that the data holds; ``names`` are the model's inputs in order."""
    sample = [inputs_of(split.examples.item(index)) for index in split.indices]
    known = [one for one in sample if one]
    found: dict[str, View] = {}
    if known and len(known) == len(sample):
        for name in known[0]:
            for kind, view in _of(name, known).items():
                found.setdefault(kind, view)
        if not any(isinstance(value, str) for value in known[0].values()):
            found["any"] = AnyView(dict(zip(known[0], names, strict=False)))
    return found


def _of(name: str, sample: Sequence[Inputs]) -> dict[str, View]:
    if isinstance(sample[0][name], str):
        return {"text": TextView(name)}
    arrays = [np.asarray(one[name]) for one in sample]
    first = arrays[0]
    if first.ndim == 3 and (first.dtype.kind == "f" or first.dtype == np.uint8):
        last = first.shape[2] <= 4 < first.shape[0]
        sides = first.shape[:2] if last else first.shape[1:]
        return {"image": ImageView.learnt(name, arrays, last)} if min(sides) >= LEAST else {}
    if first.ndim == 1 and first.dtype.kind == "f":
        return {"row": RowView.learnt(name, arrays)} if len({array.shape for array in arrays}) == 1 else {}
    if first.ndim == 1 and first.dtype.kind in "iu":
        # masks hold zeros and ones; they are no words where another input is
        others = [key for key in sample[0] if key != name and np.asarray(sample[0][key]).dtype.kind in "iu"]
        mask = max((int(array.max(initial=0)) for array in arrays), default=0) <= 1
        return {} if mask and others else {"tokens": TokenView.learnt(name, sample)}
    return {}


@dataclass(frozen=True)
class ImageView:
    """float64 [channels, height, width] between 0 and 1: the least and the largest value that a channel has in the
    sample (0 and 255 for uint8)."""

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    channels_last: bool

    @classmethod
    def learnt(cls, name: str, arrays: Sequence[Array], channels_last: bool) -> ImageView:
        shown = [array.transpose(2, 0, 1) if channels_last else array for array in arrays]
        if shown[0].dtype == np.uint8:
            return cls(name, (0.0,) * len(shown[0]), (255.0,) * len(shown[0]), channels_last)
        low = np.min([array.min(axis=(1, 2)) for array in shown], axis=0)
        high = np.max([array.max(axis=(1, 2)) for array in shown], axis=0)
        high = np.where(high > low, high, low + 1)
        return cls(name, tuple(map(float, low)), tuple(map(float, high)), channels_last)

    def see(self, inputs: Inputs) -> Array:
        array = np.asarray(inputs[self.name], np.float64)
        array = array.transpose(2, 0, 1) if self.channels_last else array
        low, high = self._ends
        seen: Array = (array - low) / (high - low)
        return seen

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        original = np.asarray(inputs[self.name])
        low, high = self._ends
        array = _numbers(changed, where) * (high - low) + low
        array = array.transpose(1, 2, 0) if self.channels_last else array
        if original.dtype.kind == "u":
            array = np.clip(np.rint(array), 0, 255)
        return {**inputs, self.name: _same(array, original, where)}

    def takes(self, stem: str) -> bool:
        return len(self.low) > 1 or stem not in COLOUR

    def describe(self) -> dict[str, Any]:
        return {"image": self.name, "low": self.low, "high": self.high, "channels_last": self.channels_last}

    @property
    def _ends(self) -> tuple[Array, Array]:
        low, high = (np.array(ends)[:, None, None] for ends in (self.low, self.high))
        return low, high


@dataclass(frozen=True)
class RowView:
    """float64 [features] as standard scores: each feature's mean in the sample is 0, its standard deviation 1."""

    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def learnt(cls, name: str, arrays: Sequence[Array]) -> RowView:
        rows = np.stack(arrays).astype(np.float64)
        deviation = rows.std(axis=0)
        return cls(name, tuple(rows.mean(axis=0)), tuple(np.where(deviation > 0, deviation, 1.0)))

    def see(self, inputs: Inputs) -> Array:
        seen: Array = (np.asarray(inputs[self.name], np.float64) - self.mean) / self.deviation
        return seen

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        """What is missing (NaN) becomes the mean, as a pipeline before the model would fill it."""
        scores = _numbers(changed, where)
        row = np.where(np.isnan(scores), 0.0, scores) * self.deviation + self.mean
        return {**inputs, self.name: _same(row, np.asarray(inputs[self.name]), where)}

    def takes(self, stem: str) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"row": self.name, "mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class TokenView:
    """int64 [length]: the numbers of a text's words, without padding and without special tokens.

    Padding is what the mask (an input of zeros and ones, of the same length, whose name contains ``mask``) leaves out,
    without a mask the zeros at the end. The first and the last number are special when all examples share them.
    """

    name: str
    mask: str | None
    first: bool
    last: bool
    ragged: bool
    unknown: int

    @classmethod
    def learnt(cls, name: str, sample: Sequence[Inputs]) -> TokenView:
        lengths = {len(one[name]) for one in sample}
        size = np.shape(sample[0][name])
        mask = next((key for key, value in sample[0].items() if "mask" in key and np.shape(value) == size), None)
        bare = cls(name, mask, False, False, len(lengths) > 1, 0)
        texts = [bare.see(one) for one in sample]
        full = [text for text in texts if len(text) > 2]
        first, last = (len(full) > 1 and len({int(text[at]) for text in full}) == 1 for at in (0, -1))
        seen, counts = np.unique(np.concatenate(texts), return_counts=True)
        free = np.setdiff1d(np.arange(1, int(seen.max(initial=0)) + 1), seen)
        unknown = int(free[0]) if len(free) else int(seen[counts.argmin()])
        return cls(name, mask, first, last, len(lengths) > 1, unknown)

    def see(self, inputs: Inputs) -> Array:
        text = self._content(inputs)
        start, stop = self._inner(len(text))
        return text[start:stop].astype(np.int64)

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        """A longer text is cut to the old length; a shorter one is padded where all examples are of one length."""
        words = np.asarray(changed)
        if words.ndim != 1 or words.dtype.kind not in "iu" or not len(words):
            raise DataError(f"returned shape {words.shape} of {words.dtype}, not some numbers of words", where=where)
        ids = np.asarray(inputs[self.name])
        text = self._content(inputs)
        start, stop = self._inner(len(text))
        words = np.where(words == UNKNOWN, self.unknown, words)[: max(1, len(ids) - start - (len(text) - stop))]
        whole = np.concatenate([text[:start], words, text[stop:]]).astype(ids.dtype)
        length = len(whole) if self.ragged else len(ids)
        found = dict(inputs)
        for key, value in inputs.items():
            beside = np.asarray(value)
            if beside.ndim == 1 and len(beside) == len(ids):
                found[key] = np.resize(beside, length) if length > len(ids) else beside[:length]
        found[self.name] = np.pad(whole, (0, length - len(whole)))
        if self.mask is not None:
            kept = np.arange(length) < len(whole)
            found[self.mask] = kept.astype(np.asarray(inputs[self.mask]).dtype)
        return found

    def takes(self, stem: str) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"tokens": self.name, "mask": self.mask, "ends": [self.first, self.last], "unknown": self.unknown}

    def _content(self, inputs: Inputs) -> Array:
        ids = np.asarray(inputs[self.name])
        used = np.flatnonzero(ids if self.mask is None else np.asarray(inputs[self.mask]))
        # a text of nothing but padding is left as it is
        text: Array = ids[: used[-1] + 1] if len(used) else ids
        return text

    def _inner(self, length: int) -> tuple[int, int]:
        start, stop = int(self.first), length - int(self.last)
        return (start, stop) if stop > start else (0, length)


@dataclass(frozen=True)
class TextView:
    """A string, before the workload's ``collate`` makes numbers of it."""

    name: str

    def see(self, inputs: Inputs) -> str:
        return str(inputs[self.name])

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        if not isinstance(changed, str):
            raise DataError(f"returned a {type(changed).__qualname__}, not a text", where=where)
        return {**inputs, self.name: changed}

    def takes(self, stem: str) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"text": self.name}


@dataclass(frozen=True)
class AnyView:
    """A dict of the example's arrays as they are, by the model's names of its inputs."""

    names: Mapping[str, str]

    def see(self, inputs: Inputs) -> Inputs:
        return {self.names.get(key, key): np.array(value) for key, value in inputs.items()}

    def back(self, changed: Any, inputs: Inputs, where: str) -> Inputs:
        wanted = {self.names.get(key, key): key for key in inputs}
        if not isinstance(changed, Mapping) or set(changed) != set(wanted):
            raise DataError(f"did not return a dict of {', '.join(wanted)}", where=where)
        arrays = {wanted[name]: np.asarray(value) for name, value in changed.items()}
        for key, array in arrays.items():
            dtype = np.asarray(inputs[key]).dtype
            if array.dtype != dtype:
                raise DataError(f"returned {array.dtype} for {key}, which is {dtype}", where=where)
        return arrays

    def takes(self, stem: str) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"any": dict(self.names)}


def inputs_of(item: Any) -> Inputs | None:
    """The inputs of a raw item by name (``0``, ``1`` … where the data does not name them); None when they are neither
    arrays nor strings."""
    if not (isinstance(item, tuple | list) and len(item) == 2):
        return None
    inputs = item[0]
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    elif isinstance(inputs, tuple) or (isinstance(inputs, list) and inputs and not _plain(inputs[0])):
        named = {str(place): value for place, value in enumerate(inputs)}
    else:
        named = {"0": inputs}
    try:
        return {str(key): value if isinstance(value, str) else as_array(value, "") for key, value in named.items()}
    except DataError:
        return None


def with_inputs(item: Any, changed: Inputs) -> Any:
    """The item with changed inputs, each of the type that the old one had: an array, a tensor or a list."""
    inputs, label = item
    if isinstance(inputs, Mapping):
        return {key: _like(changed[str(key)], value) for key, value in inputs.items()}, label
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and inputs and not _plain(inputs[0])):
        return type(inputs)(_like(changed[str(place)], value) for place, value in enumerate(inputs)), label
    return _like(changed["0"], inputs), label


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _like(value: Any, original: Any) -> Any:
    if hasattr(original, "new_tensor"):
        return original.new_tensor(value)
    return value.tolist() if isinstance(original, list) else value


def _numbers(value: Any, where: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise DataError(f"returned a {type(value).__qualname__}, not an array of numbers", where=where)
    return array.astype(np.float64)


def _same(array: Array, original: Array, where: str) -> Array:
    if array.shape != original.shape:
        raise DataError(f"returned shape {array.shape} for one of {original.shape}", where=where)
    return np.ascontiguousarray(array, original.dtype)
