"""First weights: what a module had before it learnt anything, drawn anew."""

from __future__ import annotations

import torch
from torch import nn

from paretune.training.random_state import seeded


def draw(module: nn.Module, seed: int) -> dict[str, nn.Module]:
    """Give each layer new first weights, seeded, by its own ``reset_parameters``; frozen parameters stay as they are.

    Returns the modules with parameters of their own and no such method, by path: theirs stay too.
    """
    frozen = {name: value.detach().clone() for name, value in module.named_parameters() if not value.requires_grad}
    left: dict[str, nn.Module] = {}
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        # the innermost first: what a parent sets in its children stays
        for path, part in reversed(list(module.named_modules())):
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in part.parameters(recurse=False)):
                left[path] = part
        for name, value in module.named_parameters():
            if name in frozen:
                value.copy_(frozen[name])
    return dict(reversed(left.items()))
