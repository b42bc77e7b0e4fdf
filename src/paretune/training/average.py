"""Average: the mean of a module's parameters over the last steps of a training.

Izmailov, Podoprikhin, Garipov, Vetrov & Wilson 2018, "Averaging Weights Leads to Wider Optima and Better
Generalization": such a mean lies further from where the loss rises than the last step does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from paretune.training.recalibrate import gather, measuring

MEASURED = 100
"""Batches on which batch normalisation is measured anew for a mean."""


class Average:
    """The running mean over the steps behind the first ``1 - share`` of ``total``; a share of 0: there is none.

    Attributes
    ----------
    tensors
        The mean by name of the parameter, in float32 at least; empty before the first of these steps.
    count
        How many steps it is over.
    """

    def __init__(self, module: torch.nn.Module, share: float, total: int) -> None:
        self._module, self._first = module, total - (max(1, round(share * total)) if share else 0)
        self.tensors: dict[str, torch.Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def take(self, done: int) -> None:
        """Let the parameters as they are after ``done`` steps count, if they do."""
        if done <= self._first:
            return
        self.count += 1
        for name, parameter in self._module.named_parameters():
            now = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            mean = self.tensors.setdefault(name, now.clone())
            mean.lerp_(now, 1 / self.count)

    @torch.no_grad()
    def lay(
        self, batches: Iterable[tuple[torch.Tensor, ...]], names: tuple[str, ...] | None, where: str
    ) -> None:  # fmt: skip
        """Give the module the mean, and its batch normalisations the statistics that it has on ``batches``.

        Those that stand still in eval mode keep theirs. For ``names``, ``where`` and what is raised see
        :func:`~paretune.training.recalibrate.gather`.
        """
        layers = {path: layer for path, layer in measuring(self._module) if layer.training}
        for name, parameter in self._module.named_parameters():
            parameter.copy_(self.tensors[name])
        if layers:
            gather(self._module, layers, names, batches, where)
