"""``result.json``: what a run found, checked against the JSON Schema that ships beside this file."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match

from paretune.errors import ArtifactError

VERSION = 1
_WHERE = "result.json"


def validate(result: dict[str, Any]) -> None:
    """Check a result against the schema (JSON Schema 2020-12), and what a schema cannot say.

    That is: every number is finite, every id is used once, and every id that is named belongs to a candidate.

    Raises
    ------
    ArtifactError
        Naming the place in the document, such as ``result.json: candidates[3].runs[0].latency_ms.p95``.
    """
    if not isinstance(result, dict):
        raise ArtifactError(f"is a {type(result).__name__}, not an object", where=_WHERE)
    version = result.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ArtifactError(
            f"is of schema {version}, and this paretune reads schema {VERSION}", where=_WHERE, do="use a newer paretune"
        )
    error = best_match(_validator().iter_errors(result))
    if error is not None:
        raise ArtifactError(_shorten(error.message), where=_place(error.absolute_path))
    for path, number in _floats(result, ()):
        if not math.isfinite(number):
            raise ArtifactError(f"{number} is not a number that JSON can hold", where=_place(path), do="write null")
    _check_ids(result)


def read(path: Path) -> dict[str, Any]:
    """Read and validate a ``result.json``.

    Raises
    ------
    ArtifactError
        If it cannot be read, is no JSON, or does not validate; the place in the document is named.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot be read as a result: {error}", where=str(path), do="name a run's directory or its result.json"
        ) from error
    try:
        validate(result)
    except ArtifactError as error:
        where = error.where.removeprefix(_WHERE).removeprefix(": ")
        raise ArtifactError(error.what, where=f"{path}: {where}" if where else str(path), do=error.do) from None
    return dict(result)


@functools.cache
def _validator() -> Any:
    schema = json.loads(resources.files("paretune.deliver").joinpath("result.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def _place(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{_WHERE}: {text}" if text else _WHERE


def _shorten(message: str, most: int = 200) -> str:
    """The end says what is wrong; the start may be a whole candidate."""
    return message if len(message) <= most else f"{message[: most // 3]} … {message[-most * 2 // 3 :]}"


def _floats(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _floats(inner, (*path, key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _floats(inner, (*path, position))


def _check_ids(result: dict[str, Any]) -> None:
    known = {result["baseline"]["id"]}
    seen: set[str] = set()
    for position, candidate in enumerate(result["candidates"]):
        name = candidate["id"]
        if name in seen:
            raise ArtifactError(f"{name!r} is used twice", where=_place(("candidates", position, "id")))
        seen.add(name)
    known |= seen
    named: list[tuple[tuple[str | int, ...], str | None]] = [
        *(((key,), result[key]) for key in ("reference", "best", "nearest")),
        *((("front", position), name) for position, name in enumerate(result["front"])),
        *((("best_by_batch", batch), name) for batch, name in result["best_by_batch"].items()),
    ]
    for path, name in named:
        if name is not None and name not in known:
            raise ArtifactError(f"there is no candidate {name!r}", where=_place(path))
