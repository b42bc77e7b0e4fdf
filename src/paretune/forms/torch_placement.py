"""Placement: which tensors of a module are quantised, and where the quantisers stand.

Integer kernels are made of a layer between quantised tensors. Inputs and weights are enough for kernels that answer in
float; where the sum of a residual block, or what comes out of a convolution, shall stay in integers, that tensor is
rounded too. A tensor is rounded where it leaves a module, or where it enters one: the user's code stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paretune.forms.torch_fake_quant import QUANTISED
from paretune.forms.torch_flow import ADDS, RECTIFIERS, Flow, Key, Op
from paretune.forms.torch_fold import LAYERS, channel_axis, has_statistics

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""What stands in them is run: no quantiser can."""


@dataclass(frozen=True)
class Placement:
    """Where activations are rounded.

    Attributes
    ----------
    inputs, outputs
        Paths of modules whose first input, or answer, is rounded; in order of the modules.
    unreached
        Paths of the modules in whose code a sum stays in float, as one of its terms passes no module's border.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    unreached: tuple[str, ...]


def quantisable(module: nn.Module, flow: Flow) -> tuple[str, ...]:
    """Paths of the layers that can be quantised and were called, in the order of their calls.

    A layer whose weight is computed of other parameters (weight or spectral normalisation) is none.
    """
    parts = dict(module.named_modules())
    found = [
        path
        for path in flow.order
        if type(parts[path]) in QUANTISED
        and _own_weight(parts[path]) is not None
        and flow.calls[path][0].taken is not None
    ]
    return tuple(dict.fromkeys(found))


def _own_weight(layer: nn.Module) -> nn.Parameter | None:
    """The weight that is the layer's own parameter; None where it is computed of others."""
    return layer._parameters.get("weight")


def foldable(module: nn.Module, flow: Flow) -> dict[str, str]:
    """The pairs that :class:`FoldBatchNorm` may fold in this module: path of the layer → path of the normalisation.

    A pair is a layer and a batch normalisation, each called once, where the layer's answer goes to the normalisation
    alone, and is no answer of the model. Normalisations without running statistics stay, and layers whose weight
    another module has too, or is computed of other parameters.
    """
    parts, found = dict(module.named_modules()), {}
    owners: dict[int, int] = {}
    for part in parts.values():
        for parameter in part._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for path, norm in parts.items():
        calls = flow.calls.get(path, ())
        if not isinstance(norm, _BatchNorm) or not has_statistics(norm) or len(calls) != 1 or calls[0].taken is None:
            continue
        users, maker = flow.users(calls[0].taken), flow.maker(calls[0].taken)
        layer = parts.get(maker.path) if maker is not None else None
        if maker is None or not isinstance(layer, LAYERS) or len(flow.calls[maker.path]) != 1 or len(users) != 1:
            continue
        if flow.calls[maker.path][0].given != calls[0].taken or calls[0].taken in flow.answers:
            continue
        weight = _own_weight(layer)
        if weight is None or owners[id(weight)] > 1:
            continue
        if (isinstance(layer, nn.Linear) and calls[0].rank != 2) or (
            channel_axis(layer) and getattr(layer, "groups", 1) != 1
        ):
            continue
        found[maker.path] = path
    return found


def place(module: nn.Module, flow: Flow, layers: Sequence[str], outputs: bool) -> Placement:
    """Where to round the activations around ``layers``; with ``outputs`` also convolutions' answers and sums' terms."""
    placing = _Placing(module, flow, layers)
    if outputs:
        placing.sums()
        placing.answers()
    placing.own_inputs()
    order = {path: number for number, path in enumerate(dict(module.named_modules()))}
    inputs, given = (tuple(sorted(found, key=order.__getitem__)) for found in (placing.inputs, placing.outputs))
    return Placement(inputs, given, tuple(dict.fromkeys(placing.unreached)))


