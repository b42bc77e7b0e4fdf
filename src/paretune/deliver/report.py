"""The report: one self-contained HTML file that opens offline, from a validated result."""

from __future__ import annotations

import contextlib
import datetime
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from paretune.deliver import charts, comparison, quantity, training
from paretune.deliver.headline import headline
from paretune.deliver.outcome import Candidate, Judged, Outcome, ranks_on_heldout, run_at
from paretune.deliver.quantity import Figure
from paretune.deliver.readiness import checklist
from paretune.errors import OutputError

WORST = 8
"""Slices that are shown."""


@dataclass(frozen=True)
class Card:
    """One key figure; ``note`` says what it is compared with."""

    label: str
    figure: Figure
    note: str


@dataclass(frozen=True)
class LimitRow:
    """One limit of the budget and what was found; ``room`` is what is left, or what is too much."""

    text: str
    needed: str
    found: Figure
    room: str
    verdict: str
    words: str


@dataclass(frozen=True)
class SliceRow:
    """One part of the held-out data."""

    name: str
    count: int
    lost: int
    won: int
    agreement: Figure
    drop: Figure
    verdict: str


@dataclass(frozen=True)
class SliceTable:
    """The worst parts for one score; ``more`` are not shown."""

    score: str
    verdict: str
    rows: list[SliceRow]
    more: int


def render(result: Mapping[str, Any]) -> str:
    """The whole page. The same result gives the same text.

    ``result`` must validate (:func:`paretune.deliver.result.validate`). Every text in it is escaped: names come from
    users. The page loads nothing: style, script and the plotting library stand inside it, and its content security
    policy forbids the rest.
    """
    outcome = Outcome(result)
    data = charts.chart_data(outcome)
    checks = checklist(outcome)
    return template("report.html.j2").render(
        result=result,
        of_heldout=ranks_on_heldout(result),
        outcome=outcome,
        headline=headline(outcome),
        cards=_cards(outcome),
        limits=_limit_rows(outcome),
        table=comparison.table(outcome),
        variants=comparison.variants(outcome),
        groups=comparison.losers(outcome),
        checks=checks,
        ticked=sum(check.ticked for check in checks),
        charts=data,
        undrawn=charts.undrawn(outcome),
        spent=_spent(outcome),
        lanes=_lanes(outcome),
        machine=_machine(outcome),
        started=_moment(result["started"]),
        pack_id=_pack_id(outcome),
        slices=_slices(outcome),
        tables=[{**one.entry, "candidate": one.candidate} for one in training.told(outcome, "table")],
        notes=training.notes(outcome),
        script=asset("report.js"),
        style=asset("report.css"),
        plotly=Markup(get_plotlyjs()),
    )


def _slices(outcome: Outcome) -> list[SliceTable]:
    """For each score, the worst slices of the best candidate."""
    entry = outcome.best.get("slices", {}) if outcome.best else {}
    found = []
    for score, report in entry.items():
        unit = outcome.best["drops"][score]["unit"] if outcome.best else "pp"
        rows = [
            SliceRow(
                name=one["name"],
                count=one["count"],
                lost=one["lost"],
                won=one["won"],
                agreement=quantity.measured(one["agreement"], quantity.share, "answers were not compared"),
                drop=quantity.measured(one["drop"], quantity.in_unit(unit)),
                verdict=one["verdict"],
            )
            for one in report["slices"]
        ]
        found.append(SliceTable(score, report["verdict"], rows[:WORST], max(0, len(rows) - WORST)))
    return found


def write(result: Mapping[str, Any], path: Path) -> None:
    """Render into ``path``, which holds the whole old page or the whole new one at any moment.

    Raises
    ------
    OutputError
        If the directory cannot be written, or the disk is full.
    """
    page = render(result)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".report-", delete=False
        ) as file:
            temporary = file.name
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            do="free space, or choose another directory",
        ) from error


def template(name: str) -> jinja2.Template:
    """A page's template; it escapes what it is given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paretune.deliver", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = quantity.seconds
    environment.filters["whole"] = quantity.whole
    environment.filters["knob"] = comparison.knob_value
    environment.filters["cell"] = quantity.cell
    return environment.get_template(name)


def asset(name: str) -> Markup:
    """A file of the page's folder, as it is."""
    return Markup(resources.files("paretune.deliver").joinpath("page", name).read_text(encoding="utf-8"))


def _cards(outcome: Outcome) -> list[Card]:
    shown = outcome.shown
    if shown is None:
        return []
    return [
        card for card in (*_speed_cards(outcome, shown), *_model_cards(outcome, shown)) if card.figure.sort is not None
    ]


def _speed_cards(outcome: Outcome, shown: Candidate) -> list[Card]:
    cards = []
    for batch in dict.fromkeys((outcome.batches[0], outcome.batches[-1])):
        run, original = run_at(shown, batch), run_at(outcome.baseline, batch)
        if run is None:
            continue
        speedup = quantity.measured(run["speedup"], quantity.times)
        reference = quantity.measured(run["speedup_over_reference"], quantity.times)
        note = f"{reference.text} over the reference" if reference.sort is not None else "over the original"
        cards.append(Card(f"Speed-up at batch {batch}", speedup, note))
        name = "p95" if run["latency_ms"]["p95"] else "p50"
        before = quantity.measured(original["latency_ms"][name] if original else None, quantity.milliseconds)
        latency = quantity.measured(run["latency_ms"][name], quantity.milliseconds)
        note = f"original {before.text}" if before.sort is not None else ""
        cards.append(Card(f"{name} latency at batch {batch}", latency, note))
    return cards


