"""``paretune techniques``, ``targets`` and ``sources``: what is installed."""

from __future__ import annotations

from typing import Annotated

import typer

from paretune.cli import ending, options

app = typer.Typer()
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Only these, with every knob.")]


@app.command()
def techniques(names: Names = None, json: options.Json = False, debug: options.Debug = False) -> None:
    """What can be done to a model: each technique, its knobs, and what a missing one needs."""
    _listing("techniques", names, json)


@app.command()
def targets(names: Names = None, json: options.Json = False, debug: options.Debug = False) -> None:
    """Where a model can run: each runtime, its settings, and what a missing one needs."""
    _listing("targets", names, json)


@app.command()
def sources(names: Names = None, json: options.Json = False, debug: options.Debug = False) -> None:
    """What can be given as a model."""
    _listing("sources", names, json)


def _listing(group: str, names: list[str] | None, json: bool) -> None:
    from paretune import tables, terminal
    from paretune.ask import plugin
    from paretune.ask.knob import knobs_of

    entries = []
    for name in names or plugin.names(group):
        kind = plugin.load(group, name)
        needs = plugin.install_command(kind)
        reason = getattr(kind(), "unavailable", lambda: None)() if not needs else None
        takes = sorted(getattr(kind, "takes", None) or getattr(kind, "accepts", None) or ())
        entries.append(
            {
                "name": name,
                "takes": takes,
                "gives": getattr(kind, "gives", None),
                "knobs": [knob.describe() for knob in knobs_of(kind).values()] if group != "sources" else [],
                "installed": not needs,
                "needs": needs or reason or None,
                "about": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
                "use": getattr(kind, "use", None),
            }
        )
    if json:
        ending.show(entries)
    else:
        terminal.consoles(json)[0].print(tables.listing(entries, whole=bool(names)))
