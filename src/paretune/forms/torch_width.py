"""Width: how channels are cut out of a torch module's layers, and which layers must lose them together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from paretune.errors import BuildError
from paretune.forms.torch_fake_quant import FakeQuant

Side = Literal["out", "in", "both"]
Spot = tuple[str, Side, int]
"""A member's path, side and axis."""
Cuts = Mapping[Spot, Sequence[int]]
"""Which places go, counted as they are before any cut."""


@dataclass(frozen=True)
class Member:
    """A layer that loses channels with its group.

    Attributes
    ----------
    path
        The module's, or a bare parameter's.
    side
        ``out``: channels that it makes; ``in``: channels that it reads; ``both``: it reads and makes the same ones, as
        normalisations and depthwise convolutions do.
    places
        Where on that side the group's channels are.
    roots
        For each place the channel of the group that it belongs to.
    axis
        Of a bare parameter the one that its channels lie along; -1: the path is a module's.
    """

    path: str
    side: Side
    places: tuple[int, ...]
    roots: tuple[int, ...]
    axis: int = -1


@dataclass(frozen=True)
class Group:
    """Layers that must lose the same channels together (a group of Fang et al. 2023, "DepGraph").

    Attributes
    ----------
    name
        The path of the layer whose output channels the group counts.
    width
        How many there are.
    members
        All that are cut.
    units
        Which channels can only go together, each a tuple; one channel each for most layers, one of every block where
        convolutions or normalisations are grouped.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    units: tuple[tuple[int, ...], ...]

    @property
    def makers(self) -> tuple[str, ...]:
        """The paths of the layers whose outputs get narrower by it."""
        return tuple(dict.fromkeys(member.path for member in self.members if member.side == "out")) or (self.name,)

    def cuts(self, gone: Iterable[int]) -> dict[Spot, tuple[int, ...]]:
        """What goes from each member when these units go."""
        roots = {root for unit in gone for root in self.units[unit]}
        found: dict[Spot, set[int]] = {}
        for member in self.members:
            lost = {place for place, root in zip(member.places, member.roots, strict=True) if root in roots}
            found.setdefault((member.path, member.side, member.axis), set()).update(lost)
        return {key: tuple(sorted(places)) for key, places in found.items()}


def merged(cuts: Iterable[Cuts]) -> dict[Spot, tuple[int, ...]]:
    """All cuts as one."""
    found: dict[Spot, set[int]] = {}
    for one in cuts:
        for key, places in one.items():
            found.setdefault(key, set()).update(places)
    return {key: tuple(sorted(places)) for key, places in found.items() if places}


@dataclass(frozen=True)
class Slice:
    """What is kept of a tensor along an axis; ``blocks`` is the number of groups of the convolution it belongs to."""

    axis: int
    kept: tuple[int, ...]
    blocks: int = 1

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A grouped convolution's second axis counts within a block, and each block of the first loses its own."""
        if self.blocks == 1 or self.axis == 0:
            return tensor.index_select(self.axis, torch.tensor(self.kept, device=tensor.device))
        size = tensor.shape[1]
        found = []
        for number, block in enumerate(tensor.chunk(self.blocks)):
            kept = [place - number * size for place in self.kept if number * size <= place < (number + 1) * size]
            found.append(block.index_select(1, torch.tensor(kept, device=tensor.device)))
        return torch.cat(found)


def cut(module: nn.Module, cuts: Cuts) -> None:
    """Cut places out of layers, in place; shared tensors stay shared, frozen ones frozen.

    Raises
    ------
    BuildError
        If a layer is of a kind that cannot be cut, would lose all or an uneven part of its channels, or if two layers
        that share a tensor would lose different parts of it.
    """
    wanted: dict[int, tuple[torch.Tensor, dict[int, Slice]]] = {}
    for (path, side, axis), places in cuts.items():
        if not places:
            continue
        for tensor, piece in _slices(module, path, side, axis, places):
            _, pieces = wanted.setdefault(id(tensor), (tensor, {}))
            if pieces.setdefault(piece.axis, piece) != piece:
                raise BuildError("shares its weight with a layer that loses other channels", where=path)
    for tensor, pieces in wanted.values():
        made = tensor.detach()
        for axis in sorted(pieces):
            made = pieces[axis].of(made)
        _replace(module, tensor, made)


