"""``paretune optimize``: the search for the fastest form that meets a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paretune.ask.budget import Budget
from paretune.ask.rates import Rates
from paretune.cli import ending, options

RECIPE = '{"candidates": [{"recipe": [{"technique": "torch_to_onnx"}], "target": "onnxruntime"}]}'

app = typer.Typer()


@app.command(no_args_is_help=True)
def optimize(
    workload: Annotated[str, typer.Argument(help="file.py:name, package.module:name, or model.onnx with --data.")],
    budget: options.Budget = "",
    minimize: options.Minimize = None,
    target: options.Targets = None,
    batch: options.Batch = "1",
    time: options.Time = "10m",
    out: Annotated[Path | None, typer.Option(help="The run's directory; default: runs/NAME-N.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run; finished steps are not repeated.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Use these techniques alone (names or patterns); what trains, by its whole name.")
    ] = None,
    without: Annotated[str | None, typer.Option(help="Leave these techniques out (names or patterns).")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="PATTERN=fp32: nodes or modules that stay in float; may be repeated.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help=f"A JSON file with a fixed list of candidates, such as {RECIPE}.")
    ] = None,
    heldout_limit: Annotated[int | None, typer.Option(min=2, help="Use at most this many held-out examples.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of every interval.")] = 0.95,
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    prices: options.Prices = None,
    watts_per_core: options.Watts = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    store: options.StoreDir = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Search for the fastest form of a model that meets a budget on this machine, and prove it.

    Example: [bold]paretune optimize examples/cifar10.py:resnet56 --budget "drop<=1pp" --batch 1,32 --time 10m[/]

    Ctrl-C once ends the search and confirms the best so far. Exit status 3: nothing meets; the report says why.
    """
    # a slip of the pen is told before a model is loaded
    limits = Budget.parse(budget, minimize, confidence).at(Rates.of(prices, watts_per_core))
    sizes = options.sizes(batch)
    work, given = options.workload(workload, data, score)
    search(
        work, json, out, budget=limits, minimize=minimize, targets=options.split(target), batch=sizes, time=time,
        resume=resume, only=options.split(only), without=options.split(without) or [], keep=options.kept(keep or []),
        recipes=recipe, heldout_limit=heldout_limit, confidence=confidence, seed=seed, threads=threads, store=store,
        call={"workload": given, "data": str(data) if data else None},
    )  # fmt: skip


def search(work: Any, json: bool, out: Path | None, **settings: Any) -> None:
    """``paretune.optimize`` as a person sees it, or as a program reads it.

    Raises
    ------
    typer.Exit
        With status 3 where nothing meets.
    """
    from paretune import terminal
    from paretune.optimize import optimize as run

    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(work, observers=[progress], out=out, **settings)
    if json:
        ending.show(found.result)
    else:
        result.print(terminal.table(found.result))
        words.print(f"report: {found.report}", markup=False, soft_wrap=True)
        if found.best is not None:
            words.print(
                f"bundle: {found.root / 'bundle'}" if found.result.get("bundle") else "no bundle could be written",
                markup=False,
                soft_wrap=True,
            )
    if found.best is None:
        raise typer.Exit(ending.MEETS_NONE)
