"""Scenario: one way in which data in the field differs from held-out data, and how a user adds one."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from paretune.ask.code import fingerprint_of
from paretune.ask.data import Examples, Split
from paretune.build.store import key_of
from paretune.check.view import View, inputs_of, with_inputs
from paretune.errors import CallError, DataError

Kind = Literal["image", "tokens", "row", "text", "any"]
Function = Callable[..., Any]
SHIPPED = ("noise", "blur", "weather", "lighting", "digital", "geometry", "tokens", "text", "row")
"""The modules under ``paretune.check.scenes`` that hold the scenarios of the package."""


@dataclass(frozen=True)
class Scenario:
    """A change to one example.

    Attributes
    ----------
    name
        ``gaussian_noise@3`` where there are severities, else the function's name.
    family
        What verdicts are corrected within: ``noise``, ``blur`` …
    fits
        What ``function`` takes and returns: ``image`` float64 [channels, height, width] between 0 and 1, ``tokens``
        int64 [length] without padding and special tokens, ``row`` float64 [features] as standard scores, ``text`` a
        string, ``any`` a dict of the example's arrays by input name, as they are.
    function
        ``(example, rng)``, or ``(example, rng, strength)`` where there are severities, → the same kind.
    severity
        1 (mildest) and up; None where there is only one.
    strength
        What ``function`` is given at this severity.
    """

    name: str
    family: str
    fits: Kind
    function: Function
    severity: int | None = None
    strength: Any = None

    @property
    def stem(self) -> str:
        """The name without the severity."""
        return self.name.partition("@")[0]

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().split("\n")[0]

    def change(self, example: Any, rng: np.random.Generator) -> Any:
        """One changed example; the given one stays as it is."""
        if self.severity is None:
            return self.function(example, rng)
        return self.function(example, rng, self.strength)

    def rng(self, seed: int, index: int) -> np.random.Generator:
        """The generator of one example: the same at every severity, so that only the strength differs."""
        return np.random.default_rng([seed, zlib.crc32(self.stem.encode()), index])


def scenario(
    family: str, fits: Kind = "image", strengths: Sequence[Any] | None = None
) -> Callable[[Function], tuple[Scenario, ...]]:
    """Make scenarios of one function: one, or one for each of ``strengths`` (mildest first).

    >>> @scenario("mine", strengths=(0.1, 0.2))
    ... def darker(image, rng, strength):
    ...     return image * (1 - strength)
    >>> [one.name for one in darker]
    ['darker@1', 'darker@2']

    Raises
    ------
    CallError
        If ``fits`` is no kind of input.
    """
    if fits not in get_args(Kind):
        raise CallError(f"{fits!r} is no kind of input", where=family, do=f"use one of {', '.join(get_args(Kind))}")

    def made(function: Function) -> tuple[Scenario, ...]:
        name = function.__name__
        if strengths is None:
            return (Scenario(name, family, fits, function),)
        return tuple(
            Scenario(f"{name}@{severity}", family, fits, function, severity, strength)
            for severity, strength in enumerate(strengths, start=1)
        )

    return made


def shipped() -> tuple[Scenario, ...]:
    """All scenarios of the package, in the order of their modules."""
    modules = [importlib.import_module(f"paretune.check.scenes.{name}") for name in SHIPPED]
    return tuple(one for module in modules for one in _within(module))


def read(path: Path) -> tuple[Scenario, ...]:
    """The scenarios in a user's own file, which is imported, that is, run.

    Raises
    ------
    CallError
        If there is no such file, it does not import, or holds no scenario.
    """
    if not path.is_file():
        raise CallError("there is no such file", where=str(path), do="check the path")
    spec = importlib.util.spec_from_file_location(f"scenarios_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CallError("is no Python file", where=str(path), do="write scenarios into a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # functions find their own source through it
    try:
        spec.loader.exec_module(module)
    except CallError:
        raise
    except (Exception, SystemExit) as error:
        raise CallError(f"does not import: {error!r}", where=str(path), do="mend the file") from error
    found = tuple(_within(module))
    if not found:
        raise CallError(
            "holds no scenario", where=str(path), do="decorate a function by paretune.check.scenario.scenario"
        )
    return found


def _within(module: ModuleType) -> Iterator[Scenario]:
    for value in vars(module).values():
        if isinstance(value, tuple) and value and all(isinstance(one, Scenario) for one in value):
            # what a file only imports from another belongs to that one
            yield from (one for one in value if one.function.__module__ == module.__name__)


def fitting(scenarios: Iterable[Scenario], views: Mapping[str, View], only: Sequence[str] = ()) -> tuple[Scenario, ...]:
    """Those that fit the data, and whose name, stem or family one of the patterns in ``only`` matches (none: all).

    Raises
    ------
    CallError
        If two bear one name.
    """
    chosen: dict[str, Scenario] = {}
    for one in scenarios:
        if one.fits not in views or not views[one.fits].takes(one.stem):
            continue
        if one.name in chosen:
            raise CallError(f"there are two scenarios {one.name!r}", do="give the function another name")
        if matches(only, one.name, one.stem, one.family):
            chosen[one.name] = one
    return tuple(chosen.values())


def matches(only: Sequence[str], *names: str) -> bool:
    """Whether a pattern (``noise``, ``*_blur@5``) matches one of the names; without patterns everything does."""
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only for name in names)


class Changed:
    """A map-style dataset: the items of a split, each changed by a scenario when it is asked for."""

    def __init__(self, source: Split, scenario: Scenario, view: View, seed: int) -> None:
        self._source, self._scenario, self._view, self._seed = source, scenario, view, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> Any:
        index = self._source.indices[position]
        item = self._source.examples.item(index)
        inputs = inputs_of(item)
        if inputs is None:
            raise DataError("is not a pair (inputs, label)", where=f"{self._source.name}[{index}]")
        seen = self._view.see(inputs)
        changed = self._scenario.change(seen, self._scenario.rng(self._seed, index))
        return with_inputs(item, self._view.back(changed, inputs, self._scenario.name))


@dataclass(frozen=True, eq=False)
class Scene(Split):
    """A split as a scenario shows it; known by what it was made of, so that a stored answer is found unmade."""

    made_of: str

    @cached_property
    def digest(self) -> str:
        """sha256 over the source's digest, the scenario's code and strength, the view and the seed."""
        return self.made_of


def staged(source: Split, scenario: Scenario, view: View, seed: int) -> Scene:
    """The split with every example changed by the scenario.

    Examples are made when they are asked for, and raise :class:`DataError` if the scenario's function fails or returns
    another kind, shape or dtype.
    """
    facts = {
        "source": source.digest, "name": scenario.name, "strength": repr(scenario.strength), "seed": seed,
        "code": fingerprint_of(scenario.function), "view": view.describe(),
    }  # fmt: skip
    examples = Examples(Changed(source, scenario, view, seed), source.examples.collate, scenario.name)
    return Scene(examples, tuple(range(len(examples))), key_of("scene", facts))
