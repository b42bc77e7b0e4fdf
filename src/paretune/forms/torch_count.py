"""What a torch module costs, counted: parameters, multiply-accumulates, the arithmetic of most of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from paretune.ask.target import Arrays
from paretune.forms import torch as form
from paretune.forms import torch_fake_quant
from paretune.forms.torch_program import quiet


def parameters(module: torch.nn.Module) -> int:
    """Shared ones once; the scales of quantisers are not counted."""
    scales = torch_fake_quant.scales(module)
    return sum(parameter.numel() for parameter in module.parameters() if parameter not in scales)


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
        with _countable(), FlopCounterMode(display=False) as counter:
            form.call_flat(module, names, tuple(map(form.native, arrays)))
        return int(counter.get_total_flops()) // 2 or None
    except Exception:  # a model that refuses the counter's tracing is still a model
        return None


def products(module: torch.nn.Module, names: tuple[str, ...] | None, arrays: Arrays) -> tuple[tuple[str, int], ...]:
    """Every product with a parameter in one batch, in order: (the parameter's first name, multiply-accumulates).

    A parameter is known by its memory, whichever layer or function makes use of it; where it was copied before the
    product, that product is left out. Empty where nothing could be counted.
    """
    try:
        with _countable(), _Products(module) as seen:
            form.call_flat(module, names, tuple(map(form.native, arrays)))
        return tuple(seen.found)
    except Exception:  # as above
        return ()


class _Products(TorchDispatchMode):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.owners = {parameter.untyped_storage().data_ptr(): name for name, parameter in module.named_parameters()}
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            tensors = [one for one in args if isinstance(one, torch.Tensor) and one.ndim > 1]
            places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
            owner = next((self.owners[place] for place in places if place in self.owners), None)
            if owner is not None:
                self.found.append((owner, int(count(*args, **(kwargs or {}), out_val=out)) // 2))
        return out


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Without gradients and fused kernels: a fused recurrent or attention layer hides what it is made of."""
    plain = torch.backends.mkldnn.flags(enabled=False)
    with quiet(), torch.no_grad(), plain, form.plain_attention():
        yield
