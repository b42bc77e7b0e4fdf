"""Learner: the user's module behind one signature, so that nothing is ever laid over the module itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from paretune.errors import BuildError
from paretune.forms import torch as form


class Learner(torch.nn.Module):
    """Takes tensors in the artefact's order and returns whatever the module does.

    Mixed precision and parallel wrappers replace a module's ``forward``; here they replace this one's, and the user's
    module stays what it was: its digest must not tell how it was trained.
    """

    def __init__(
        self, model: torch.nn.Module, names: tuple[str, ...] | None, companion: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.companion = companion  # never called here: it travels with the model to devices and into wrappers

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """``inputs``: in the order of the artefact's; or all of them ``named``, where the model is called so.

        The model gets copies: one that writes into its inputs must not change what others are asked.
        """
        inputs = tuple(map(_copied, inputs))
        named = {name: _copied(value) for name, value in named.items()}
        if named:
            return self.model(*inputs, **named)
        if self.names is None:
            return self.model(*inputs)
        return self.model(**dict(zip(self.names, inputs, strict=True)))


def _copied(given: Any) -> Any:
    """A user's own step may call the model with what is no tensor."""
    return given.clone() if isinstance(given, torch.Tensor) else given


def answer_of(outputs: Any) -> torch.Tensor:
    """The tensor that the built-in losses look at: the only one, ``logits`` where there is one, or the first."""
    names, tensors, _ = form.flatten_outputs(outputs)
    return tensors[names.index("logits") if "logits" in names else 0]


def frozen(module: torch.nn.Module) -> Iterator[_NormBase]:
    """The normalisations whose scale and shift are frozen: their running statistics are part of what was frozen."""
    for part in module.modules():
        if isinstance(part, _NormBase) and part.affine and not any(one.requires_grad for one in part.parameters()):
            yield part


def demand_trainable(module: torch.nn.Module, where: str) -> None:
    """Refuse a module that cannot learn.

    Raises
    ------
    BuildError
        If it is an exported program, has no parameters, all of them are frozen, or one that is not is in float16.
    """
    if form.is_program(module):
        raise BuildError(
            "the model is an exported program, which has no training mode", where=where,
            do="give the nn.Module that it was exported from",
        )  # fmt: skip
    parameters = list(module.parameters())
    if not parameters:
        raise BuildError("the model has no parameters to train", where=where, do="leave out the steps that train")
    if not any(parameter.requires_grad for parameter in parameters):
        raise BuildError(
            f"all {len(parameters)} parameters of the model are frozen", where=where,
            do="set requires_grad on those that may change, before the model is given to the workload",
        )  # fmt: skip
    learns = ((name, one) for name, one in module.named_parameters() if one.requires_grad)
    half = next((name for name, one in learns if one.dtype is torch.float16), "")
    if half:
        raise BuildError(
            f"{half} is in float16, which has no room for the steps of a training", where=where,
            do="give the model in float32 (model.float()), and set precision=fp16 or bf16",
        )  # fmt: skip
