"""What a user's function (a score, a loss) or value is, as a digest: what came of another is not reused."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from paretune.ask.set_score import SetScore
from paretune.ask.values import as_array

OWN = "paretune."


def fingerprint_of(function: Callable[..., Any] | SetScore) -> str:
    """A digest of a function's or a score's code, of the functions, arrays and plain values it uses, and its kind."""
    if isinstance(function, SetScore):
        parts = [None if part is None else fingerprint_of(part) for part in (function.metric, function.keep)]
        return _digest(["set", *parts, function.best])
    return _digest(_of(function, set()))


def digest_of(value: Any) -> str | None:
    """A digest of a plain value, an array, a tensor, a function, a class, an object's plain attributes, or a container
    of such; None for anything else."""
    seen: set[Any] = set()
    shown = _class(value, seen) if inspect.isclass(value) else _shown(value, seen)
    return None if shown is None else _digest(shown)


def code_of(function: Callable[..., Any]) -> str:
    """A digest of a function's code and of what it uses; of a bound method without what it is bound to."""
    return _digest(_of(inspect.unwrap(getattr(function, "__func__", function)), set()))


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _class(kind: type, seen: set[Any]) -> list[Any]:
    """Its own source and methods; not those that it inherits."""
    text = kind.__qualname__
    with contextlib.suppress(OSError, TypeError):  # made in a shell, or generated: the compiled code speaks for itself
        text = inspect.getsource(kind)
    methods = [
        _of(inspect.unwrap(inner), seen)
        for value in vars(kind).values()
        if inspect.isfunction(inner := getattr(value, "__func__", getattr(value, "fget", value)))
    ]
    return [text, methods]


def _of(function: Any, seen: set[Any]) -> list[Any]:
    """All that is known of a function or callable object, as plain JSON."""
    inner = getattr(function, "func", function)
    try:
        text = inspect.getsource(inner)
    except (OSError, TypeError):
        text = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    attributes: dict[str, Any] = {}
    if not inspect.isroutine(inner):  # a callable object: its class and its attributes
        with contextlib.suppress(OSError, TypeError):
            text = inspect.getsource(type(inner))
        attributes = getattr(inner, "__dict__", {})
    elif hasattr(inner, "__self__"):
        attributes = getattr(inner.__self__, "__dict__", {})
    cells = [value for cell in getattr(inner, "__closure__", None) or () if (value := _content(cell)) is not None]
    given = [*getattr(function, "args", ()), *_pairs(getattr(function, "keywords", {})), *cells, *_pairs(attributes)]
    given += [*(getattr(inner, "__defaults__", None) or ()), *_pairs(getattr(inner, "__kwdefaults__", None) or {})]
    used = inner if inspect.isroutine(inner) else vars(type(inner)).get("__call__")
    # the source of all functions on one line is the same text, their code is not
    compiled = "" if code is None else _compiled(code)
    return [text, compiled, [shown for value in given if (shown := _shown(value, seen)) is not None], _used(used, seen)]


def _content(cell: types.CellType) -> Any:
    """What a cell holds; nothing where it is empty, or holds a class: a method names its own by one (``super()``)."""
    try:
        value = cell.cell_contents
    except ValueError:
        return None
    return None if inspect.isclass(value) else value


def _compiled(code: types.CodeType) -> str:
    """Instructions and constants, those of functions within too."""
    parts = [code.co_code.hex(), repr([one for one in map(_constant, code.co_consts) if _plain(one)])]
    return ":".join([*parts, *map(_compiled, _within(code))])


def _constant(value: Any) -> Any:
    """A set of constants has another order in every process."""
    return tuple(sorted(map(repr, value))) if isinstance(value, frozenset) else value


def _within(code: types.CodeType) -> list[types.CodeType]:
    return [one for one in code.co_consts if isinstance(one, types.CodeType)]


def _pairs(values: Any) -> list[Any]:
    return [one for pair in sorted(values.items(), key=lambda pair: str(pair[0])) for one in pair]


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool | complex | np.generic)


def _shown(value: Any, seen: set[Any]) -> Any:
    """What a plain value, an array, a tensor, a function or an object is, as plain JSON; None for anything else."""
    if hasattr(value, "untyped_storage") and not inspect.isclass(value):  # a tensor, told without importing torch
        value = as_array(value, "fingerprint")
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if _plain(value) and value is not None:
        return repr(value)
    if isinstance(value, set | frozenset):
        return sorted(repr(one) for one in value if _plain(one))
    if inspect.isclass(value) or inspect.ismodule(value) or id(value) in seen:
        return None
    if isinstance(value, tuple | list | dict):
        seen.add(id(value))
        parts = _pairs(value) if isinstance(value, dict) else value
        return [shown for part in parts if (shown := _shown(part, seen)) is not None]
    if callable(value):
        seen.add(id(value))
        return _of(value, seen)
    return _object(value, seen)


def _object(value: Any, seen: set[Any]) -> Any:
    """What an object holds: of a record (a dataclass, a namespace) all, of any other its plain values and arrays, as it
    may lead to everything that there is; None where it has no attributes."""
    held = getattr(value, "__dict__", None)
    if held is None:
        return None
    seen.add(id(value))
    record = dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace)
    kept = {
        name: one for name, one in held.items()
        if record or _plain(one) or isinstance(one, np.ndarray) or hasattr(one, "untyped_storage")
    }  # fmt: skip
    return [type(value).__qualname__, [shown for one in _pairs(kept) if (shown := _shown(one, seen)) is not None]]


def _used(function: Any, seen: set[Any]) -> list[Any]:
    """The values that a function takes from its module, and the functions that it calls: its module's and our own."""
    function = inspect.unwrap(getattr(function, "__func__", function)) if function is not None else None
    code = getattr(function, "__code__", None)
    found: list[Any] = []
    for name in sorted(_globals(code)) if code is not None else []:
        value = getattr(function, "__globals__", {}).get(name)
        if value is None or inspect.ismodule(value):
            continue
        module = getattr(value, "__module__", None) or ""
        if inspect.isfunction(value) and module != function.__module__ and not module.startswith(OWN):
            found.append(f"{module}.{value.__qualname__}")
        elif (shown := _shown(value, seen)) is not None:
            found.append([name, shown])
    return found


@functools.lru_cache(maxsize=4096)
def _globals(code: types.CodeType) -> frozenset[str]:
    """The names that it takes from its module; attributes may have the same names and are none."""
    found = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(found).union(*map(_globals, _within(code)))
