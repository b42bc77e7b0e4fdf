"""``paretune measure``: the same numbers again, here and now."""

from __future__ import annotations

from typing import Annotated

import typer

from paretune.cli import ending, options

app = typer.Typer()


@app.command(no_args_is_help=True)
def measure(
    what: Annotated[
        str, typer.Argument(metavar="BUNDLE|MODEL", help="A bundle's directory, or an .onnx or .pt2 file.")
    ],
    workload: Annotated[
        str | None, typer.Argument(help="Whose held-out data to score on; without: no accuracy.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Another target than the bundle's.")] = None,
    batch: options.Batch = "1",
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The same numbers again, here and now: latency, memory and size, and scores where there is data."""
    from paretune import terminal
    from paretune.measure import measure as run

    work = None
    if workload is not None or data is not None:
        work, _ = options.workload(workload or what, data, score)
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(
            what, work, target=target, batch=options.sizes(batch), threads=threads, seed=seed, observers=[progress]
        ).describe()
    if json:
        ending.show(found)
        return
    for warning in found["warnings"]:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(terminal.measured(found))
