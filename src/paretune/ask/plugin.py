"""How sources, techniques and targets are found: Python entry points, the project's own like a third party's."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from paretune.errors import PluginError


@cache
def _entries(group: str) -> dict[str, EntryPoint]:
    found = sorted(entry_points(group=f"paretune.{group}"), key=lambda entry: entry.name)
    return {entry.name: entry for entry in found}


def names(group: str) -> list[str]:
    """The names of all installed plug-ins of a group: ``sources``, ``techniques`` or ``targets``."""
    return list(_entries(group))


def load(group: str, name: str) -> type[Any]:
    """The plug-in's class.

    Raises
    ------
    PluginError
        If there is none of that name, or it does not import.
    """
    entry = _entries(group).get(name)
    if entry is None:
        near = difflib.get_close_matches(name, names(group), 1)
        hint = f"did you mean {near[0]}?" if near else f"`paretune {group}` lists what is installed"
        raise PluginError(f"there is no {group[:-1]} {name!r}", do=hint)
    try:
        kind: type[Any] = entry.load()
    except Exception as error:  # a third party's file may fail in any way
        dist = f" (package {entry.dist.name})" if entry.dist is not None else ""
        raise PluginError(
            f"does not import: {type(error).__name__}: {error}", where=f"{group[:-1]} {name}{dist}",
            do="update or uninstall the package it comes from",
        ) from error  # fmt: skip
    code_of(kind)  # now: a file that is edited later is not what runs
    return kind


def code_of(kind: type[Any]) -> str | None:
    """sha256 of the sources of the package (or the file) that holds a third party's plug-in, as they were when it was
    first asked for; None for the project's own, which its version tells, and where there is no source."""
    top = kind.__module__.partition(".")[0]
    module = sys.modules.get(top)
    return None if top == "paretune" or module is None else _sources(module)


@cache
def _sources(module: ModuleType) -> str | None:
    found = {
        file.relative_to(root).as_posix(): file
        for root in map(Path, getattr(module, "__path__", ()))
        for file in root.rglob("*.py")
    }
    alone = getattr(module, "__file__", None)
    if not found and alone is not None:
        found = {"": Path(alone)}
    total = hashlib.sha256()
    try:
        for name, file in sorted(found.items()):
            total.update(f"{name}:{hashlib.sha256(file.read_bytes()).hexdigest()};".encode())
    except OSError:
        return None
    return total.hexdigest() if found else None


def missing(kind: type[Any]) -> list[str]:
    """The modules that the plug-in needs and that are not installed (``needs`` maps module → how to install it)."""
    return [module for module in getattr(kind, "needs", {}) if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # the parent of a dotted name is missing, or has no spec
        return False


def install_command(kind: type[Any]) -> str:
    """The exact command that installs what the plug-in lacks; empty when nothing is missing."""
    packages = sorted({kind.needs[module] for module in missing(kind)})
    return "pip install " + " ".join(f"'{package}'" for package in packages) if packages else ""


def require(kind: type[Any], name: str) -> None:
    """Raise :class:`PluginError` with the exact install command if something the plug-in needs is missing."""
    absent = missing(kind)
    if absent:
        raise PluginError(f"{name} needs {', '.join(absent)}, which is not installed", do=install_command(kind))


def usable(group: str, wanted: Iterable[str] | None = None) -> dict[str, type[Any]]:
    """The plug-ins of a group by name: those asked for (each must be installed), else all whose needs are met."""
    if wanted is not None:
        chosen = {name: load(group, name) for name in wanted}
        for name, kind in chosen.items():
            require(kind, name)
        return chosen
    return {name: kind for name in names(group) if not missing(kind := load(group, name))}
