"""How sources, techniques and targets are found: Python entry points, the project's own like a third party's."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

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
    if kind not in _codes:  # now: a file that is edited later is not what runs
        _codes[kind] = _code(kind, entry.dist.version if entry.dist is not None else "")
    return kind


def code_of(kind: type[Any]) -> str | None:
    """sha256 of the Python files of the package (or of the file) that holds a third party's plug-in, as they were when
    its class was loaded, and of the package's version; None for the project's own, which its version tells."""
    return _codes[kind] if kind in _codes else _code(kind, "")


_codes: WeakKeyDictionary[type[Any], str | None] = WeakKeyDictionary()
"""Of the classes that were loaded."""


def _code(kind: type[Any], version: str) -> str | None:
    top = kind.__module__.partition(".")[0]
    if top == "paretune":
        return None
    parts = kind.__module__.split(".")
    names = [".".join(parts[: many + 1]) for many in range(len(parts))]
    # the first that is a file: packages that only share a name hold other people's code too
    module = next((one for name in names if getattr(one := sys.modules.get(name), "__file__", None)), None)
    total = hashlib.sha256(f"{version};".encode())
    for root in map(Path, getattr(module, "__path__", ())):
        for file in sorted(root.rglob("*.py")):
            total.update(f"{file.relative_to(root).as_posix()}:{_read(file)};".encode())
    if module is not None and not hasattr(module, "__path__"):
        total.update(_read(Path(str(module.__file__))).encode())
    with contextlib.suppress(OSError, TypeError):  # also what is in a zip file
        total.update(inspect.getsource(kind).encode())
    return total.hexdigest()


def _read(file: Path) -> str:
    """The digest of a file, or why there is none (an editor's lock, a directory): the others still count."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return type(error).__name__


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
