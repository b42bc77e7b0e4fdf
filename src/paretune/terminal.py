"""What a person sees: progress while it runs, a table at the end; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paretune.ask.event import Event
from paretune.deliver.outcome import ranks_on_heldout
from paretune.tables import megabytes

ROWS = 14
_STYLE = {"meets": "green", "breaks": "red", "undecided": "yellow"}


class Progress:
    """An observer for a terminal (a line that moves, with the best so far and the time left), or for a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._what, self._best, self._share, self._left = "starting", "", 0.0, None
        self._pace = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on(self, event: Event) -> None:
        self._left = event.data.get("left_s", self._left)
        if event.kind in ("stage", "progress", "stop"):
            self._what = event.text
            if event.data.get("total"):
                self._share = event.data["done"] / event.data["total"]
        if event.kind == "candidate":
            self._candidate(event)
        elif event.kind == "warning":
            self.console.print(Text(event.line, style="yellow"))
        elif event.kind in ("stage", "stop") and self._live is None:
            self.console.print(Text(event.line))
        if self._live is not None:
            self._live.update(self._line())

    def _candidate(self, event: Event) -> None:
        data = event.data
        failed = data["status"] == "failed"
        style = "red" if failed else "green" if data.get("stage") == "confirmed" else ""
        self.console.print(Text(event.line, style=style), soft_wrap=True)
        pace = data.get("pace") or 0.0
        if data["role"] == "candidate" and not failed and data.get("verdict") != "breaks" and pace > self._pace:
            self._pace = pace
            self._best = f"{data['title']} ({pace:.2f}×)"

    def _line(self) -> Group:
        left = (
            "" if self._left is None else f"  {max(0, int(self._left)) // 60}:{max(0, int(self._left)) % 60:02d} left"
        )
        head = Text.assemble(("paretune ", "bold"), self._what, (left, "dim"), overflow="ellipsis", no_wrap=True)
        lines: list[Any] = [head, ProgressBar(total=1.0, completed=self._share, width=40)]
        if self._best:
            lines.append(Text.assemble(("fastest so far ", "dim"), self._best, overflow="ellipsis", no_wrap=True))
        return Group(*lines)


def table(result: Mapping[str, Any]) -> Group:
    """The end of a run: what was found, the leading candidates, and where the report lies."""
    batches = result["batches"]
    score = result["workload"]["scores"][0]
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "id",
        "candidate",
        "size",
        *(f"p50@{batch}" for batch in batches),
        *(f"×@{batch}" for batch in batches),
    ):
        grid.add_column(name, justify="left" if name in ("id", "candidate") else "right", overflow="fold")
    grid.add_column(f"drop of {score}", justify="right")
    grid.add_column("verdict")
    shown = leading(result)
    for entry in shown:
        grid.add_row(*_row(entry, result, batches, score))
    hidden = len(result["candidates"]) + 1 - len(shown)
    parts: list[Any] = [grid]
    if hidden > 0:
        parts.append(Text(f"{hidden} more candidates are in the report", style="dim"))
    original = result["baseline"]["scores"].get(score)
    if original:
        where = "held-out" if result["baseline"]["data"] == "heldout" else "ranking"
        parts.append(Text(f"the original's {score} is {original['value']:.4g} on {where} data", style="dim"))
    if any(entry["drops"] and entry["data"] != "heldout" for entry in shown):
        part = "held-out" if ranks_on_heldout(result) else "train, which the original may know"
        told = f"* on the ranking data (a part of {part}); only finalists are tested on held-out data"
        parts.append(Text(told, style="dim"))
    parts.append(Text(""))
    parts.append(headline(result))
    return Group(*parts)


def leading(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows worth showing: baseline, reference, then what was confirmed and what is in the front, the best first."""
    best, reference = result["best"], result["reference"]
    measured = [entry for entry in result["candidates"] if entry["runs"] and entry["id"] != reference]

    def rank(entry: Mapping[str, Any]) -> tuple[bool, bool, bool, float]:
        merit = (entry["objective"] or {}).get("value") or 0.0
        return entry["id"] != best, not entry["confirmed"], not entry["in_front"], -merit

    standing = [entry for entry in result["candidates"] if entry["id"] == reference and entry["runs"]]
    return [result["baseline"], *standing, *sorted(measured, key=rank)][:ROWS]


def headline(result: Mapping[str, Any]) -> Text:
    """The verdict in a sentence."""
    if result["best"] is None:
        return Text(f"No candidate meets the budget: {result['why_none']}", style="yellow")
    best = next(entry for entry in result["candidates"] if entry["id"] == result["best"])
    speeds = ", ".join(f"{run['speedup']['value']:.2f}× at batch {run['batch']}" for run in best["runs"])
    drops = ", ".join(
        f"{name} drop {drop['value']:+.2f} {drop['unit']} ({drop['low']:+.2f} … {drop['high']:+.2f})"
        for name, drop in best["drops"].items()
        if None not in (drop["value"], drop["low"], drop["high"])
    )
    size = best["size_bytes"] / result["baseline"]["size_bytes"]
    asked = result["budget"]["text"] or "no limits"
    text = f"meets {asked}: {best['title']} — {speeds}, {drops}, {size:.0%} of the size"
    return Text(text, style="bold green")


def _row(entry: Mapping[str, Any], result: Mapping[str, Any], batches: list[int], score: str) -> list[Any]:
    runs = {run["batch"]: run for run in entry["runs"]}
    role = f" ({entry['role']})" if entry["role"] != "candidate" else ""
    title = Text(entry["title"] + role, style="bold green" if entry["id"] == result["best"] else "")
    cells: list[Any] = [entry["id"], title, megabytes(entry["size_bytes"])]
    for batch in batches:
        p50 = runs[batch]["latency_ms"]["p50"] if batch in runs else None
        cells.append(f"{p50['value']:.3g} ms" if p50 else "–")
    for batch in batches:
        speed = runs[batch]["speedup"] if batch in runs else None
        cells.append(f"{speed['value']:.2f}" if speed else "–")
    drop = entry["drops"].get(score)
    note = "" if entry["data"] == "heldout" else "*"
    cells.append(f"{drop['value']:+.2f} {drop['unit']}{note}" if drop and drop["value"] is not None else "–")
    cells.append(Text(entry["verdict"], style=_STYLE.get(entry["verdict"], "dim")))
    return cells


def consoles(json: bool) -> tuple[Console, Console]:
    """Where results and where words go: with ``--json`` stdout holds the document alone."""
    words = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
    if json:
        return words, words
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160), words
