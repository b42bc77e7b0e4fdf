"""A torch module as an exported program, and behind the signatures that exporters ask for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.forms import torch as form
from paretune.forms import torch_program


class Flat(torch.nn.Module):
    """A module behind one signature: tensors in order in, a tuple of tensors out."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.training = False

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return form.call_bare(self.model, self.names, inputs)[1]


class Named(torch.nn.Module):
    """A module whose ``forward`` takes any keywords, with these alone: torch 2.13 takes no free axes for the others."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.training = model, False
        kind = inspect.Parameter.KEYWORD_ONLY

        def forward(**inputs: torch.Tensor) -> Any:
            return self.model(**inputs)

        forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        self.forward = forward


def dynamic_axes(specs: tuple[TensorSpec, ...], mark: Any) -> tuple[dict[int, Any], ...]:
    """For each input the free axes, each with ``mark`` (``Dim.DYNAMIC`` or ``Dim.AUTO``), as ``torch.export`` asks."""
    return tuple({place: mark for place, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in specs)


def export_program(artifact: Artifact, into: Path) -> Artifact | None:
    """A sealed artefact of form ``torch`` that holds ``model.pt2``, with free axes; None when it does not export.

    The program takes and returns what the user's module does; no source line and no example is in the file.
    """
    into.mkdir(parents=True, exist_ok=True)
    path = into / form.PROGRAM
    try:
        with torch_program.quiet(), torch.no_grad():
            program = _exported(artifact)
            torch_program.save(program, path)
            # an export may silently fix an axis: the file must take a batch and a length it was not made with
            reopened = torch_program.open_checked(path).module()
            trial = form.sample_inputs(artifact.inputs, 3, 7, seed=0)
            answers = form.call(reopened, artifact, trial)
            if not any(name.endswith(".pt2") for name in artifact.files):
                with form.plain_attention():
                    wanted = form.call(form.restore(artifact), artifact, trial)
                for ours, theirs in zip(wanted, answers, strict=True):
                    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(ours).max())))
    except Exception:  # export fails in as many ways as there are models, and a bundle can do without
        path.unlink(missing_ok=True)
        return None
    facts = {
        key: getattr(artifact, key) for key in ("keyword_inputs", "output_kind", "precision", "parameters", "macs")
    }
    return Artifact.seal("torch", into, artifact.inputs, artifact.outputs, **facts, notes=artifact.notes)


def _exported(artifact: Artifact) -> torch.export.ExportedProgram:
    if any(name.endswith(".pt2") for name in artifact.files):
        return torch_program.open_checked(artifact.path(".pt2"))
    module = form.restore(artifact)
    tensors = tuple(form.native(array) for array in form.sample_inputs(artifact.inputs, 2))
    axes = dynamic_axes(artifact.inputs, torch.export.Dim.AUTO)
    names = form.keywords(artifact)
    signature = inspect.signature(module.forward).parameters.values()
    if names is None:
        loose = next((p.name for p in signature if p.kind is p.VAR_POSITIONAL), None)
        shapes: Any = {loose: axes} if loose and len(signature) == 1 else axes
        return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=False)
    if not set(names) <= {p.name for p in signature}:
        module = Named(module, names)
    shapes, given = dict(zip(names, axes, strict=True)), dict(zip(names, tensors, strict=True))
    return torch.export.export(module, (), given, dynamic_shapes=shapes, strict=False)
