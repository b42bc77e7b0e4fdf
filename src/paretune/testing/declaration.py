"""What every plug-in declares: its class variables, its knobs, and that it imports cheaply."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

from paretune.ask import knob
from paretune.errors import ParetuneError, RecipeError

CHEAP = frozenset(["numpy"])
"""Modules that the core imports anyway."""


def check_variables(kind: type[Any], wanted: Mapping[str, type[Any]]) -> None:
    """Assert that the class variables exist, are declared as such and have the right type."""
    hints = get_type_hints(kind)
    for name, type_ in wanted.items():
        assert hasattr(kind, name), f"{kind.__name__} has no {name}"
        value = getattr(kind, name)
        number = type_ is float and isinstance(value, int) and not isinstance(value, bool)
        assert isinstance(value, type_) or number, f"{kind.__name__}.{name} is {value!r}, not a {type_.__name__}"
        assert get_origin(hints.get(name)) is ClassVar, f"{kind.__name__}.{name} is not declared a ClassVar"
    assert all(isinstance(module, str) and isinstance(how, str) and how for module, how in kind.needs.items())


def check_knobs(kind: type[Any]) -> None:
    """Assert that it is a frozen dataclass, every field a knob with a range and help, every default inside it."""
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} is no dataclass"
    assert kind.__dataclass_params__.frozen, f"{kind.__name__} is not frozen"  # type: ignore[attr-defined]
    knobs = knob.knobs_of(kind)
    for field in dataclasses.fields(kind):
        assert field.name in knobs, f"{kind.__name__}.{field.name} is not declared with knob()"
    for one in knobs.values():
        assert one.help, f"{one.name} has no help"
        one.check(one.default, kind.__name__)
        if one.choices is None and isinstance(one.default, int | float) and not isinstance(one.default, bool):
            assert one.low is not None, f"{one.name} is a number without a range"
        if one.choices is None and isinstance(one.default, str):
            raise AssertionError(f"{one.name} is a text without choices")
    assert knob.make(kind, {}, kind.__name__) == kind()


def check_refusals(kind: type[Any]) -> None:
    """Assert that values outside the ranges, and knobs that do not exist, raise RecipeError."""
    for name, one in knob.knobs_of(kind).items():
        wrong: list[Any] = [object(), "no such choice" if one.choices else b"bytes"]
        kind_of_number: Any = type(one.default)
        wrong += [] if one.low is None else [kind_of_number(one.low - 1)]
        wrong += [] if one.high is None else [kind_of_number(one.high + 1)]
        for value in wrong:
            _assert_refused(kind, {name: value})
    _assert_refused(kind, {"no_such_knob": 1})


def _assert_refused(kind: type[Any], values: dict[str, Any]) -> None:
    try:
        knob.make(kind, values, kind.__name__)
    except RecipeError:
        return
    raise AssertionError(f"{kind.__name__} took {values}")


def check_light(kind: type[Any], proposed: tuple[Any, ...]) -> None:
    """Assert that the proposed instances are distinct, of this kind, and legal."""
    assert isinstance(proposed, tuple)
    assert len(set(proposed)) == len(proposed), "light() proposes the same settings twice"
    for one in proposed:
        assert type(one) is kind
        assert knob.make(kind, knob.values_of(one), kind.__name__) == one


def check_cheap_import(kind: type[Any]) -> None:
    """Assert that importing the plug-in's module loads none of the frameworks that it needs."""
    heavy = sorted(set(kind.needs) - CHEAP)
    code = f"import sys, {kind.__module__}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"importing {kind.__module__} loads {done.stdout.strip()}"


def complaint(call: Callable[[], Any], error: type[ParetuneError]) -> str | None:
    """What the call complains about with this error, which must be one line; None when it does not."""
    try:
        call()
    except error as raised:
        text = str(raised)
    else:
        return None
    assert text
    assert "\n" not in text, "an error a person meets is one line"
    return text
