"""Run: a torch module on one batch, always the same, to see what a change of its structure does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, feeds
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_program import quiet

Run = Callable[[torch.nn.Module], tuple[torch.Tensor, ...]]
"""Runs a module on the batch; its answers."""
WATCHED = 4
"""Examples in the batch: more than one, so that the batch's axis is not taken for another."""


def watched(artifact: Artifact, data: Split) -> tuple[torch.Tensor, ...]:
    """The first examples of ``data`` as one batch, a tensor for each input of the artefact; few are taken repeatedly.

    Raises
    ------
    DataError
        If the examples do not fit the artefact's inputs.
    """
    count = artifact.fixed_batch or WATCHED
    places = tuple(data.indices[place % len(data)] for place in range(count))
    arrays = next(feeds(Split(data.examples, places), artifact, count))
    return tuple(map(form.native, arrays))


def runner(artifact: Artifact, data: Split) -> Run:
    """Runs modules that take the artefact's inputs on :func:`watched` examples; without fused attention.

    Raises
    ------
    DataError
        If the examples do not fit the artefact's inputs.
    """
    tensors, names = watched(artifact, data), form.keywords(artifact)

    def run(module: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        with torch.no_grad(), quiet(), form.plain_attention():
            return form.call_flat(module, names, tensors)[1]

    return run


def demand_run(module: torch.nn.Module, run: Run) -> tuple[torch.Tensor, ...]:
    """Its answers.

    Raises
    ------
    BuildError
        If it fails.
    """
    try:
        return run(module)
    except Exception as error:  # whatever the user's forward raises
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise BuildError(
            f"the model fails on training examples: {type(error).__name__}: {reason}",
            where=type(module).__qualname__, do="see that it runs by itself",
        ) from error  # fmt: skip


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of its structure, which shares every parameter and buffer with it."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
