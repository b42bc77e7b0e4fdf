"""Flow: which tensors a module's parts hand to each other, seen while one batch goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from paretune.forms import torch as form

Key = tuple[int, int]
"""A tensor at one time: its identity and how often it had been changed in place."""

MOVES = frozenset(
    [
        "__getitem__", "adaptive_max_pool2d", "chunk", "contiguous", "dropout", "flatten", "max_pool1d", "max_pool2d",
        "max_pool3d", "movedim", "narrow", "pad", "permute", "repeat", "reshape", "select", "split", "squeeze", "t",
        "transpose", "unflatten", "unsqueeze", "view",
    ]
)  # fmt: skip
"""Functions whose answers hold values of their first input, and zeros perhaps: what was rounded stays rounded."""
ADDS = frozenset(["add", "add_", "__add__", "__iadd__", "__radd__"])
RECTIFIERS = frozenset(["relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clip"])


@dataclass(frozen=True)
class Op:
    """One call of a torch function by the module at ``path``."""

    name: str
    path: str
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]


@dataclass(frozen=True)
class Call:
    """One call of a module: its first input, where that is a tensor, and its answer, where that is one."""

    taken: Key | None
    given: Key | None
    rank: int


@dataclass
class Flow:
    """What was seen, in order."""

    ops: list[Op] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """Paths as their calls ended: a part stands before what holds it."""
    answers: frozenset[Key] = frozenset()
    """What the whole module answers with."""

    def maker(self, key: Key) -> Op | None:
        """The function that made a tensor; None for one that came from outside."""
        return next((op for op in self.ops if key in op.outputs), None)

    def users(self, key: Key) -> list[Op]:
        """The functions that took a tensor."""
        return [op for op in self.ops if key in op.inputs]

    def origin(self, key: Key) -> Key:
        """The tensor that another one's values come from, through functions that only move them."""
        op = self.maker(key)
        while op is not None and op.name in MOVES and op.inputs:
            key = op.inputs[0]
            op = self.maker(key)
        return key


def trace(module: nn.Module, names: tuple[str, ...] | None, tensors: tuple[torch.Tensor, ...]) -> Flow:
    """Run one batch through the module, in eval mode and without gradients, and tell what was seen."""
    flow = Flow()
    held: list[Any] = []  # an identity says something only while the tensor lives
    stack: list[tuple[str, Key | None, int]] = [("", None, 0)]
    paths = {part: path for path, part in module.named_modules()}
    copies = tuple(tensor.clone() for tensor in tensors)  # the module may write into them
    handles = []

    def enter(part: nn.Module, args: Any) -> None:
        held.append(args)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        stack.append((paths[part], None if first is None else key_of(first), 0 if first is None else first.ndim))

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        held.append(output)
        path, taken, rank = stack.pop()
        given = key_of(output) if isinstance(output, torch.Tensor) else None
        flow.calls.setdefault(path, []).append(Call(taken, given, rank))
        flow.order.append(path)

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
        ) -> Any:
            name = getattr(function, "__name__", "")
            inputs = _keys((args, kwargs))
            output = function(*args, **(kwargs or {}))
            outputs = _keys(output)
            if outputs and not name.startswith("__get__"):
                held.append((args, kwargs, output))
                flow.ops.append(Op(_PLAIN.get(name, name), stack[-1][0], inputs, outputs))
            return output

    try:
        for part in paths:
            handles.append(part.register_forward_pre_hook(enter))
            handles.append(part.register_forward_hook(leave))
        with torch.no_grad(), form.plain_attention(), Watch():
            answers = form.call_bare(module, names, copies)[1]
            flow.answers = frozenset(key_of(answer) for answer in answers)
    finally:
        for handle in handles:
            handle.remove()
    return flow


_PLAIN = {"_max_pool1d": "max_pool1d", "_max_pool2d": "max_pool2d", "_max_pool3d": "max_pool3d"}


def key_of(tensor: torch.Tensor) -> Key:
    """The tensor as it is now."""
    return id(tensor), tensor._version


def _keys(values: Any) -> tuple[Key, ...]:
    return tuple(key_of(value) for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor))
