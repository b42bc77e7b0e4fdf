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
    load: Annotated[
        str | None,
        typer.Option(help="Send queries as MLPerf does instead: single-stream, multi-stream, server, offline."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="With --load server: queries a second.")] = None,
    bound_ms: Annotated[
        float | None, typer.Option(help="With --load server: find the highest rate whose tail stays within this.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="With --load: about how long to send.")] = 10.0,
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The same numbers again, here and now: latency, memory and size, and scores where there is data."""
    from paretune import tables, terminal
    from paretune.errors import CallError
    from paretune.load import load as send
    from paretune.measure import measure as run

    work = None
    if workload is not None or data is not None:
        work, _ = options.workload(workload or what, data, score)
    if load is None and (rate is not None or bound_ms is not None):
        raise CallError("a rate or a bound belongs to a load", where="measure", do="add --load server")
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        if load is not None:
            found = send(
                what, work, shape=load, rate=rate, bound_ms=bound_ms, seconds=seconds, target=target, threads=threads,
                seed=seed, observers=[progress],
            ).describe()  # fmt: skip
        else:
            found = run(
                what, work, target=target, batch=options.sizes(batch), threads=threads, seed=seed, observers=[progress]
            ).describe()
    if json:
        ending.show(found)
        return
    for warning in found["warnings"]:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(tables.measured(found) if load is None else tables.loaded(found))
