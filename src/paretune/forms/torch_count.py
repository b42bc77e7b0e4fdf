"""What a torch module costs, counted: parameters, multiply-accumulates, the arithmetic of most of its parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from paretune.ask.target import Arrays
from paretune.forms import torch as form
from paretune.forms.torch_program import quiet


def parameters(module: torch.nn.Module) -> int:
    """Shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def precision(module: torch.nn.Module) -> str:
    """``fp32``, ``bf16`` or ``fp16``."""
    sizes = {"float32": 0, "bfloat16": 0, "float16": 0}
    for parameter in module.parameters():
        kind = str(parameter.dtype).removeprefix("torch.")
        if kind in sizes:
            sizes[kind] += parameter.numel()
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[max(sizes, key=lambda kind: sizes[kind])]


def macs(module: torch.nn.Module, names: tuple[str, ...] | None, arrays: Arrays) -> int | None:
    """Multiply-accumulates of one batch, those of matrix products and convolutions; None where nothing was counted."""
    try:
        counter = FlopCounterMode(display=False)
        plain = torch.backends.mkldnn.flags(enabled=False)  # its fused recurrent layers are not counted
        with quiet(), torch.no_grad(), plain, form.plain_attention(), counter:
            form.call_flat(module, names, tuple(form.native(np.copy(array)) for array in arrays))
        return int(counter.get_total_flops()) // 2 or None
    except Exception:  # a model that refuses the counter's tracing is still a model
        return None
