"""How much the loss hangs on the columns that layers take in, by the first term of Taylor's series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.device import home, repeatable
from paretune.training.learner import Learner
from paretune.training.lesson import Lesson, Lessons
from paretune.training.loss import Step, supervised

COPIES = 2
"""Of one example at once, and of no other: which axis of a layer's input counts examples is the model's own affair, and
a batch of one may lose that axis."""


def first_order(
    module: torch.nn.Module, artifact: Artifact, sample: Split, fit: Fit, groups: Mapping[str, int], name: str
) -> dict[str, torch.Tensor]:
    """Importance of units, float64 [units] for each layer: the mean over examples of |Σ input · ∂loss/∂input|.

    The sum goes over an example's positions and a unit's columns. (Molchanov et al. 2017, "Pruning Convolutional Neural
    Networks for Resource Efficient Inference"; for heads Michel, Levy & Neubig 2019, "Are Sixteen Heads Really Better
    than One?")

    Parameters
    ----------
    module
        Left as it is; on the CPU.
    artifact
        Whose inputs it takes.
    groups
        Path of a linear layer → how many columns of its input make a unit.
    name
        What errors call it.

    Raises
    ------
    BuildError
        If the examples have no labels, or a gradient is not finite.
    """
    device = home()
    lessons = Lessons(sample, artifact, device)
    if lessons.at(np.arange(1)).labels is None:
        raise BuildError(
            "has no labels, and importance=taylor needs them",
            where=sample.name,
            do="give labels, or use importance=weight",
        )
    learner = Learner(module.to(device).eval(), form.keywords(artifact))
    taken: dict[str, torch.Tensor] = {}
    hooks = [module.get_submodule(path).register_forward_pre_hook(partial(_take, taken, path)) for path in groups]
    totals = {path: torch.zeros((), dtype=torch.float64) for path in groups}
    step = supervised(fit.loss)
    try:
        # cuDNN's recurrent layers have no gradients in eval mode
        with repeatable(device), torch.backends.cudnn.flags(enabled=False):
            for number in range(len(sample)):
                lesson = lessons.at(np.full(artifact.fixed_batch or COPIES, number))
                for path, found in _scored(learner, lesson, step, taken, groups).items():
                    totals[path] = totals[path] + found
    finally:
        for hook in hooks:
            hook.remove()
        module.zero_grad(set_to_none=True)
        module.cpu()
    bad = next((path for path, total in totals.items() if not bool(total.isfinite().all())), None)
    if bad is not None:
        raise BuildError(f"the gradient at {bad} is not finite", where=name, do="use importance=weight")
    return {path: total / len(sample) for path, total in totals.items()}


def _take(taken: dict[str, torch.Tensor], path: str, part: Any, given: Sequence[torch.Tensor]) -> Any:
    first = given[0] if given[0].requires_grad else given[0].detach().requires_grad_()
    first.retain_grad()
    taken[path] = first
    return (first, *given[1:])


def _scored(
    learner: Learner, lesson: Lesson, step: Step, taken: dict[str, torch.Tensor], groups: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Of a lesson that is one example, several times."""
    taken.clear()
    (step(learner, lesson) * len(lesson)).backward()
    found = {}
    for path, size in groups.items():
        first = taken[path]
        effect = torch.zeros_like(first) if first.grad is None else first.detach() * first.grad
        rows = effect.reshape(-1, effect.shape[-1] // size, size)
        found[path] = rows.cpu().double().sum(dim=(0, 2)).abs() / len(lesson)
    learner.zero_grad(set_to_none=True)
    return found
