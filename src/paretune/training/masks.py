"""Masks: how many of which weights become zero, and what holds them at zero while a module is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paretune.training.sparse_plan import Ramp
from paretune.training.sparsity import Weight


@dataclass(frozen=True)
class Goal:
    """So many zeros among some weights together (places in the tuple that :func:`eligible` gave)."""

    places: tuple[int, ...]
    zeros: int


def goals(weights: Sequence[Weight], sparsity: float, scope: str) -> tuple[Goal, ...]:
    """How many zeros where.

    ``per_layer``: the same share of each weight. ``global``: a share of all together, so that the least important go
    wherever they are. ``erdos_renyi``: shares that rise with a layer's size, to the same total (Evci, Gale, Menick,
    Castro & Elsen 2020, "Rigging the Lottery": the density of a weight is proportional to the sum of its axes' lengths
    over their product).
    """
    sizes = [weight.parameter.numel() for weight in weights]
    if scope == "global":
        return (Goal(tuple(range(len(sizes))), round(sparsity * sum(sizes))),)
    if scope == "per_layer":
        return tuple(Goal((place,), round(sparsity * size)) for place, size in enumerate(sizes))
    shapes = [tuple(weight.parameter.shape) for weight in weights]
    return tuple(Goal((place,), zeros) for place, zeros in enumerate(erdos_renyi(shapes, sparsity)))


def erdos_renyi(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[int]:
    """Zeros of each weight; together the asked share, to the element."""
    sizes = [float(torch.Size(shape).numel()) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    kept, dense = (1 - sparsity) * sum(sizes), set[int]()
    while True:  # whoever would be more than dense is dense, and the others share the rest
        free = [place for place in range(len(sizes)) if place not in dense]
        left = kept - sum(sizes[place] for place in dense)
        scale = left / sum(raw[place] * sizes[place] for place in free) if free else 0.0
        full = {place for place in free if scale * raw[place] > 1}
        if not full:
            break
        dense |= full
    exact = [0.0 if place in dense else size * (1 - scale * raw[place]) for place, size in enumerate(sizes)]
    ends = [round(end) for end in itertools.accumulate(exact)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


class Masks(nn.Module):
    """What of each weight is alive, as buffers: the companion of a training that makes its module sparse.

    What is dead stays dead. With ``moving`` it also gathers how far each weight moved away from zero.
    """

    def __init__(self, weights: Sequence[Weight], moving: bool = False) -> None:
        super().__init__()
        self.weights, self.moving = tuple(weights), moving
        for place, weight in enumerate(self.weights):
            tensor = weight.parameter.detach()
            self.register_buffer(f"alive_{place}", torch.ones(tensor.shape, dtype=torch.bool))
            if moving:
                self.register_buffer(f"before_{place}", tensor.clone())
                self.register_buffer(f"moved_{place}", torch.zeros(tensor.shape))

    def alive(self, place: int) -> torch.Tensor:
        """bool, in the shape of the weight: the mask itself, which may be changed."""
        return self.get_buffer(f"alive_{place}")

    @property
    def dead(self) -> tuple[int, ...]:
        """How many elements of each weight are dead."""
        return tuple(int((~self.alive(place)).sum()) for place in range(len(self.weights)))

    @torch.no_grad()
    def hold(self) -> None:
        """Set what is dead to zero."""
        for place, weight in enumerate(self.weights):
            weight.parameter.masked_fill_(~self.alive(place), 0.0)

    @torch.no_grad()
    def watch(self) -> None:
        """Add w · Δw of the last update to what was gathered; nothing for what is dead."""
        for place, weight in enumerate(self.weights):
            before, moved = self.get_buffer(f"before_{place}"), self.get_buffer(f"moved_{place}")
            moved += (before * (weight.parameter - before)).float().masked_fill(~self.alive(place), 0.0)
            before.copy_(weight.parameter)

    def importance(self, place: int) -> torch.Tensor:
        """float32 in the shape of the weight: its magnitude, or its movement; minus infinity where it is dead."""
        weight = self.weights[place].parameter.detach()
        score = self.get_buffer(f"moved_{place}") if self.moving else weight.abs().float()
        return score.masked_fill(~self.alive(place), -torch.inf)


def shrink(masks: Masks, aims: Sequence[Goal], share: float = 1.0) -> None:
    """Kill the least important until each goal is reached to this share, and hold them at zero."""
    for aim in aims:
        scores = torch.cat([masks.importance(place).reshape(-1) for place in aim.places])
        dead = lowest(scores, round(share * aim.zeros))
        sizes = [masks.alive(place).numel() for place in aim.places]
        for place, part in zip(aim.places, dead.split(sizes), strict=True):
            masks.alive(place).logical_and_(~part.reshape(masks.alive(place).shape))
    masks.hold()


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool [n]: the ``count`` lowest of ``scores`` [n]; of equal ones those that come first."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if count > 0:
        edge = scores.kthvalue(count).values
        chosen = scores < edge
        equal = (scores == edge).nonzero().reshape(-1)
        chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def shrink_groups(masks: Masks, kept: int, m: int) -> None:
    """Kill the least important of every ``m`` neighbours along the input axis until ``kept`` are alive.

    Neighbours are counted as :func:`grouped` lays them. Of equal ones the first live.
    """
    for place, weight in enumerate(masks.weights):
        scores = grouped(masks.importance(place), weight, m)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :kept]
        alive = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        axis = weight.input_axis or 0
        shape = masks.alive(place).movedim(axis, -1).shape
        masks.alive(place).logical_and_(alive.reshape(shape).movedim(-1, axis))
    masks.hold()


def grouped(tensor: torch.Tensor, weight: Weight, m: int) -> torch.Tensor:
    """[groups, m]: the tensor, in the shape of the weight, cut along the weight's input axis.

    For a linear layer [out, in] these are ``m`` inputs of one output; for a convolution [out, in, *kernel] ``m`` input
    channels of one output at one place of the kernel: the axis over which a matrix product sums, as a GPU's sparse
    tensor cores take it.
    """
    assert weight.input_axis is not None
    return tensor.movedim(weight.input_axis, -1).reshape(-1, m)


def during(masks: Masks, ramp: Ramp, prune: Callable[[float], None]) -> Callable[[int, int], None]:
    """What a training does after every step: ``prune(share)`` when the ramp rises, and hold the dead at zero.

    A function of the module, the masks and the step alone, so that a resumed training does the same.
    """

    def each(done: int, total: int) -> None:
        masks.hold()
        if masks.moving:
            masks.watch()
        if ramp.rises(done, total):
            prune(ramp.share(done, total))

    return each