def _slices(
    module: nn.Module, path: str, side: Side, axis: int, places: Sequence[int]
) -> Iterator[tuple[torch.Tensor, Slice]]:
    """Tensors of one layer and what stays of them; its attributes are set to what will be."""
    if axis >= 0:
        yield bare(module, path), Slice(axis, _kept(bare(module, path).shape[axis], places, path))
        return
    layer: Any = module.get_submodule(path)
    if isinstance(layer, _ConvNd):
        yield from _convolution(layer, path, side, places)
    elif isinstance(layer, nn.Linear):
        kept = _kept(layer.out_features if side == "out" else layer.in_features, places, path)
        yield _own(layer, "weight", path), Slice(0 if side == "out" else 1, kept)
        if side == "out":
            layer.out_features = len(kept)
            if layer.bias is not None:
                yield _own(layer, "bias", path), Slice(0, kept)
            yield from _scales(layer, kept)
        else:
            layer.in_features = len(kept)
    elif isinstance(layer, nn.Embedding):
        kept = _kept(layer.embedding_dim, places, path)
        layer.embedding_dim = len(kept)
        yield _own(layer, "weight", path), Slice(1, kept)
    elif isinstance(layer, nn.RNNBase) and side == "out":
        layer.hidden_size = len(_kept(layer.hidden_size, places, path))  # its tensors are members of their own
    elif isinstance(layer, nn.RNNBase):
        kept = _kept(layer.input_size, places, path)
        layer.input_size = len(kept)
        for name in ("weight_ih_l0", "weight_ih_l0_reverse")[: 2 if layer.bidirectional else 1]:
            yield _own(layer, name, path), Slice(1, kept)
    else:
        yield from _normalisation(layer, path, places)


def _convolution(layer: Any, path: str, side: Side, places: Sequence[int]) -> Iterator[tuple[torch.Tensor, Slice]]:
    made = 1 if layer.transposed else 0
    if side == "both":  # depthwise: a group is a channel
        kept = _kept(layer.out_channels, places, path)
        layer.in_channels = layer.out_channels = layer.groups = len(kept)
        yield _own(layer, "weight", path), Slice(0, kept)
    else:
        attribute = "out_channels" if side == "out" else "in_channels"
        kept = _kept(getattr(layer, attribute), places, path)
        _demand_even(kept, getattr(layer, attribute), layer.groups, path)
        setattr(layer, attribute, len(kept))
        yield _own(layer, "weight", path), Slice(made if side == "out" else 1 - made, kept, layer.groups)
    if layer.bias is not None and side != "in":
        yield _own(layer, "bias", path), Slice(0, kept)
    if side != "in":
        yield from _scales(layer, kept)


def _scales(layer: nn.Module, kept: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, Slice]]:
    """Those of a quantised layer's weight, where every output channel has its own."""
    quantiser = layer._modules.get("weight_quantiser")
    if isinstance(quantiser, FakeQuant) and quantiser.scale.ndim:
        yield quantiser.scale, Slice(0, kept)


def _normalisation(layer: Any, path: str, places: Sequence[int]) -> Iterator[tuple[torch.Tensor, Slice]]:
    """Layers with one vector, or a few, along their channels."""
    if isinstance(layer, _NormBase):
        kept = _kept(layer.num_features, places, path)
        layer.num_features = len(kept)
    elif isinstance(layer, nn.GroupNorm):
        kept = _kept(layer.num_channels, places, path)
        _demand_even(kept, layer.num_channels, layer.num_groups, path)
        layer.num_channels = len(kept)
    elif isinstance(layer, nn.PReLU):
        if layer.num_parameters == 1:
            return
        kept = _kept(layer.num_parameters, places, path)
        layer.num_parameters = len(kept)
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        kept = _kept(layer.normalized_shape[0], places, path)
        layer.normalized_shape = (len(kept),)
    else:
        raise BuildError(f"a {type(layer).__qualname__} cannot be made narrower", where=path)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(layer, name, None) is not None:
            yield _own(layer, name, path), Slice(0, kept)


def _own(layer: nn.Module, name: str, path: str) -> torch.Tensor:
    """A tensor that is the layer's own, not computed of others."""
    held = layer._parameters.get(name)
    found = layer._buffers.get(name) if held is None else held
    if found is None:
        raise BuildError(f"its {name} is computed of other parameters, and cannot be cut", where=path)
    return found


def bare(module: nn.Module, path: str) -> torch.Tensor:
    """The parameter at a dotted path."""
    parent, _, name = path.rpartition(".")
    return cast(torch.Tensor, getattr(module.get_submodule(parent), name))


def _kept(width: int, places: Sequence[int], path: str) -> tuple[int, ...]:
    gone = set(places)
    if gone and max(gone) >= width:
        raise BuildError(f"has {width} channels, and number {max(gone)} should go", where=path)
    if len(gone) >= width:
        raise BuildError(f"would lose all of its {width} channels", where=path)
    return tuple(place for place in range(width) if place not in gone)


