"""``paretune scenarios``: a bundle beside its original under everything that may happen to it."""

from __future__ import annotations

import json as json_
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from paretune.cli import ending, options

app = typer.Typer()


@app.command(no_args_is_help=True)
def scenarios(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.")],
    workload: Annotated[str, typer.Argument(help="Whose original, held-out data and score to use.")],
    only: Annotated[
        str | None, typer.Option(help="Names, stems or families, comma-separated: noise, '*_blur@5', 2_threads.")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Held-out examples that are drawn.")] = 1000,
    scenarios: Annotated[Path | None, typer.Option(help="A Python file with scenarios of your own.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A bundle of the original; default: the workload's model as it is.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Excess drop that is tolerated: pp, or % where a score is not between 0 and 1.")
    ] = 1.0,
    confidence: Annotated[float, typer.Option(help="Confidence of each family's verdicts.")] = 0.95,
    batch: Annotated[int, typer.Option(min=1, help="The largest batch.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Write scenarios.json and scenarios.html there.")] = None,
    data: options.Data = None,
    score: options.ScoreName = "accuracy",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    store: options.StoreDir = None,
    config: options.Config = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Corruptions, odd inputs and load: what they cost the bundle beyond what they cost the original.

    Exit status 0 when it was measured, whatever came of it. `docs/scenarios.md` says what each one does.
    """
    from paretune import tables, terminal
    from paretune.scenarios import scenarios as run

    work, _ = options.workload(workload, data, score)
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(
            bundle, work, baseline=baseline, only=options.split(only) or (), own=scenarios, limit=limit,
            tolerance=tolerance, confidence=confidence, batch=batch, threads=threads, seed=seed, store=store,
            observers=[progress],
        ).describe()  # fmt: skip
    if out is not None:
        _write(found, out)
    if json:
        ending.show(found)
        return
    for warning in found["warnings"]:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(tables.stressed(found))
    if out is not None:
        words.print(f"heat map: {out / 'scenarios.html'}", markup=False, soft_wrap=True)


def _write(found: Mapping[str, Any], out: Path) -> None:
    from paretune.build.store import write_whole
    from paretune.deliver import heatmap
    from paretune.deliver.scenarios import FILE

    write_whole(out / FILE, json_.dumps(found, indent=1, allow_nan=False))
    heatmap.write(found, out / "scenarios.html")
