"""What a user's function (a score, a loss) is, as a digest: what came of another one is not taken from the store."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
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


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


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
    cells = [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    given = [*getattr(function, "args", ()), *_pairs(getattr(function, "keywords", {})), *cells, *_pairs(attributes)]
    given += [*(getattr(inner, "__defaults__", None) or ()), *_pairs(getattr(inner, "__kwdefaults__", None) or {})]
    used = inner if inspect.isroutine(inner) else vars(type(inner)).get("__call__")
    # the source of all functions on one line is the same text, their code is not
    compiled = "" if code is None else f"{code.co_code.hex()}{[one for one in code.co_consts if _plain(one)]}"
    return [text, compiled, [shown for value in given if (shown := _shown(value, seen)) is not None], _used(used, seen)]


def _pairs(values: Any) -> list[Any]:
    return [one for pair in sorted(values.items(), key=lambda pair: str(pair[0])) for one in pair]


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool | np.generic)


def _shown(value: Any, seen: set[Any]) -> Any:
    """What a plain value, an array, a tensor or a function is, as plain JSON; None for anything else."""
    if hasattr(value, "untyped_storage") and not inspect.isclass(value):  # a tensor, told without importing torch
        value = as_array(value, "fingerprint")
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if _plain(value) and value is not None:
        return repr(value)
    if isinstance(value, tuple | list | dict) and id(value) not in seen:
        seen.add(id(value))
        parts = _pairs(value) if isinstance(value, dict) else value
        return [shown for part in parts if (shown := _shown(part, seen)) is not None]
    if callable(value) and not inspect.isclass(value) and id(value) not in seen:
        seen.add(id(value))
        return _of(value, seen)
    return None


def _used(function: Any, seen: set[Any]) -> list[Any]:
    """The values that a function takes from its module, and the functions that it calls: its module's and our own."""
    function = inspect.unwrap(getattr(function, "__func__", function)) if function is not None else None
    code = getattr(function, "__code__", None)
    found: list[Any] = []
    for name in sorted(set(code.co_names)) if code is not None else []:
        value = getattr(function, "__globals__", {}).get(name)
        if value is None or inspect.ismodule(value):
            continue
        module = getattr(value, "__module__", None) or ""
        if inspect.isfunction(value) and module != function.__module__ and not module.startswith(OWN):
            found.append(f"{module}.{value.__qualname__}")
        elif (shown := _shown(value, seen)) is not None:
            found.append([name, shown])
    return found
