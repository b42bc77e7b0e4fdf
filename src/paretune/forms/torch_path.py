"""Modules by their dotted paths."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from paretune.errors import ArtifactError, BuildError


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


def asked(module: torch.nn.Module, path: str, whose: str, where: str) -> torch.nn.Module:
    """The module at a path that a user gave; ``whose`` module it is sought in, in a word.

    Raises
    ------
    BuildError
        If there is none; lists names that are near.
    """
    parts: dict[str, torch.nn.Module] = dict(module.named_modules(remove_duplicate=False))
    if path in parts and path:
        return parts[path]
    names = [name for name in parts if name]
    raise BuildError(
        f"the {whose} has no module {path!r}; {_near(path, names)}", where=where, do="name one of named_modules()"
    )


def demand_named(module: torch.nn.Module, patterns: Sequence[str], where: str) -> None:
    """Refuse patterns (``fnmatch``) of a user's that name no module and no parameter.

    Raises
    ------
    BuildError
        If there is one; lists names that are near.
    """
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    known = [*names, *(name for name, _ in module.named_parameters(remove_duplicate=False))]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise BuildError(
                f"nothing in the model is named {pattern!r}; {_near(pattern, names)}", where=where,
                do="name modules of named_modules(), or patterns of them such as layer1.*",
            )  # fmt: skip


def _near(path: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(path, names, 5, 0.5) or [name for name in names if "." not in name][:5]
    return f"near it are {', '.join(near)}" if near else "it has no modules within"
