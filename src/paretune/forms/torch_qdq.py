"""Quantisers as ONNX's QuantizeLinear and DequantizeLinear, and quantised weights as integers, for export.

Made on a copy that is about to be exported: such a copy computes nothing itself (ONNX operator specification).
"""

from __future__ import annotations

import torch
from torch import nn

from paretune.forms.torch_fake_quant import QUANTISED, FakeQuant


def as_operators(module: nn.Module) -> nn.Module:
    """``module`` with every quantiser replaced, in place, and its quantised weights by integers; returned."""
    layers = tuple(QUANTISED.values())
    made: dict[int, nn.Module] = {}
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):
            if not isinstance(child, FakeQuant):
                continue
            if isinstance(part, layers) and name == "weight_quantiser":
                weight = part.weight
                assert isinstance(weight, torch.Tensor)
                integers = child.integers(weight)
                del part._parameters["weight"]
                part.register_buffer("weight", integers)
                part._modules[name] = Dequantise(child)
            else:
                part._modules[name] = made.setdefault(id(child), Pair(child))
    return module


class _Scaled(nn.Module):
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, quantiser: FakeQuant) -> None:
        super().__init__()
        self.training = False
        self.register_buffer("scale", quantiser.scale.detach().clone())
        self.register_buffer("zero_point", _zero_point(quantiser))


class Dequantise(_Scaled):
    """Integers [channels, …] → the floats that they stand for: one DequantizeLinear."""

    def forward(self, integers: torch.Tensor) -> torch.Tensor:
        return _dequantised(integers, self.scale, self.zero_point)


class Pair(_Scaled):
    """Floats → floats: QuantizeLinear and DequantizeLinear, behind a Clip where fewer than eight bits are meant."""

    def __init__(self, quantiser: FakeQuant) -> None:
        super().__init__(quantiser)
        whole = (-128, 127) if quantiser.signed else (0, 255)
        low, high = (float((end - quantiser.zero_point) * quantiser.scale.detach()) for end in quantiser.ends)
        self.ends = None if quantiser.ends == whole else (low, high)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.ends is not None:
            x = torch.clamp(x, *self.ends)
        integers = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero_point), dtype=self.zero_point.dtype, shape=x.shape
        )
        return _dequantised(integers, self.scale, self.zero_point)


def _zero_point(quantiser: FakeQuant) -> torch.Tensor:
    kind = torch.int8 if quantiser.signed else torch.uint8
    return torch.full(quantiser.scale.shape, quantiser.zero_point, dtype=kind)


def _dequantised(integers: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (integers, scale, zero_point),
        {"axis": 0} if scale.ndim else None,
        dtype=torch.float32,
        shape=integers.shape,
    )
