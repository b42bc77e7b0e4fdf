"""``paretune report`` and ``paretune pack``: what a finished run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli import ending, options

app = typer.Typer()


@app.command(no_args_is_help=True)
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a finished run: its table and verdict; writes its report.html anew."""
    from paretune import terminal
    from paretune.deliver import report as page
    from paretune.deliver.run import Run

    found = Run.open(run)
    page.write(found.result, found.report)
    if json:
        ending.show(found.result)
        return
    result, words = terminal.consoles(json)
    result.print(terminal.table(found.result))
    words.print(f"report: {found.report}", markup=False)


@app.command(no_args_is_help=True)
def pack(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    id: Annotated[str, typer.Option("--id", help="The candidate's id (or its unique beginning).")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's directory; it must not exist.")],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write any other candidate of a run as a bundle."""
    from paretune.deliver.run import Run

    bundle = Run.open(run).choice(id).save(out)
    if json:
        ending.show({"bundle": str(bundle.root), **bundle.manifest})
    else:
        typer.echo(f"{bundle.manifest['title']} → {out}")
