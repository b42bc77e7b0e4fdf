"""Which layers of a torch module hang together: torch-pruning's dependency graph, believed only as far as it is proven.

A group is proven by making the module narrower and comparing its answers with those of the module as it was, in which
nobody listens to the same channels: they must be equal to rounding. What is wrong or cannot run is left out, with the
reason. (A shortcut that pads channels, say, shifts them; the graph does not see that, and the narrower module runs.)
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.forms.torch_recurrent_width import recurrent_groups
from paretune.forms.torch_width import Cuts, Group, Member, Side, blocks_of, cut, is_depthwise, merged, silenced, units

NOISE = 0.1
"""Weights are shaken by so much of their size before a test: a weight of zero would hide what it should show."""
EXACT, ROUGH = 1e-8, 1e-4
"""How far answers may lie apart in float64 and float32, as a share of the largest."""
ANSWERS = "the model's answers would be narrower"

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Found:
    """The groups that may be made narrower, and why the layers of the others may not: path → reason."""

    groups: tuple[Group, ...]
    left: Mapping[str, str]


def groups(
    module: nn.Module,
    names: tuple[str, ...] | None,
    inputs: Tensors,
    *,
    known: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Found:
    """The groups of layers that can lose channels together, each of them proven.

    Parameters
    ----------
    names, inputs
        How the module is called, as for :func:`paretune.forms.torch.call_flat`; a batch of two examples or more.
    known
        Paths of groups that are left out untried, with the reason.

    Raises
    ------
    BuildError
        If torch-pruning cannot follow the module at all.
    """
    with form.plain_attention():
        possible, left = _traced(module, names, inputs)
        recurrent, unread = recurrent_groups(module, names, inputs)
        possible += recurrent
        left |= unread | dict(known or {})
        possible = [group for group in possible if group.name not in left]
        proof = Proof(module, names, inputs, seed)
        if possible and proof.fault(possible) is not None:
            possible = _proven(possible, left, proof)
    return Found(tuple(possible), left)


def _proven(possible: Sequence[Group], left: dict[str, str], proof: Proof) -> list[Group]:
    """Those that hold alone, and with those before them."""
    good: list[Group] = []
    for group in possible:
        fault = proof.fault([group])
        if fault is None:
            good.append(group)
        else:
            left[group.name] = fault
    while good and (fault := proof.fault(good)) is not None:
        left[good.pop().name] = f"not together with the others: {fault}"
    return good


class Proof:
    """Tests whether groups may be cut: see the module's own words."""

    def __init__(self, module: nn.Module, names: tuple[str, ...] | None, inputs: Tensors, seed: int) -> None:
        self._names, self._seed = names, seed
        exact = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
        shaken = _shaken(copy.deepcopy(module).double(), seed)
        self._module, self._inputs, self._limit = shaken, exact, EXACT
        if not self._answers_finitely():  # a number format of its own, or roots of what was shaken
            self._module, self._inputs, self._limit = copy.deepcopy(module), inputs, ROUGH

    def fault(self, tried: Sequence[Group]) -> str | None:
        """Why these groups may not lose channels together; None where they may. Half of the units of each go."""
        draw = torch.Generator().manual_seed(self._seed)
        cuts = []
        for group in tried:
            order = torch.randperm(len(group.units), generator=draw).tolist()
            cuts.append(group.cuts(order[: max(1, len(order) // 2)]))
        return self.fault_of(merged(cuts))

    def fault_of(self, cuts: Cuts) -> str | None:
        """As :meth:`fault`, of cuts."""
        narrow = copy.deepcopy(self._module)
        try:
            cut(narrow, cuts)
        except ParetuneError as error:
            return str(error)
        if not _is_tied_alike(self._module, narrow):
            return "weights are shared with a layer that keeps its channels"
        found, where, reason = self._run(narrow)
        if found is None:
            sharing = _sharing(self._module, where)
            if sharing:
                return f"{where} shares weights with {', '.join(sharing)}, and they can be narrower only one by one"
            return f"{where or 'the model'} fails when they are narrower ({reason}): is a size written into its code?"
        wanted, _, reason = self._run(silenced(self._module, cuts, narrow))
        if wanted is None:
            return f"they cannot be tested ({reason})"
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
            return ANSWERS
        if not all(_alike(one, other, self._limit) for one, other in zip(found, wanted, strict=True)):
            return "the dependency graph does not see rightly what hangs on them (a shortcut that pads channels, say)"
        return None

    def _run(self, module: nn.Module) -> tuple[Tensors | None, str, str]:
        """Answers, or the innermost module that failed and what it said."""
        entered: list[str] = []
        hooks = []
        for path, part in module.named_modules():
            hooks.append(part.register_forward_pre_hook(lambda *_, path=path: entered.append(path)))
            hooks.append(part.register_forward_hook(lambda *_: _left(entered)))
        try:
            with torch.no_grad(), form.plain_attention():
                return form.call_flat(module, self._names, self._inputs)[1], "", ""
        except Exception as error:  # whatever the user's forward raises when it is narrower
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            return None, entered[-1] if entered else "", reason or type(error).__name__
        finally:
            for hook in hooks:
                hook.remove()

    def _answers_finitely(self) -> bool:
        found = self._run(self._module)[0]
        return found is not None and all(bool(one.isfinite().all()) for one in found if one.is_floating_point())


def _left(entered: list[str]) -> None:
    entered.pop()


def _shaken(module: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.add_(NOISE * (parameter.square().mean().sqrt() + NOISE) * noise.to(parameter.dtype))
    return module


def _alike(one: torch.Tensor, other: torch.Tensor, limit: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    if not bool(one.isfinite().all()) or not bool(other.isfinite().all()):
        return torch.equal(one.isfinite(), other.isfinite()) and _alike(
            one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0), limit
        )
    scale = 1e-12 + max(float(one.abs().max()), float(other.abs().max())) if one.numel() else 1.0
    return not one.numel() or float((one - other).abs().max()) <= limit * scale


def _sharing(module: nn.Module, path: str) -> list[str]:
    """The other modules that hold a parameter of the module at a path as their own."""
    parts = dict(module.named_modules())
    ours = {id(one) for one in parts[path].parameters(recurse=False)} if path in parts else set()
    return [
        other for other, part in parts.items()
        if other != path and any(id(one) in ours for one in part.parameters(recurse=False))
    ]  # fmt: skip


def _is_tied_alike(before: nn.Module, after: nn.Module) -> bool:
    """Whether the same names share tensors."""

    def ties(module: nn.Module) -> set[frozenset[str]]:
        found: dict[int, set[str]] = {}
        for name, tensor in module.named_parameters(remove_duplicate=False):
            found.setdefault(id(tensor), set()).add(name)
        return {frozenset(names) for names in found.values()}

    return ties(before) == ties(after)


# -- torch-pruning ---------------------------------------------------------------------------------------------------


def _traced(module: nn.Module, names: tuple[str, ...] | None, inputs: Tensors) -> tuple[list[Group], dict[str, str]]:
    """The groups as torch-pruning sees them, and why some are none."""
    import torch_pruning

    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # what is frozen hangs together too
    graph = torch_pruning.DependencyGraph()
    try:
        with _whole_recurrences(twin), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                twin, inputs, forward_fn=lambda net, given: form.call_flat(net, names, given)[1],
                output_transform=lambda made: [tensor for tensor in made if tensor.grad_fn is not None], verbose=False,
                # it knows only one kind of recurrent layer; the others read their inputs in the same way
                customized_pruners={kind: torch_pruning.pruner.function.LSTMPruner() for kind in (nn.GRU, nn.RNN)},
            )  # fmt: skip
    except ParetuneError:
        raise
    except Exception as error:  # torch-pruning raises whatever its walk stumbles over
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise BuildError(
            f"torch-pruning cannot follow the model: {type(error).__name__}: {reason}", where="dependency graph",
            do="prune blocks or heads, or sparsify it",
        ) from error  # fmt: skip
    found: list[Group] = []
    left: dict[str, str] = {}
    seen: set[int] = set()
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
    for name, layer in twin.named_modules():
        if not isinstance(layer, kinds) or layer not in graph.module2node or id(layer) in seen:
            continue
        try:
            group, makers = _group(graph, layer, name)
        except Exception as error:  # the same, in a part of the model
            left[name] = str(error) if isinstance(error, BuildError) else f"torch-pruning fails there: {error}"
            continue
        seen |= makers
        if group is not None and len(group.units) > 1:
            found.append(group)
    return found, left


def _group(graph: Any, layer: nn.Module, name: str) -> tuple[Group | None, set[int]]:
    """The group whose channels are a layer's outputs, None where the model answers with them; and its makers."""
    pruner = graph.get_pruner_of_module(layer)
    width = pruner.get_out_channels(layer)
    items = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(width)))
    members: list[Member] = []
    joined: list[tuple[int, ...]] = []
    makers = {id(layer)}
    for item in items:
        target = item.dep.target
        if type(target.module).__module__.startswith("torch_pruning"):
            if type(target.module).__name__ == "_OutputOp":
                return None, makers
            continue
        side: Side = "in" if graph.is_in_channel_pruning_fn(item.dep.handler) else "out"
        if graph.is_out_channel_pruning_fn(item.dep.handler) and side == "in":
            side = "both"
        member = _member(graph, target, side, item)
        if member.side == "out" or is_depthwise(target.module):
            makers.add(id(target.module))
        if member.side != "in" and not target.outputs:
            return None, makers  # the last layer
        members.append(member)
        joined += _by_block(target.module, member, width)
    if any(len(member.places) < width for member in members):
        for root in range(width):
            alone = graph.get_pruning_group(layer, pruner.prune_out_channels, [root])
            joined.append(tuple(alone[0].idxs))
    parts = units(width, joined)
    return Group(name, width, tuple(members), parts if len({len(part) for part in parts}) == 1 else ()), makers


def _member(graph: Any, target: Any, side: Side, item: Any) -> Member:
    if any(root is None for root in item.root_idxs):
        raise BuildError("its channels cannot be followed")
    places, roots = tuple(map(int, item.idxs)), tuple(map(int, item.root_idxs))
    if isinstance(target.module, nn.Parameter):
        axis = target.pruning_dim % target.module.ndim
        return Member(graph._param_to_name[target.module], "both", places, roots, axis)
    if isinstance(target.module, nn.Embedding):
        side = "out"
    elif isinstance(target.module, nn.modules.conv._ConvNd) and is_depthwise(target.module):
        side = "both"
    return Member(graph._module2name[target.module], side, places, roots)


def _by_block(layer: object, member: Member, width: int) -> Iterator[tuple[int, ...]]:
    """Channels of which each group of a grouped layer has one: they go together."""
    blocks = blocks_of(layer)
    if blocks == 1 or len(member.places) % blocks:
        return
    size = len(member.places) // blocks
    found: dict[int, list[int]] = {}
    for place, root in zip(member.places, member.roots, strict=True):
        found.setdefault(place % size, []).append(root)
    yield from (tuple(roots) for roots in found.values())


@contextlib.contextmanager
def _whole_recurrences(module: nn.Module) -> Iterator[None]:
    """Recurrent layers answer in one step of the graph: what they do inside is no business of their neighbours."""
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    for layer in layers:
        layer.forward = _in_one_step(layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _in_one_step(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(given: Any, *state: Any, **named: Any) -> Any:
        made, last = forward(given, *state, **named)
        if not isinstance(given, torch.Tensor):
            return made, last  # packed sequences are followed as they are
        flat = last if isinstance(last, tuple) else (last,)
        answers = _Opaque.apply(given, made.detach(), *(one.detach() for one in flat))
        return answers[0], tuple(answers[1:]) if isinstance(last, tuple) else answers[1]

    return call


class _Opaque(torch.autograd.Function):
    """One node of the graph: from what a layer reads to all that it answers."""

    @staticmethod
    def forward(ctx: Any, given: torch.Tensor, *made: torch.Tensor) -> Any:
        return tuple(one.clone() for one in made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError("this graph is looked at, and never differentiated")
