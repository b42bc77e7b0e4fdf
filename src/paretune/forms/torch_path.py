"""Modules by their dotted paths."""

from __future__ import annotations

import torch

from paretune.errors import ArtifactError


def submodule(module: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a dotted path.

    Raises
    ------
    ArtifactError
        If there is none.
    """
    try:
        return module.get_submodule(path)
    except (AttributeError, TypeError) as error:
        raise ArtifactError(
            f"the model has no module {path!r}", where="edits.json", do="give the workload whose model it was made from"
        ) from error
