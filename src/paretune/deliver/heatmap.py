"""The page of a run of scenarios: a heat map of corruptions and severities, and every finding in words; one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from paretune.build.store import write_whole
from paretune.deliver import report

Finding = Mapping[str, Any]
MEASURES = (
    ("excess", "excess drop"),
    ("candidate", "candidate's score"),
    ("original", "original's score"),
    ("agreement", "agreement with the original"),
)
MARKS = {"breaks": "✗", "undecided": "?", "holds": "✓"}


def render(found: Mapping[str, Any]) -> str:
    """The whole page from :meth:`paretune.deliver.scenarios.Scenarios.describe`. It loads nothing, and every text in it
    is escaped."""
    findings = found["findings"]
    return report.template("scenarios.html.j2").render(
        found=found,
        headline=headline(found),
        map=map_data(found),
        odd=[one for one in findings if one["kind"] == "behaviour"],
        loads=[one for one in findings if one["kind"] == "load"],
        errors=[one for one in findings if one["error"]],
        marks=MARKS,
        machine=report.machine(found["machine"]),
        script=report.asset("scenarios.js"),
        style=report.asset("report.css"),
        plotly=Markup(get_plotlyjs()),
    )


def write(found: Mapping[str, Any], path: Path) -> None:
    """Render into ``path``, whole or not at all; raises :class:`OutputError` where it cannot be written."""
    write_whole(path, render(found))


def headline(found: Mapping[str, Any]) -> str:
    """What came of it, in a sentence."""
    findings = found["findings"]
    counts = {verdict: sum(one["verdict"] == verdict for one in findings) for verdict in MARKS}
    broken = [one["scenario"] for one in findings if one["verdict"] == "breaks"]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        return f"{counts['breaks']} of {len(findings)} scenarios break: {', '.join(broken[:3])}{more}"
    return f"Nothing breaks in {len(findings)} scenarios; {counts['undecided']} need more examples to be decided"


def map_data(found: Mapping[str, Any]) -> dict[str, Any]:
    """``rows`` (a corruption each, families together, the worst family first), ``columns`` (severities) and, for each
    of ``measures``, ``values`` [rows][columns], in pp or % of excess drop and in the score's own unit else."""
    scored = [one for one in found["findings"] if one["kind"] == "accuracy"]
    order = [family["family"] for family in found["families"]]
    stems = dict.fromkeys(
        (one["family"], one["stem"]) for one in sorted(scored, key=lambda one: order.index(one["family"]))
    )
    columns = sorted({one["severity"] or 0 for one in scored})
    cells = {(one["family"], one["stem"], one["severity"] or 0): one for one in scored}
    grid = [[cells.get((*stem, column)) for column in columns] for stem in stems]
    return {
        "rows": [{"family": family, "name": name.replace("_", " ")} for family, name in stems],
        "columns": ["once" if column == 0 else f"severity {column}" for column in columns],
        "measures": [{"key": key, "label": label, "values": _values(grid, key)} for key, label in MEASURES],
        "marks": [["" if one is None else MARKS[one["verdict"]] for one in row] for row in grid],
        "hover": [["" if one is None else f"{one['scenario']}: {one['text']}" for one in row] for row in grid],
        "tolerance": found["tolerance"],
        "unit": next((one["excess"]["unit"] for one in scored if one["excess"]), "pp"),
    }


def _values(grid: Sequence[Sequence[Finding | None]], key: str) -> list[list[float | None]]:
    def value(one: Finding | None) -> float | None:
        if one is None:
            return None
        found: float | None = (one["excess"] or {}).get("value") if key == "excess" else one[key]
        return found

    return [[value(one) for one in row] for row in grid]
