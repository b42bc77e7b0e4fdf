"""``paretune diagnose``: what can be proven and what will be tried, before time is spent."""

from __future__ import annotations

from typing import Annotated

import typer

from paretune.cli import ending, options

app = typer.Typer()


@app.command(no_args_is_help=True)
def diagnose(
    workload: Annotated[str, typer.Argument(help="As in optimize: file.py:name, package.module:name, or model.onnx.")],
    budget: options.Budget = "",
    target: options.Targets = None,
    heldout_limit: Annotated[int | None, typer.Option(min=2, help="As in optimize.")] = None,
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """What this held-out data can prove, and what would be tried on this machine; nothing is built or timed."""
    from paretune import tables, terminal
    from paretune.diagnose import diagnose as run

    work, _ = options.workload(workload, data, score)
    found = run(work, budget, targets=options.split(target), heldout_limit=heldout_limit, threads=threads, seed=seed)
    result, words = terminal.consoles(json)
    if json:
        ending.show(found.describe())
        return
    result.print(tables.diagnosed(found.describe()))
    for warning in found.warnings:
        words.print(f"! {warning}", style="yellow", markup=False)
