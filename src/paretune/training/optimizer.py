"""The optimizer of a plan, and its state as tensors and plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from paretune.training.plan import Plan


def made(module: torch.nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD with Nesterov momentum over the parameters that are not frozen.

    Weight decay leaves out parameters of one axis or none (biases, normalisations), as in He et al. 2019, "Bag of
    Tricks for Image Classification with Convolutional Neural Networks", section 3.1.
    """
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in free if parameter.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [parameter for parameter in free if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, plan.learning_rate, plan.momentum, nesterov=plan.momentum > 0)
    return torch.optim.AdamW(groups, plan.learning_rate, (plan.momentum, 0.999))


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What it has gathered, by ``parameter.quantity``: (tensors, everything else). Rates follow from the plan."""
    state = optimizer.state_dict()["state"]
    parts = {f"{number}.{key}": value for number, kept in state.items() for key, value in kept.items()}
    tensors = {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in parts.items() if name not in tensors}


def load_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
) -> None:
    """Give it back what :func:`state_of` took, each tensor in its parameter's order of memory."""
    current = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *scalars.items()):
        number, _, key = name.partition(".")
        owner = parameters[int(number)]
        if isinstance(value, torch.Tensor) and value.shape == owner.shape:
            value = torch.empty_like(owner, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
