"""Batch normalisation folded into the convolution or linear layer before it, whose answers then are the same in eval.

What a normalisation with statistics μ, σ² and parameters γ, β does to a layer's channels is itself linear: weights are
scaled by γ / √(σ² + ε), and (b − μ) · γ / √(σ² + ε) + β becomes the bias (Jacob et al. 2018, "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paretune.errors import ArtifactError
from paretune.forms.torch_path import submodule

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
"""Layers that take up a normalisation behind them."""


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold normalisations away: path of the layer → path of the batch normalisation, which becomes ``Identity``.

    The scales of a quantised layer's weights are scaled with the weights, whose integers stay what they were. A layer
    with one scale for all its channels must be folded before it is quantised.
    """

    name: ClassVar[str] = "fold_batch_norm"

    pairs: Mapping[str, str]

    def apply(self, module: nn.Module) -> None:
        for path, behind in self.pairs.items():
            layer, norm = submodule(module, path), submodule(module, behind)
            if not isinstance(layer, LAYERS) or not isinstance(norm, _BatchNorm) or not has_statistics(norm):
                raise ArtifactError(f"{behind} cannot be folded into {path}", where="edits.json")
            _fold(layer, norm)
            parent, _, key = behind.rpartition(".")
            calm = nn.Identity()
            for name, child in norm._modules.items():  # a quantiser of its output, with its hook
                calm.add_module(name, child)
            calm._forward_hooks.update(norm._forward_hooks)
            submodule(module, parent)._modules[key] = calm.train(norm.training)


def has_statistics(norm: _BatchNorm) -> bool:
    return norm.running_mean is not None and norm.running_var is not None


def channel_axis(layer: nn.Module) -> int:
    """The axis of the weight along which its output channels lie."""
    return 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0


def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert bias is None or isinstance(bias, nn.Parameter)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        factor = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight
        start = -norm.running_mean if bias is None else bias - norm.running_mean
        shift = start * factor if norm.bias is None else start * factor + norm.bias
        axis = channel_axis(layer)
        weight.mul_(factor.reshape([-1 if place == axis else 1 for place in range(weight.ndim)]))
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
        quantiser = layer._modules.get("weight_quantiser")
        if quantiser is not None:
            scale = quantiser.scale
            assert isinstance(scale, nn.Parameter)
            # a channel that is multiplied by zero has weights of zero, for which any scale will do but zero
            scale.mul_(torch.where(factor == 0, 1.0, factor.abs()) if scale.ndim else 1.0)
