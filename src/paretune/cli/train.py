"""``paretune train`` and ``paretune batch-size``: what trains, made beforehand, and how much of it at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from paretune.cli import ending, options
from paretune.errors import CallError

app = typer.Typer()


@app.command(no_args_is_help=True)
def train(
    workload: Annotated[str, typer.Argument(help="file.py:name or package.module:name.")],
    recipe: Annotated[Path, typer.Option(help="A JSON file of candidates, as for optimize.")],
    store: Annotated[Path, typer.Option(help="Where finished steps are kept; give it to optimize too.")],
    keep: Annotated[list[str] | None, typer.Option(help="As in optimize.")] = None,
    heldout_limit: Annotated[int | None, typer.Option(min=2, help="As in optimize.")] = None,
    seed: options.Seed = 0,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make what trains beforehand, without measuring: a later run with the same recipes takes it from the store.

    Several devices: [bold]accelerate launch --multi_gpu -m paretune train mine.py:work --recipe chain.json --store s[/]
    """
    from paretune import tables, terminal
    from paretune.train import train as run

    work, _ = options.workload(workload, None, "accuracy")
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(
            work, recipe, store=store, keep=options.kept(keep or []), heldout_limit=heldout_limit, seed=seed,
            observers=[progress],
        )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        if json:
            ending.show([one.describe() for one in found])
        else:
            result.print(tables.trained([one.describe() for one in found]))
            words.print(f"next: paretune optimize with --recipe {recipe} --store {store}", markup=False, soft_wrap=True)
    if any(one.error for one in found):
        raise typer.Exit(1)


@app.command("batch-size", no_args_is_help=True)
def batch_size(
    workload: Annotated[str, typer.Argument(help="file.py:name or package.module:name.")],
    technique: Annotated[str, typer.Option(help="One that trains, by its name.")] = "torch_finetune",
    knob: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the technique, such as precision=bf16; may be repeated.")
    ] = None,
    up_to: Annotated[int, typer.Option(min=2, help="The largest number of examples to try.")] = 1024,
    seed: options.Seed = 0,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """How many examples at once a training should take here: the quickest, the most that fit; and what else pays."""
    from paretune import tables, terminal
    from paretune.batch_size import batch_size as run

    work, _ = options.workload(workload, None, "accuracy")
    found = run(work, technique, _knobs(knob or []), up_to=up_to, seed=seed).describe()
    result, _ = terminal.consoles(json)
    if json:
        ending.show(found)
    else:
        result.print(tables.batch_sizes(found))


def _knobs(texts: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as values: JSON's, else text.

    Raises
    ------
    CallError
        If one is written otherwise.
    """
    from json import loads

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CallError(f"{text!r} cannot be read", where="--knob", do="write NAME=VALUE, such as precision=bf16")
        try:
            found[name] = loads(value)
        except ValueError:
            found[name] = value
    return found
