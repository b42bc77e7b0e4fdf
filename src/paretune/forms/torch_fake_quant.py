"""Fake quantisation: tensors rounded to the values that integers of a few bits stand for, in float and trainable.

A quantised module keeps its path, its class's name for ``isinstance`` and the names of its parameters: quantisers stand
beside them, as ``weight_quantiser``, ``input_quantiser`` and ``output_quantiser``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from paretune.errors import ArtifactError
from paretune.forms.torch_path import submodule

BITS = range(2, 9)
ROLES = ("weight", "input", "output")


class FakeQuant(nn.Module):
    """Rounds as ONNX's QuantizeLinear and DequantizeLinear do, bit for bit: half to even, then cut off at the ends.

    The gradient of the input passes where nothing is cut off (the straight-through estimator, Bengio et al. 2013); that
    of a ``learned`` scale is the one of LSQ (Esser et al. 2020, "Learned Step Size Quantization", equation 3), with
    its factor 1 / √(N · Q): N elements for each scale (of one example, for activations), Q the highest integer.

    Parameters
    ----------
    bits
        Of the integers, 2 to 8.
    signed
        From −2^(bits−1) to 2^(bits−1) − 1, else from 0 to 2^bits − 1.
    zero_point
        The integer that stands for zero.
    channels
        Number of scales, one for each place along the first axis; 0: one for all.
    narrow
        Without the lowest integer, as weights are: negated values stay in range.
    learned
        Whether the scale is trained.

    Attributes
    ----------
    scale
        What a step of one stands for: float32 [channels], or without axes.
    watch
        Where this is set, inputs are handed to it and passed on unrounded.
    """

    def __init__(
        self, bits: int, signed: bool, zero_point: int = 0, channels: int = 0, narrow: bool = False,
        learned: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bits, self.signed, self.zero_point, self.narrow = bits, signed, zero_point, narrow
        self.watch: Callable[[torch.Tensor], Any] | None = None
        self.scale = nn.Parameter(torch.ones(channels) if channels else torch.ones(()), requires_grad=learned)

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest integer."""
        if not self.signed:
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats of any shape → the same, rounded; they are computed in float32."""
        if self.watch is not None:
            self.watch(x)
            return x
        low, high = (end - self.zero_point for end in self.ends)
        scale = self.scale.reshape(self._shape(x))
        if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
            elements = x.numel() / (self.scale.numel() if self.scale.ndim else max(len(x), 1) if x.ndim else 1)
            factor = 1 / math.sqrt(max(elements, 1) * max(high, -low))
            rounded: torch.Tensor = _Round.apply(x.float(), scale, low, high, factor)
            return rounded.to(x.dtype)
        return (torch.clamp(torch.round(x.float() / scale), low, high) * scale).to(x.dtype)

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """What stands for the values: int8 or uint8, of the same shape."""
        low, high = self.ends
        found = torch.round(x.detach().float() / self.scale.detach().reshape(self._shape(x))) + self.zero_point
        return torch.clamp(found, low, high).to(torch.int8 if self.signed else torch.uint8)

    def extra_repr(self) -> str:
        sign = "signed" if self.signed else "unsigned"
        return f"{self.bits} bits, {sign}, zero point {self.zero_point}, scales {list(self.scale.shape)}"

    def _shape(self, x: torch.Tensor) -> list[int]:
        return [-1, *[1] * (x.ndim - 1)] if self.scale.ndim else []


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, low: int, high: int, factor: float) -> torch.Tensor:
        steps = x / scale
        ctx.save_for_backward(steps)
        ctx.shape, ctx.low, ctx.high, ctx.factor = scale.shape, low, high, factor
        return torch.clamp(steps, low, high).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        (steps,) = ctx.saved_tensors
        of_scale = None
        if not ctx.needs_input_grad[1]:
            # a scale that follows the largest weight puts it at the very end, where it must go on learning
            steps = steps.round()
            inside = (steps >= ctx.low) & (steps <= ctx.high)
        else:
            inside = (steps > ctx.low) & (steps < ctx.high)
            # round(v) − v inside, the end that cuts off outside
            slope = torch.clamp(steps, ctx.low, ctx.high).round_().sub_(steps * inside).mul_(gradient)
            of_scale = slope.sum_to_size(ctx.shape) * ctx.factor if len(ctx.shape) else slope.sum() * ctx.factor
        return gradient * inside if ctx.needs_input_grad[0] else None, of_scale, None, None, None


class _Convolves(nn.Module):
    weight_quantiser: nn.Module

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        answer: torch.Tensor = super()._conv_forward(input, self.weight_quantiser(weight), bias)  # type: ignore[misc]
        return answer


class QuantisedConv1d(_Convolves, nn.Conv1d):
    """A convolution whose weight is rounded."""


class QuantisedConv2d(_Convolves, nn.Conv2d):
    """A convolution whose weight is rounded."""


class QuantisedConv3d(_Convolves, nn.Conv3d):
    """A convolution whose weight is rounded."""


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is rounded."""

    weight_quantiser: nn.Module

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight_quantiser(self.weight), self.bias)


