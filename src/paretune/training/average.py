"""Average: the mean of a module's parameters over the last steps of a training.

Izmailov, Podoprikhin, Garipov, Vetrov & Wilson 2018, "Averaging Weights Leads to Wider Optima and Better
Generalization": such a mean lies further from where the loss rises than the last step does.
"""

from __future__ import annotations

import torch


class Average:
    """The running mean over the steps behind the first ``1 - share`` of ``total``; a share of 0: there is none.

    Attributes
    ----------
    tensors
        The mean by name of the parameter; empty before the first of these steps.
    count
        How many steps it is over.
    """

    def __init__(self, module: torch.nn.Module, share: float, total: int) -> None:
        self._module, self._first = module, total - round(share * total)
        self.tensors: dict[str, torch.Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def take(self, done: int) -> None:
        """Let the parameters as they are after ``done`` steps count, if they do."""
        if done <= self._first:
            return
        self.count += 1
        for name, parameter in self._module.named_parameters():
            mean = self.tensors.setdefault(name, parameter.detach().clone())
            mean.lerp_(parameter, 1 / self.count)

    @torch.no_grad()
    def lay(self) -> None:
        """Give the module the mean."""
        for name, parameter in self._module.named_parameters():
            parameter.copy_(self.tensors[name])
