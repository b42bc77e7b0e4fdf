"""``paretune demo``: the whole road on data that ships with a dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli import options
from paretune.cli.optimize import search

TARGETS = ["onnxruntime", "openvino", "torch"]

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's directory; it must not exist.")] = Path("runs/demo"),
    time: options.Time = "90s",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted demo.")] = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    store: options.StoreDir = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """The whole road on data that ships with a dependency: train a digit reader, optimise it, prove it.

    Less than two minutes on two cores. The budget: at most one point of accuracy lost on 1,000 held-out digits.
    """
    from paretune import demo as embedded

    search(
        embedded.digits(), json, out, budget=embedded.BUDGET, targets=TARGETS, batch=[1, 32], time=time,
        resume=resume, seed=seed, threads=threads, store=store, call={"workload": "paretune.demo:digits"},
    )  # fmt: skip