class _Transposes(nn.Module):
    weight_quantiser: nn.Module

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        layer: Any = self
        dimensions = len(layer.kernel_size)
        extra = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, dimensions, layer.dilation
        )
        convolve: Any = functional.conv_transpose1d if dimensions == 1 else functional.conv_transpose2d
        answer: torch.Tensor = convolve(
            input, self.weight_quantiser(layer.weight), layer.bias, layer.stride, layer.padding, extra, layer.groups,
            layer.dilation,
        )  # fmt: skip
        return answer


class QuantisedConvTranspose1d(_Transposes, nn.ConvTranspose1d):
    """A transposed convolution whose weight is rounded."""


class QuantisedConvTranspose2d(_Transposes, nn.ConvTranspose2d):
    """A transposed convolution whose weight is rounded."""


QUANTISED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Conv3d: QuantisedConv3d,
    nn.ConvTranspose1d: QuantisedConvTranspose1d,
    nn.ConvTranspose2d: QuantisedConvTranspose2d,
    nn.Linear: QuantisedLinear,
}
"""Layer → the one that it becomes. A class of the user's own stays as it is: what its ``forward`` does is not known."""


@dataclass(frozen=True)
class Quantise:
    """Put quantisers into a module: path → role → what :class:`FakeQuant` takes.

    The roles are ``weight`` (of the layers in :data:`QUANTISED`; with ``"channels": true`` one scale for each output
    channel), ``input`` (the first one) and ``output``.
    """

    name: ClassVar[str] = "quantise"

    places: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def apply(self, module: nn.Module) -> None:
        for path, roles in self.places.items():
            part = submodule(module, path)
            for role, given in roles.items():
                _demand_room(part, path, role)
                described = dict(given)
                if described.get("bits") not in BITS:
                    raise ArtifactError(f"{path} has no such quantiser: 2 to 8 bits", where="edits.json")
                if role == "weight":
                    weight = part.weight
                    assert isinstance(weight, torch.Tensor)
                    described["channels"] = len(weight) if described.get("channels") else 0
                    part.__class__ = QUANTISED[type(part)]
                elif role == "input":
                    part.register_forward_pre_hook(_round_input)
                else:
                    part.register_forward_hook(_round_output)
                try:
                    quantiser = FakeQuant(**described)
                except TypeError as error:
                    raise ArtifactError(f"{path} has no such quantiser: {error}", where="edits.json") from error
                part.add_module(f"{role}_quantiser", quantiser.train(part.training))


def _demand_room(part: nn.Module, path: str, role: str) -> None:
    wrong = role not in ROLES or isinstance(part, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    if wrong or (role == "weight" and type(part) not in QUANTISED) or hasattr(part, f"{role}_quantiser"):
        raise ArtifactError(f"{path or 'the model'} can have no quantiser of its {role}", where="edits.json")


def _round_input(part: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return part.input_quantiser(args[0]), *args[1:]


def _round_output(part: Any, args: tuple[Any, ...], output: Any) -> Any:
    return part.output_quantiser(output)


def quantisers(module: nn.Module) -> Iterator[tuple[str, FakeQuant]]:
    """All of them, with their paths."""
    for path, part in module.named_modules():
        if isinstance(part, FakeQuant):
            yield path, part


@contextlib.contextmanager
def unrounded(module: nn.Module) -> Iterator[bool]:
    """Activations pass as they are, for as long as it lasts; whether there are quantisers of activations."""
    found = [quantiser for path, quantiser in quantisers(module) if not path.endswith("weight_quantiser")]
    for quantiser in found:
        quantiser.watch = _look_away
    try:
        yield bool(found)
    finally:
        for quantiser in found:
            quantiser.watch = None


def _look_away(x: torch.Tensor) -> None:
    pass


def scales(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that are scales of quantisers."""
    return {quantiser.scale for _, quantiser in quantisers(module)}
