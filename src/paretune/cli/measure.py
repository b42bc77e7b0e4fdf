"""``paretune measure``: the same numbers again, here and now."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from paretune.cli import ending, options
from paretune.errors import CallError

app = typer.Typer()
OF_A_LOAD = ("rate", "bound_ms", "seconds", "samples")
OF_NONE = ("soak", "prices", "watts_per_core")


@app.command(no_args_is_help=True)
def measure(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="BUNDLE|MODEL", help="A bundle's directory, or an .onnx or .pt2 file.")
    ],
    workload: Annotated[
        str | None, typer.Argument(help="Whose held-out data to score on; without: no accuracy.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Another target than the bundle's.")] = None,
    batch: options.Batch = "1",
    soak: Annotated[bool, typer.Option("--soak", help="Also watch for a minute at most whether memory grows.")] = False,
    load: Annotated[
        str | None,
        typer.Option(help="Send queries as MLPerf does instead: single-stream, multi-stream, server, offline."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="With --load server: queries a second.")] = None,
    bound_ms: Annotated[
        float | None, typer.Option(help="With --load server: find the highest rate whose tail stays within this.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="With --load: about how long to send.")] = 10.0,
    samples: Annotated[
        int | None, typer.Option(help="With --load: samples of a query; default: 1, multi-stream 8, offline 32.")
    ] = None,
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    prices: options.Prices = None,
    watts_per_core: options.Watts = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The same numbers again, here and now: latency, memory, energy and size, and scores where there is data."""
    from paretune import tables, terminal

    _check(context, load)
    work = None
    if workload is not None or data is not None:
        work, _ = options.workload(workload or what, data, score)
    shared: dict[str, Any] = {"target": target, "threads": threads, "seed": seed}
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        if load is None:
            from paretune.measure import measure as run

            found = run(
                what, work, batch=options.sizes(batch), soak=soak, prices=prices, watts_per_core=watts_per_core,
                observers=[progress], **shared,
            ).describe()  # fmt: skip
        else:
            from paretune.load import load as send

            asked: dict[str, Any] = {
                "shape": load,
                "rate": rate,
                "bound_ms": bound_ms,
                "seconds": seconds,
                "samples": samples,
            }
            found = send(what, work, observers=[progress], **asked, **shared).describe()
    if json:
        ending.show(found)
        return
    for warning in found["warnings"]:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(tables.measured(found) if load is None else tables.loaded(found))


def _check(context: typer.Context, load: str | None) -> None:
    """No flag is passed over in silence: those of a load without one, and those of none with one, are slips."""
    sources = {name: context.get_parameter_source(name) for name in (*OF_A_LOAD, *OF_NONE, "batch")}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    for name in given:
        if load is None and name in OF_A_LOAD:
            flag = "--" + name.replace("_", "-")
            raise CallError("belongs to a load, and none is asked", where=flag, do="add --load server, say")
    for name in set(given) & set(OF_NONE) if load is not None else ():
        flag = "--" + name.replace("_", "-")
        raise CallError("does not go with a load", where=flag, do="measure once without --load")
    if load is not None and "batch" in given:
        raise CallError("a load has no batch sizes", where="--batch", do="say with --samples what a query holds")