def _demand_even(kept: Sequence[int], width: int, groups: int, path: str) -> None:
    size = width // groups
    counts = [0] * groups
    for place in kept:
        counts[place // size] += 1
    if len(set(counts)) > 1 or not counts[0]:
        raise BuildError(f"its {groups} groups would differ in width", where=path)


def _replace(module: nn.Module, before: torch.Tensor, made: torch.Tensor) -> None:
    """Put a tensor in another's place, in all that hold it."""
    made = made.contiguous()
    if isinstance(before, nn.Parameter):
        made = nn.Parameter(made, requires_grad=before.requires_grad)
    for owner in module.modules():
        for held in (owner._parameters, owner._buffers):
            for name, tensor in held.items():
                if tensor is before:
                    cast(dict[str, Any], held)[name] = made
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()  # it holds them in a list of its own, too


def silenced(module: nn.Module, cuts: Cuts, narrower: nn.Module) -> nn.Module:
    """A copy of ``module``, as wide as it is, in which nobody listens to the channels that go.

    Its answers are those of ``narrower``, cut by the same ``cuts``, if and only if the cuts belong together. Weights
    that read those channels are zero; a normalisation over channels (layer, group) counts only the others.
    """
    twin = copy.deepcopy(module)
    for (path, side, axis), places in cuts.items():
        if not places:
            continue
        layer: Any = None if axis >= 0 else twin.get_submodule(path)
        if layer is None and side == "in":
            with torch.no_grad():
                bare(twin, path).index_fill_(axis, torch.tensor(places), 0)
        elif side == "in":
            _deafen(layer, places)
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            small = narrower.get_submodule(path)
            width = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.normalized_shape[0]
            kept = torch.tensor(_kept(width, places, path))
            layer.register_forward_hook(_over(small, kept, 1 if isinstance(layer, nn.GroupNorm) else -1))
    return twin


def _deafen(layer: Any, places: Sequence[int]) -> None:
    with torch.no_grad():
        if isinstance(layer, nn.RNNBase):
            for name in ("weight_ih_l0", "weight_ih_l0_reverse")[: 2 if layer.bidirectional else 1]:
                getattr(layer, name)[:, list(places)] = 0
        elif isinstance(layer, _ConvNd) and layer.transposed:
            layer.weight[list(places)] = 0
        elif isinstance(layer, _ConvNd) and layer.groups > 1:
            size, made = layer.weight.shape[1], layer.out_channels // layer.groups
            for place in places:
                block = place // size
                layer.weight[block * made : (block + 1) * made, place % size] = 0
        else:
            layer.weight[:, list(places)] = 0


def _over(small: nn.Module, kept: torch.Tensor, axis: int) -> Any:
    def hook(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> torch.Tensor:
        found = small(given[0].index_select(axis, kept))
        return torch.zeros_like(made).index_copy(axis % made.ndim, kept, found)

    return hook


def units(width: int, joined: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """``width`` channels in as many parts as can be, so that those of each of ``joined`` lie in one part."""
    part = list(range(width))  # of each channel one of its part; a part's own channel points at itself

    def own(place: int) -> int:
        while part[place] != place:
            part[place] = part[part[place]]
            place = part[place]
        return place

    for together in joined:
        first, *rest = sorted(together)
        for place in rest:
            part[max(own(first), own(place))] = min(own(first), own(place))
    found: dict[int, list[int]] = {}
    for place in range(width):
        found.setdefault(own(place), []).append(place)
    return tuple(tuple(places) for places in found.values())


def blocks_of(layer: object) -> int:
    """Into how many groups a layer divides its channels; 1 for a depthwise convolution, whose groups are channels."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, _ConvNd) and not is_depthwise(layer):
        return layer.groups
    return 1


def is_depthwise(layer: object) -> bool:
    """Whether a convolution reads and makes the same channels, each of its own group."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels == layer.in_channels > 1


def rows(module: nn.Module, member: Member, tensor: torch.Tensor | None = None) -> torch.Tensor | None:
    """The weights that belong to a member's places, [places, numbers]; None where it has none.

    ``tensor`` stands in the place of the member's :func:`weight`: its gradient, say.
    """
    held = weight(module, member)
    if held is None:
        return None
    found, places = held if tensor is None else tensor, torch.tensor(member.places)
    if member.axis >= 0:
        return found.transpose(0, member.axis).index_select(0, places).reshape(len(places), -1)
    layer: Any = module.get_submodule(member.path)
    if member.side == "both":
        return found.index_select(0, places).reshape(len(places), -1)
    if isinstance(layer, nn.Embedding | nn.RNNBase):
        return found.index_select(1, places).t()
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    axis = int((member.side == "in") != transposed)
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    if axis and groups > 1:
        found = torch.cat([block.transpose(0, 1) for block in found.chunk(groups)])
    else:
        found = found.transpose(0, axis)
    return found.index_select(0, places).reshape(len(places), -1)


def weight(module: nn.Module, member: Member) -> torch.Tensor | None:
    """The tensor that :func:`rows` looks at, None where the member has none."""
    if member.axis >= 0:
        return bare(module, member.path)
    layer: Any = module.get_submodule(member.path)
    if isinstance(layer, nn.RNNBase):
        return cast(torch.Tensor, layer.weight_ih_l0) if member.side == "in" else None
    found = getattr(layer, "weight", None)
    if not isinstance(found, torch.Tensor) or (member.side == "both" and len(found) <= max(member.places)):
        return None  # a normalisation without scales, or a single scale for all
    return found
