"""The options that several verbs take, and how their text is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from paretune.errors import CallError


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Values from a TOML file stand where a flag was not given: top-level keys, then those of [the command]."""
    if path is None:
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CallError(f"cannot be read: {error}", where=str(path)) from error
    own = document.get(context.info_name or "", {})
    tables = {key for key, value in document.items() if isinstance(value, dict)}
    values = {key: value for key, value in document.items() if key not in tables} | (
        own if isinstance(own, dict) else {}
    )
    own_parameters = {str(parameter.name): parameter for parameter in context.command.params}
    commands = getattr(context.parent.command, "commands", {}) if context.parent else {}
    elsewhere = {parameter.name for command in commands.values() for parameter in command.params}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in own_parameters:
            if key in document and name in elsewhere:
                continue  # one file serves several commands
            raise CallError(f"{context.info_name} has no setting {key!r}", where=str(path), do="see --help")
        several = getattr(own_parameters[name], "multiple", False)
        found[name] = ",".join(map(str, value)) if isinstance(value, list) and not several else value
    context.default_map = {**found, **(context.default_map or {})}
    return path


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, words on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds every random choice.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of every runtime; default: the physical cores.")]
StoreDir = Annotated[Path | None, typer.Option("--store", help="A store of finished steps to share between runs.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_configure, help="A paretune.toml with the same keys; flags win."),
]
Budget = Annotated[
    str, typer.Option("--budget", "-b", help='Limits, such as "p95@1<=5ms, drop<=1pp, size<=5MB, throughput>=200/s".')
]
Minimize = Annotated[str | None, typer.Option(help="The objective, such as p50@32 or size; default: highest speed-up.")]
Targets = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Targets, comma-separated; default: every installed one that runs here."),
]
Batch = Annotated[str, typer.Option(help="Batch sizes to measure, comma-separated.")]
Time = Annotated[str, typer.Option(help="When to end: 90s, 10m, 1h.")]
Data = Annotated[
    Path | None, typer.Option(help="For model.onnx: a .npz with arrays named like the inputs, and `label`.")
]
Prices = Annotated[
    Path | None, typer.Option(help="A TOML file: per_hour = 0.34 (and per_kwh = 0.25) under [machine]; for costs.")
]
Watts = Annotated[
    float | None, typer.Option(help="Watts of a busy core, where no counter tells the energy; default: 5.")
]
ScoreName = Annotated[str, typer.Option("--score", help="For --data: a built-in score, as accuracy, f1, auc, mse.")]


def split(text: str | None) -> list[str] | None:
    """``"a, b"`` as a list; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def sizes(text: str) -> list[int]:
    """``--batch``: ``"1,32"`` as whole numbers.

    Raises
    ------
    CallError
        If a part is none.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CallError(f"{text!r} are no batch sizes", where="--batch", do="write them like 1,32") from None


def kept(patterns: list[str]) -> list[str]:
    """``--keep``: the patterns of ``PATTERN=fp32``.

    Raises
    ------
    CallError
        If one is written otherwise.
    """
    found = []
    for pattern in patterns:
        name, _, kind = pattern.rpartition("=")
        if kind != "fp32" or not name:
            raise CallError(f"{pattern!r} cannot be read", where="--keep", do="write PATTERN=fp32")
        found.append(name)
    return found


def workload(where: str, data: Path | None, score: str) -> tuple[Any, str]:
    """The workload that ``WORKLOAD`` (or a model file with ``--data``) names, and that name.

    Raises
    ------
    WorkloadError
        If it cannot be loaded.
    """
    from paretune.ask.arrays import from_npz
    from paretune.ask.workload import load

    if data is not None:
        return from_npz(Path(where), data, score), str(where)
    if where.endswith((".onnx", ".pt2")):
        raise CallError("a model file needs --data FILE.npz", where=where, do="or name a workload as file.py:name")
    return load(where), where
