"""Edits: changes of a torch module's structure, as plain JSON, made again whenever the module is restored.

An edit holds no code. It changes plain attributes, shapes of parameters and which modules there are; what the modules
compute stays the user's own. After all edits the artefact's parameters are laid onto the result.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch

from paretune.errors import ArtifactError
from paretune.forms.torch_attention import Unpack
from paretune.forms.torch_fake_quant import Quantise
from paretune.forms.torch_fold import FoldBatchNorm
from paretune.forms.torch_path import submodule as submodule

_MEND = "give the workload whose model it was made from, or build the artefact again"

Plain = bool | int | float | str | list[Any] | None
"""What may stand in an attribute: JSON's scalars, and lists of them (for tuples)."""


class Edit(Protocol):
    """A frozen dataclass of plain JSON values; ``name`` tells its kind in the file."""

    name: ClassVar[str]

    def apply(self, module: torch.nn.Module) -> None:
        """Make the change, in place.

        Raises
        ------
        ArtifactError
            If the module has no such place.
        """
        ...


@dataclass(frozen=True)
class Attributes:
    """Give modules' plain attributes other values: path → attribute → value. Lists stand for tuples where such were."""

    name: ClassVar[str] = "attributes"

    values: Mapping[str, Mapping[str, Plain]]

    def apply(self, module: torch.nn.Module) -> None:
        for path, changed in self.values.items():
            part = submodule(module, path)
            for key, value in changed.items():
                if key.startswith("__") or not is_plain(vars(part).get(key, part)) or not is_plain(value):
                    raise ArtifactError(f"{path or 'the model'} has no plain attribute {key!r}", where="edits.json")
                setattr(part, key, _tuples(value) if isinstance(vars(part)[key], tuple) else value)


@dataclass(frozen=True)
class Shapes:
    """Give parameters and buffers other shapes: name → shape. Their values are lost; shared ones stay shared."""

    name: ClassVar[str] = "shapes"

    shapes: Mapping[str, Sequence[int]]

    def apply(self, module: torch.nn.Module) -> None:
        for name, shape in self.shapes.items():
            path, _, key = name.rpartition(".")
            part = submodule(module, path)
            before: torch.Tensor | None = part._parameters.get(key)
            if before is None:
                before = part._buffers.get(key)
            if before is None:
                raise ArtifactError(f"the model has no parameter {name!r}", where="edits.json")
            if list(before.shape) == list(shape):
                continue  # shared, and already done under its other name
            made: torch.Tensor = torch.zeros(list(shape), dtype=before.dtype)
            if isinstance(before, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=before.requires_grad)
            for owner in module.modules():
                for held in (owner._parameters, owner._buffers):
                    for own, tensor in held.items():
                        if tensor is before:
                            cast(dict[str, Any], held)[own] = made
        for owner in module.modules():
            if isinstance(owner, torch.nn.RNNBase):
                owner._init_flat_weights()  # it holds its parameters in a list of its own, too


@dataclass(frozen=True)
class Remove:
    """Take members out of their ``Sequential`` or ``ModuleList``, all at once; those behind them move up."""

    name: ClassVar[str] = "remove"

    paths: Sequence[str]

    def apply(self, module: torch.nn.Module) -> None:
        gone: dict[str, set[str]] = {}
        for path in self.paths:
            parent, _, key = path.rpartition(".")
            submodule(module, path)
            gone.setdefault(parent, set()).add(key)
        for parent, keys in gone.items():
            holder = submodule(module, parent)
            if not isinstance(holder, torch.nn.Sequential | torch.nn.ModuleList):
                raise ArtifactError(f"{parent or 'the model'} is no list of modules", where="edits.json")
            kept = [(key, part) for key, part in holder._modules.items() if key not in keys]
            numbered = all(key.isdecimal() for key in holder._modules)
            holder._modules.clear()
            for place, (key, part) in enumerate(kept):
                holder._modules[str(place) if numbered else key] = part


@dataclass(frozen=True)
class Bypass:
    """Put :class:`Passage` in the place of modules, whose first input then is their answer.

    ``length``: 0, or of how many members the tuple is that such a module returned; the input is the first of them then,
    and the others are None.
    """

    name: ClassVar[str] = "bypass"

    paths: Sequence[str]
    length: int = 0

    def apply(self, module: torch.nn.Module) -> None:
        for path in self.paths:
            submodule(module, path)
            parent, _, key = path.rpartition(".")
            submodule(module, parent)._modules[key] = Passage(self.length)


class Passage(torch.nn.Module):
    """Returns its first input, whatever else it is given; with a ``length``, as the first of a tuple."""

    def __init__(self, length: int = 0) -> None:
        super().__init__()
        self.length = length

    def forward(self, *given: Any, **named: Any) -> Any:
        first = given[0] if given else next(iter(named.values()))
        return (first, *[None] * (self.length - 1)) if self.length else first


KINDS = (Attributes, Shapes, Remove, Bypass, FoldBatchNorm, Quantise, Unpack)
EDITS: Mapping[str, type[Any]] = {kind.name: kind for kind in KINDS}


def difference(before: torch.nn.Module, after: torch.nn.Module) -> tuple[Edit, ...]:
    """The edits of plain attributes and shapes that lead from one module to another with the same submodules."""
    values: dict[str, dict[str, Plain]] = {}
    parts = dict(before.named_modules())
    torchs = vars(torch.nn.Module())  # what torch keeps in every module
    for path, part in after.named_modules():
        held = vars(parts[path])
        for key, value in vars(part).items():
            if key in torchs or key.startswith("__") or key not in held:
                continue
            if is_plain(value) and is_plain(held[key]) and held[key] != value:
                values.setdefault(path, {})[key] = _lists(value)
    old = dict(_tensors(before))
    shapes = {
        name: list(tensor.shape) for name, tensor in _tensors(after) if name in old and old[name].shape != tensor.shape
    }
    found: list[Edit] = []
    if values:
        found.append(Attributes(values))
    if shapes:
        found.append(Shapes(shapes))
    return tuple(found)


def make(edits: Sequence[Edit], module: torch.nn.Module) -> None:
    """Make the changes, in place and in order.

    Raises
    ------
    ArtifactError
        If the module has no such place, or an edit holds what its kind cannot take.
    """
    for edit in edits:
        try:
            edit.apply(module)
        except ArtifactError as error:
            raise ArtifactError(error.what, where=error.where, do=error.do or _MEND) from error
        except Exception as error:  # the file is not our own any more: its values may be of any type
            reason = f"{type(error).__name__}: {error}"[:200]
            what = f"the edit {edit.name!r} cannot be made: {reason}"
            raise ArtifactError(what, where="edits.json", do=_MEND) from error


def write(edits: Sequence[Edit], path: Path) -> None:
    """One JSON list, in order."""
    described = [{"edit": edit.name, **dataclasses.asdict(cast(Any, edit))} for edit in edits]
    path.write_text(json.dumps(described, indent=1))


def read(path: Path) -> tuple[Edit, ...]:
    """What :func:`write` wrote.

    Raises
    ------
    ArtifactError
        If it is not such a file, or holds an edit of unknown kind.
    """
    try:
        document = json.loads(path.read_text())
        edits = []
        for entry in document:
            given = dict(entry)
            edits.append(EDITS[given.pop("edit")](**given))
        return tuple(edits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"holds no edits that are known here: {error!r}", where=str(path), do=_MEND) from error


def is_plain(value: Any) -> bool:
    """Whether it is a scalar of JSON, or a list or tuple of such."""
    if isinstance(value, tuple | list):
        return all(is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, tuple | list) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
