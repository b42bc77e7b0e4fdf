"""Importance: what a model is thought to lose with each channel of a group of layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_width import Group, rows, weight
from paretune.training.device import home, repeatable
from paretune.training.learner import Learner
from paretune.training.lesson import Lessons
from paretune.training.loss import Step
from paretune.training.order import Order

KINDS = ("l1", "l2", "bn_scale", "taylor", "lamp", "geometric_median")
Scores = dict[str, torch.Tensor]
"""Of each group, by name, float64 [channels]: higher is more important."""


def by_weights(module: nn.Module, groups: Sequence[Group], kind: str) -> Scores:
    """Importance that the parameters alone tell.

    - ``l1``, ``l2``: the norm of all the weights that go with a channel, over the mean of its group (Li et al. 2017,
      "Pruning Filters for Efficient ConvNets"; of a whole group: Fang et al. 2023, "DepGraph").
    - ``bn_scale``: the mean size of the scales that batch normalisation multiplies it by (Liu et al. 2017, "Network
      Slimming"). A group without batch normalisation has no score.
    - ``lamp``: the squared norm over the sum of those that are not smaller in its group (Lee et al. 2021,
      "Layer-adaptive Sparsity for the Magnitude-based Pruning").
    - ``geometric_median``: the sum of the distances from the other filters of its layer, over the mean of the group
      (He et al. 2019, "Filter Pruning via Geometric Median").
    """
    found = {}
    with torch.no_grad():
        for group in groups:
            scores = _score(module, group, kind)
            if scores is not None:
                found[group.name] = scores
    return found


def _score(module: nn.Module, group: Group, kind: str) -> torch.Tensor | None:
    if kind == "bn_scale":
        return _scales(module, group)
    if kind == "geometric_median":
        return _distances(module, group)
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        held = rows(module, member)
        if held is not None:
            spread = held.double().abs().sum(1) if kind == "l1" else held.double().square().sum(1)
            total.index_add_(0, torch.tensor(member.roots), spread)
    if kind == "lamp":
        return _adapted(total)
    return _relative(total if kind == "l1" else total.sqrt())


def _scales(module: nn.Module, group: Group) -> torch.Tensor | None:
    total, count = torch.zeros(group.width, dtype=torch.float64), torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        layer = None if member.axis >= 0 else module.get_submodule(member.path)
        if isinstance(layer, _BatchNorm) and layer.affine:
            roots = torch.tensor(member.roots)
            total.index_add_(0, roots, layer.weight[list(member.places)].abs().double())
            count.index_add_(0, roots, torch.ones(len(roots), dtype=torch.float64))
    return total / count if bool(count.all()) else None


def _distances(module: nn.Module, group: Group) -> torch.Tensor | None:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        filters = rows(module, member) if member.side == "out" else None
        if filters is None:
            continue
        filters = filters.double()
        apart = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        total.index_add_(0, torch.tensor(member.roots), apart)
    return _relative(total) if bool(total.any()) else None


def _relative(scores: torch.Tensor) -> torch.Tensor:
    """Over their mean, so that layers of other sizes can be compared."""
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores


def _adapted(squares: torch.Tensor) -> torch.Tensor:
    order = squares.argsort(stable=True)
    rising = squares[order]
    rest = rising.flip(0).cumsum(0).flip(0)  # each with all that are not smaller
    found = torch.zeros_like(squares)
    found[order] = rising / rest.clamp(min=torch.finfo(torch.float64).tiny)
    return found


def by_gradients(
    module: nn.Module, artifact: Artifact, data: Split, groups: Sequence[Group], step: Step, examples: int, batch: int,
    seed: int,
) -> Scores:  # fmt: skip
    """The square of what the loss would change without a channel, to first order, mean over batches.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8: (Σ weight · gradient)² over
    all weights that go with the channel. In eval mode, on a copy; frozen parameters count like others.

    Parameters
    ----------
    step
        The loss against the labels: a model has no gradient against its own answers.
    examples, batch
        How many examples to look at, at most, and how many at once.
    """
    device = home()
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    learner = Learner(twin.to(device).eval(), form.keywords(artifact))
    order = Order(len(data), min(batch, len(data)), seed)
    lessons = Lessons(data, artifact, device)
    steps = min(order.steps, max(1, examples // order.batch))
    found = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
    # cuDNN's recurrent layers have no gradients in eval mode
    with repeatable(device), torch.backends.cudnn.flags(enabled=False):
        for number in range(steps):
            twin.zero_grad(set_to_none=True)
            step(learner, lessons.at(order.places(number))).backward()
            for group in groups:
                found[group.name] += _expected(twin, group).square() / steps
    for name, scores in found.items():
        if not bool(scores.isfinite().all()):
            raise BuildError("its gradients are not finite", where=name, do="choose another importance")
    return found


def _expected(module: nn.Module, group: Group) -> torch.Tensor:
    """Σ weight · gradient of each channel, [channels]."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        held = weight(module, member)
        if held is None or held.grad is None:
            continue
        product = (held.detach() * held.grad).cpu().double()
        share = rows(module, member, product)
        if share is not None:
            total.index_add_(0, torch.tensor(member.roots), share.sum(1))
    return total