def _model_cards(outcome: Outcome, shown: Candidate) -> list[Card]:
    cards = []
    basis = "ranking slice, not confirmed"
    if shown["data"] == "heldout":
        basis = "confirmed on held-out data" if shown["verdict"] == "meets" else "on held-out data, not confirmed"
    for name, drop in shown["drops"].items():
        figure = quantity.measured(drop, quantity.in_unit(drop["unit"] if drop else "pp"))
        cards.append(Card(f"Drop of {name}", figure, basis))
    agreement = quantity.measured(shown["agreement"], quantity.share)
    cards.append(Card("Agreement with the original", agreement, "share of the same answers"))
    size, original = shown["size_bytes"], outcome.baseline["size_bytes"]
    relative = f"{100 * size / original:.0f}{quantity.SPACE}% of " if size and original else ""
    before = f"{relative}{quantity.byte_size(original)}" if original else ""
    cards.append(Card("Size on disk", quantity.single(size, quantity.byte_size), before))
    run, start = run_at(shown, outcome.main_batch), run_at(outcome.baseline, outcome.main_batch)
    peak = quantity.single(run["peak_memory_bytes"] if run else None, quantity.byte_size)
    before = quantity.single(start["peak_memory_bytes"] if start else None, quantity.byte_size).text
    cards.append(Card(f"Peak memory at batch {outcome.main_batch}", peak, f"original {before}"))
    return cards


def _limit_rows(outcome: Outcome) -> list[LimitRow]:
    shown = outcome.shown
    if shown is None:
        return [
            LimitRow(one["text"], _needed(one), Figure(why="nothing was measured"), quantity.DASH, "not tested", "")
            for one in outcome.limits
        ]
    return [_limit_row(one) for one in outcome.judged(shown)]


def _limit_row(judged: Judged) -> LimitRow:
    finding, write = judged.finding, quantity.in_unit(judged.unit)
    room = quantity.DASH
    if judged.gap is not None:
        room = f"{write(abs(judged.gap))} {'too much' if judged.gap > 0 else 'left'}"
        if judged.limit is not None and judged.limit["op"] == ">=":
            room = f"{write(abs(judged.gap))} {'short' if judged.gap > 0 else 'above'}"
    needed = _needed(judged.limit) if judged.limit is not None else ""
    found = quantity.measured(finding, write, finding["text"])
    if finding["low"] == finding["high"]:
        found = Figure(found.text, "", found.sort, found.why)
    return LimitRow(finding["limit"], needed, found, room, finding["verdict"], finding["text"])


def _needed(limit: Mapping[str, Any]) -> str:
    bound = "at most" if limit["op"] == "<=" else "at least"
    return f"{bound} {quantity.in_unit(limit['unit'])(limit['value'])}"


def _spent(outcome: Outcome) -> list[tuple[str, float, float]]:
    """Name, seconds and share of building, measuring and overhead; the shares add up to 1."""
    spent = outcome.result["seconds"]
    parts = [(name, spent.get(name)) for name in ("building", "measuring", "overhead")]
    known = [(name, float(value)) for name, value in parts if value is not None and value > 0]
    whole = sum(value for _, value in known)
    return [(name, value, value / whole) for name, value in known]


def _lanes(outcome: Outcome) -> list[tuple[str, list[tuple[float, Mapping[str, Any]]]]]:
    """The timeline by kind, in the order of first appearance; every moment with its place between 0 and 1."""
    moments = outcome.result.get("timeline") or []
    last = max([outcome.result["seconds"]["total"] or 0.0, *(moment["at_s"] for moment in moments)], default=0.0)
    lanes: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for moment in moments:
        lanes.setdefault(moment["kind"], []).append((moment["at_s"] / last if last else 0.0, moment))
    return list(lanes.items())


def _pack_id(outcome: Outcome) -> str:
    """An id worth packing by hand: the nearest when nothing meets, else another member of the front."""
    if outcome.best is None and outcome.shown is not None:
        return str(outcome.shown["id"])
    return next((str(name) for name in outcome.result["front"] if name != outcome.result["best"]), "ID")


def _machine(outcome: Outcome) -> list[tuple[str, str]]:
    about = machine(outcome.result["machine"])
    about.insert(7, ("paretune", outcome.result["paretune"]))
    return [*about, ("Workload's digest", outcome.result["workload"]["digest"])]


def machine(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A machine's fingerprint as names and words."""
    cores, threads, memory = facts.get("cores"), facts.get("threads"), facts.get("memory_bytes")
    told = [
        ("Processor", facts.get("cpu")),
        ("Cores", str(cores) if cores is not None else None),
        ("Threads used", str(threads) if threads is not None else None),
        ("Memory", quantity.byte_size(memory) if memory is not None else None),
        ("System", facts.get("os")),
        ("Clock governor", facts.get("governor")),
        ("Control group", _control_group(facts.get("cgroup"))),
        ("Python", facts.get("python")),
        *sorted((facts.get("libraries") or {}).items()),
        ("Instruction sets", ", ".join(facts.get("features") or ()) or None),
        ("Machine's fingerprint", facts.get("digest")),
    ]
    return [(name, value or "not known") for name, value in told]


def _control_group(limits: Mapping[str, Any] | None) -> str | None:
    """What a container may use."""
    if limits is None:
        return None
    cpus, memory = limits.get("cpus"), limits.get("memory_bytes")
    parts = [f"{quantity.number(cpus)} CPUs"] if cpus else []
    parts += [f"{quantity.byte_size(memory)} of memory"] if memory else []
    return ", ".join(parts) or "no limit"


def _moment(text: str) -> str:
    """``2026-03-14 09:26 UTC``; what does not parse is shown as it is."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()
