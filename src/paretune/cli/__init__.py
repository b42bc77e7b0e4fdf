"""The command line: one file per verb or small family of verbs.

A verb's file holds ``app``, a Typer of its own with the commands in it; to add one, name it in ``VERBS``. Whatever is
heavy is imported inside the command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from paretune.cli import ending

VERBS = (
    "optimize",
    "train",
    "demo",
    "measure",
    "compare",
    "diagnose",
    "scenarios",
    "report",
    "plugins",
)
"""The modules of this package that hold commands, in the order in which ``--help`` lists them."""

app = typer.Typer(
    name="paretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make a trained neural network small and fast within a budget, on the machine where it will run, and prove it."
    "\n\nStart with [bold]paretune demo[/], then [bold]paretune optimize --help[/].",
    epilog="Exit status: 0 done, a candidate meets · 3 none meets (the nearest is saved as RUN/nearest) · "
    "2 the call is wrong · 1 anything else.",
)
for verb in VERBS:
    app.add_typer(import_module(f"{__name__}.{verb}").app)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"paretune {version('paretune')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line, never in a traceback (except with ``--debug``)."""
    given = sys.argv[1:] if arguments is None else arguments
    json = "--json" in given
    with ending.stdout_for_the_document(json):
        code = ending.guarded(lambda: app(args=given, standalone_mode=False), "--debug" in given, json)
    sys.exit(code)
