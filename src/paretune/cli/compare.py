"""``paretune compare``: which of two is faster, if that can be shown."""

from __future__ import annotations

from typing import Annotated

import typer

from paretune.cli import ending, options

app = typer.Typer()


@app.command(no_args_is_help=True)
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A bundle's directory, or an .onnx or .pt2 file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, with the same inputs.")],
    workload: Annotated[
        str | None, typer.Argument(help="Whose held-out data to feed and score on; without: speed alone.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Another target than their own.")] = None,
    batch: options.Batch = "1",
    time: Annotated[str, typer.Option(help="How long to look: 30s, 5m.")] = "60s",
    confidence: Annotated[float, typer.Option(help="Confidence of every interval.")] = 0.95,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Time A and B in turns, processes opened anew again and again: is A faster, slower, or is no difference shown?"""
    from paretune import tables, terminal
    from paretune.compare import compare as run
    from paretune.errors import CallError
    from paretune.optimize import seconds_of

    if not 0.5 <= confidence < 1:
        raise CallError(
            f"{confidence} is no confidence", where="--confidence", do="give one from 0.5 to below 1, as 0.95"
        )
    work = None if workload is None else options.workload(workload, None, "accuracy")[0]
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(
            a, b, work, target=target, batch=options.sizes(batch), seconds=seconds_of(time), threads=threads,
            seed=seed, observers=[progress],
        )  # fmt: skip
    if json:
        ending.show(found.describe(confidence))
        return
    for warning in found.warnings:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(tables.compared(found.describe(confidence)))
