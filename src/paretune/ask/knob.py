"""Knobs: the fields of a technique or a target, with their ranges.

A technique or a target *is* its configuration: a frozen dataclass whose fields are declared with :func:`knob`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from paretune.errors import RecipeError

Scalar = str | int | float | bool
Value = Scalar | tuple[str, ...]


@dataclass(frozen=True)
class Knob:
    """The range of one knob.

    ``choices`` lists the allowed values; ``low`` and ``high`` bound a number (both inclusive); with neither, any value
    of the default's type is allowed (a tuple of names, say).
    """

    name: str
    default: Value
    help: str
    choices: tuple[Scalar, ...] | None = None
    low: float | None = None
    high: float | None = None

    def check(self, value: Value, owner: str) -> None:
        """Raise :class:`RecipeError` if ``value`` lies outside the knob's range."""
        where = f"{owner}.{self.name}"
        if self.choices is not None:
            if value not in self.choices or isinstance(value, bool) != isinstance(self.default, bool):
                raise RecipeError(f"{value!r} is not one of {', '.join(map(repr, self.choices))}", where=where)
            return
        kind = float if isinstance(self.default, float) else type(self.default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, kind) or (kind is float and number)) or (kind is int and isinstance(value, bool)):
            raise RecipeError(f"{value!r} is not of type {kind.__name__}", where=where)
        if isinstance(value, tuple) and not all(isinstance(one, str) for one in value):
            raise RecipeError(f"{value!r} is not a list of names", where=where)
        if number and not isinstance(value, str | tuple):
            if not math.isfinite(value):
                raise RecipeError(f"{value!r} is not a finite number", where=where)
            if self.low is not None and value < self.low:
                raise RecipeError(f"{value!r} is below {self.low:g}", where=where)
            if self.high is not None and value > self.high:
                raise RecipeError(f"{value!r} is above {self.high:g}", where=where)

    def settled(self, value: Value) -> Value:
        """A legal value as the knob itself spells it, 1.0 for 1: one setting has one description and one digest."""
        if self.choices is not None:
            return self.choices[self.choices.index(value)] if not isinstance(value, tuple) else value
        return float(value) if isinstance(self.default, float) and isinstance(value, int) else value

    def describe(self) -> dict[str, Any]:
        """The knob as plain JSON values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def knob(
    default: Any,
    help: str,
    *,
    choices: tuple[Scalar, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare a dataclass field as a knob; the field's name is the knob's name."""
    return dataclasses.field(
        default=default, metadata={"knob": {"help": help, "choices": choices, "low": low, "high": high}}
    )


def knobs_of(owner: Any) -> dict[str, Knob]:
    """The knobs declared on a dataclass (the class or an instance), by name."""
    return {
        field.name: Knob(field.name, cast(Value, field.default), **field.metadata["knob"])
        for field in dataclasses.fields(owner)
        if "knob" in field.metadata
    }


def values_of(owner: Any) -> dict[str, Value]:
    """The knob values of an instance, by name."""
    return {name: getattr(owner, name) for name in knobs_of(owner)}


def make(kind: type[Any], values: Mapping[str, Any], owner: str) -> Any:
    """An instance of ``kind`` with these knob values; the others keep their defaults.

    Raises
    ------
    RecipeError
        If a knob does not exist or its value lies outside the range.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{values!r} are no knobs", where=owner, do='write them as {"NAME": value}')
    knobs = knobs_of(kind)
    clean = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in clean.items():
        if name not in knobs:
            near = difflib.get_close_matches(name, knobs, 1)
            do = f"did you mean {near[0]}?" if near else f"its knobs are {', '.join(knobs) or 'none at all'}"
            raise RecipeError(f"has no knob {name!r}", where=owner, do=do)
        knobs[name].check(value, owner)
        clean[name] = knobs[name].settled(value)
    return kind(**clean)