class _Placing:
    """A placement being made."""

    def __init__(self, module: nn.Module, flow: Flow, layers: Sequence[str]) -> None:
        self.flow, self.layers = flow, layers
        self.parts = dict(module.named_modules())
        self.inputs: set[str] = set()
        self.outputs: set[str] = set()
        self.rounded: set[Key] = set()
        self.unreached: list[str] = []
        self.taken = {call.taken for path in layers for call in flow.calls[path]}

    def sums(self) -> None:
        """The terms of every sum that a quantised convolution's answer goes into, and what comes of the sum."""
        made = self._answers_of_convolutions()
        for op in self.flow.ops:
            if op.name not in ADDS or len(op.inputs) != 2:
                continue
            terms = [self.flow.origin(key) for key in op.inputs]
            if not made.intersection(terms):
                continue
            places = [self._place(key, op) for key in terms]
            if any(found is None for found in places):
                self.unreached.append(op.path)
                continue
            for key, found in zip(terms, places, strict=True):
                self._put(key, found or set())
            self._round_if_needed(self._rectified(op.outputs[0]))

    def answers(self) -> None:
        """What comes out of quantised convolutions and is not rounded by whoever takes it."""
        for path in self.layers:
            if not isinstance(self.parts[path], nn.Linear):
                for call in self.flow.calls[path]:
                    if call.given is not None:
                        self._round_if_needed(self._rectified(self._normalised(call.given)))

    def own_inputs(self) -> None:
        """The first inputs of the layers, but for those that come rounded already; what several take alone, once."""
        for key in dict.fromkeys(call.taken for path in self.layers for call in self.flow.calls[path]):
            users = self.flow.users(key) if key is not None else []
            if key is not None and len(users) > 1 and all(op.path in self.layers for op in users):
                found = self._place(key, *users)
                if found is not None and len(found) == 1:
                    self._put(key, found)
        for path in self.layers:
            takes = [call.taken for call in self.flow.calls[path] if call.taken is not None]
            if not all(self.flow.origin(key) in self.rounded or key in self.rounded for key in takes):
                self.inputs.add(path)

    def _answers_of_convolutions(self) -> set[Key]:
        """With what a normalisation or rectifier makes of them."""
        found: set[Key] = set()
        for path in self.layers:
            if not isinstance(self.parts[path], nn.Linear):
                for call in self.flow.calls[path]:
                    if call.given is not None:
                        found |= {call.given, normal := self._normalised(call.given), self._rectified(normal)}
        return found

    def _normalised(self, key: Key) -> Key:
        """The answer of the batch normalisation that alone takes this tensor, else the tensor."""
        users = self.flow.users(key)
        alone = len(users) == 1 and isinstance(self.parts.get(users[0].path), _BatchNorm)
        return users[0].outputs[0] if alone else key

    def _rectified(self, key: Key) -> Key:
        """The answer of the rectifier that alone takes this tensor, else the tensor."""
        users = self.flow.users(key)
        return users[0].outputs[0] if len(users) == 1 and users[0].name in RECTIFIERS else key

    def _round_if_needed(self, key: Key) -> None:
        users = self.flow.users(key)
        if key in self.rounded or not users:
            return  # rounded already, or an answer of the model itself
        if all(key in self.taken and op.path in self.layers for op in users):
            return  # whoever takes it rounds it
        if any(isinstance(self.parts[op.path], LAYERS) and op.path not in self.layers for op in users):
            return  # a layer that stays in float gets floats
        found = self._place(key, *users)
        if found is not None:
            self._put(key, found)

    def _put(self, key: Key, places: set[tuple[str, str]]) -> None:
        self.rounded.add(key)
        for role, path in places:
            (self.outputs if role == "output" else self.inputs).add(path)

    def _place(self, key: Key, *users: Op) -> set[tuple[str, str]] | None:
        """Where to round a tensor so that these users get it rounded: (role, path) each; None where nowhere will do."""
        if key in self.rounded:
            return set()
        for path in self.flow.order:  # the innermost module that answers with it comes first
            calls = self.flow.calls[path]
            if len(calls) == 1 and calls[0].given == key and calls[0].taken != key and self._may_stand(path):
                return {("output", path)}
        takers = [
            path
            for path, calls in self.flow.calls.items()
            if any(call.taken == key for call in calls) and self._may_stand(path) and len(calls) == 1
        ]
        outer = [path for path in takers if not any(path.startswith(f"{other}.") for other in takers)]
        covered = all(any(op.path == path or op.path.startswith(f"{path}.") for path in outer) for op in users)
        return {("input", path) for path in outer} if covered and outer else None

    def _may_stand(self, path: str) -> bool:
        return bool(path) and not isinstance(self.parts[path], LISTS)
