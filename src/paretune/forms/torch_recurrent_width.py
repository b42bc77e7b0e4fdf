"""Hidden units of recurrent layers as groups of channels, with whatever reads them.

torch-pruning does not cut them. Who reads a unit is found by marking: the layer's answers are made NaN where the
number of a unit has a certain bit, and NaN arrives where the unit is read. A pass for each bit and one for its
complement tell for every place whose unit it is, or that several are mixed there. Layers with weights answer finitely
meanwhile, so that only those who read the units directly are found; normalisations let them through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from paretune.forms import torch as form
from paretune.forms.torch_width import Group, Member, Side

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_THROUGH = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_READERS = (nn.Linear, _ConvNd, nn.RNNBase, *_THROUGH)

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Stack:
    """A recurrent layer: its path, and the (number, direction)s it is made of."""

    path: str
    layer: nn.RNNBase

    @property
    def suffixes(self) -> tuple[str, ...]:
        """As in the names of its parameters."""
        ways = ("", "_reverse") if self.layer.bidirectional else ("",)
        return tuple(f"l{number}{way}" for number in range(self.layer.num_layers) for way in ways)

    @property
    def ways(self) -> int:
        """Directions."""
        return 2 if self.layer.bidirectional else 1

    @property
    def gates(self) -> int:
        return _GATES[self.layer.mode]

    def unit(self, number: int) -> tuple[int, int]:
        """Which part, and which of its units, the number of a unit stands for."""
        return divmod(number, self.layer.hidden_size)


def recurrent_groups(
    module: nn.Module, names: tuple[str, ...] | None, inputs: Tensors
) -> tuple[list[Group], dict[str, str]]:
    """The hidden units of each recurrent layer, and why those of some cannot go: path → reason.

    In a layer of several parts (stacked, or in two directions) each part loses as many units, and each its own: unit
    number n of the group is the n-th weakest of every part, by the norm of its weights.
    """
    found, left = [], {}
    for path, layer in module.named_modules():
        if not isinstance(layer, nn.RNNBase) or layer.mode not in _GATES:
            continue
        if layer.proj_size or layer.hidden_size < 2:
            left[path] = "it projects its states" if layer.proj_size else "it has one hidden unit"
            continue
        stack = Stack(path, layer)
        try:
            read = _readers(module, stack, names, inputs)
        except Exception as error:  # whatever the user's forward raises on numbers that are none
            left[path] = f"who reads its hidden units cannot be found: {error}"
            continue
        if read is None:
            left[path] = "several of its hidden units are mixed before a layer reads them"
            continue
        ranks = _ranks(stack)
        members = (*_own(stack, ranks), *_reading(module, stack, ranks, read))
        width = layer.hidden_size
        found.append(Group(path, width, members, tuple((unit,) for unit in range(width))))
    return found, left


def _ranks(stack: Stack) -> list[list[int]]:
    """Of each part, for each of its units, which channel of the group it is."""
    size, found = stack.layer.hidden_size, []
    for suffix in stack.suffixes:
        strength = sum(
            (getattr(stack.layer, f"{name}_{suffix}").detach().double().reshape(stack.gates, size, -1).square()).sum(
                (0, 2)
            )
            for name in ("weight_ih", "weight_hh")
        )
        assert isinstance(strength, torch.Tensor)
        order = strength.argsort(stable=True) if len(stack.suffixes) > 1 else torch.arange(size)
        found.append(order.argsort().tolist())
    return found


def _own(stack: Stack, ranks: Sequence[Sequence[int]]) -> Iterator[Member]:
    """The layer's own tensors: rows of every gate, columns of what reads the state within it."""
    size, layer = stack.layer.hidden_size, stack.layer
    yield Member(stack.path, "out", tuple(range(size)), tuple(range(size)))
    for part, suffix in enumerate(stack.suffixes):
        rows = tuple(range(stack.gates * size))
        roots = tuple(ranks[part][row % size] for row in rows)
        names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if layer.bias else ()))
        for name in names:
            yield Member(f"{stack.path}.{name}_{suffix}".lstrip("."), "out", rows, roots, 0)
        columns = tuple(range(size))
        yield Member(f"{stack.path}.weight_hh_{suffix}".lstrip("."), "in", columns, tuple(ranks[part]), 1)
        if part >= stack.ways:  # the layer below is read, all its directions
            below = (part // stack.ways - 1) * stack.ways
            columns = tuple(range(stack.ways * size))
            roots = tuple(ranks[below + column // size][column % size] for column in columns)
            yield Member(f"{stack.path}.weight_ih_{suffix}".lstrip("."), "in", columns, roots, 1)


def _reading(
    module: nn.Module, stack: Stack, ranks: Sequence[Sequence[int]], read: dict[str, dict[int, int]]
) -> Iterator[Member]:
    """The layers that read hidden units: path → place → number of the unit."""
    sides: dict[str, Side] = {
        path: "both" if isinstance(module.get_submodule(path), _THROUGH) else "in" for path in read
    }
    for path, numbers in read.items():
        units = [stack.unit(number) for number in numbers.values()]
        yield Member(path, sides[path], tuple(numbers), tuple(ranks[part][unit] for part, unit in units))


def _readers(
    module: nn.Module, stack: Stack, names: tuple[str, ...] | None, inputs: Tensors
) -> dict[str, dict[int, int]] | None:
    """Of each layer that reads hidden units directly, whose unit is at each place; None where units are mixed."""
    count = len(stack.suffixes) * stack.layer.hidden_size
    bits = max(1, (count - 1).bit_length())
    seen: dict[str, list[torch.Tensor]] = {}
    for bit in range(bits):
        for value in (0, 1):
            marks = (torch.arange(count) >> bit & 1) == value
            for path, places in _marked(module, stack, marks, names, inputs).items():
                seen.setdefault(path, []).append(places)
    found: dict[str, dict[int, int]] = {}
    for path, passes in seen.items():
        zeros, ones = torch.stack(passes[0::2]), torch.stack(passes[1::2])
        touched = (zeros | ones).any(0)
        if not bool(touched.any()):
            continue
        if not bool(((zeros ^ ones).all(0) | ~touched).all()):
            return None
        numbers = (ones.long() << torch.arange(bits)[:, None]).sum(0)
        found[path] = {place: int(numbers[place]) for place in touched.nonzero().flatten().tolist()}
    return found


def _marked(
    module: nn.Module, stack: Stack, marks: torch.Tensor, names: tuple[str, ...] | None, inputs: Tensors
) -> dict[str, torch.Tensor]:
    """Where NaN arrives when the marked units answer it: path of a layer → bool [its input channels]."""
    twin = copy.deepcopy(module)
    seen: dict[str, torch.Tensor] = {}
    for path, part in twin.named_modules():
        if isinstance(part, _READERS):
            part.register_forward_pre_hook(_noting(path, part, seen))
        if path == stack.path:
            part.register_forward_hook(_marking(stack, marks))
        elif isinstance(part, _THROUGH):
            part.register_forward_hook(lambda layer, given, made: given[0])
        elif isinstance(part, _READERS):
            part.register_forward_hook(lambda layer, given, made: _finite(made))
    with torch.no_grad(), form.plain_attention():
        form.call_flat(twin, names, inputs)
    return seen


def _noting(path: str, layer: nn.Module, seen: dict[str, torch.Tensor]) -> Callable[..., None]:
    axis = 1 if isinstance(layer, _ConvNd | _NormBase | nn.GroupNorm) else -1

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if not given or not isinstance(given[0], torch.Tensor):
            return
        arrived = given[0].isnan().movedim(axis, -1).flatten(0, -2).any(0)
        seen[path] = seen[path] | arrived if path in seen else arrived

    return note


def _marking(stack: Stack, marks: torch.Tensor) -> Callable[..., Any]:
    """NaN in the answers and last states of the marked units."""
    parts = marks.reshape(len(stack.suffixes), -1)
    last = parts[-stack.ways :].flatten()

    def state(made: torch.Tensor) -> torch.Tensor:
        shown = parts[:, None, :] if made.ndim == 3 else parts
        return made.masked_fill(shown, float("nan"))

    def hook(_: nn.Module, given: Any, made: Any) -> Any:
        answer, states = made
        if not isinstance(answer, torch.Tensor):
            raise TypeError("it answers in packed sequences")
        told = tuple(state(one) for one in states) if isinstance(states, tuple) else state(states)
        return answer.masked_fill(last, float("nan")), told

    return hook


def _finite(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return made.nan_to_num(0.0)
    return tuple(_finite(one) for one in made) if isinstance(made, tuple) else made
