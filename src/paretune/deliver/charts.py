"""What the plots are drawn from: plain JSON values, numbers in the units that the axes show."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from paretune.deliver import quantity, training
from paretune.deliver.comparison import knob_value, label, marks
from paretune.deliver.outcome import Candidate, Outcome, run_at
from paretune.deliver.readiness import PERCENTILES


def chart_data(outcome: Outcome) -> dict[str, Any]:
    """``{batches, axes, points, limits, histograms, curves}`` for the page; see the keys below for the units."""
    shown = outcome.shown
    return {
        "batches": list(outcome.batches),
        "percentiles": [name for name in PERCENTILES if _any_latency(outcome, name)],
        "axes": _axes(outcome),
        "points": [_point(outcome, one) for one in outcome.candidates if one["status"] == "built" and one["runs"]],
        "limits": _limits(outcome),
        "histograms": [] if shown is None else _histograms(outcome, shown),
        "curves": [{**one.entry, "candidate": one.candidate} for one in training.told(outcome, "curve")],
    }


def undrawn(outcome: Outcome) -> int:
    """How many candidates no panel shows on its first axes: without a latency, or without a score."""
    axes = _axes(outcome)
    drawn = [
        one
        for one in outcome.candidates
        if one["runs"] and axes and (_heights(outcome, one).get(axes[0]["key"]) or {}).get("value") is not None
    ]
    return len(outcome.candidates) - len(drawn)


def _axes(outcome: Outcome) -> list[dict[str, Any]]:
    """What the vertical axis can show; ``better`` says which way is good."""
    axes = [
        {"key": f"drop.{name}", "label": f"drop of {name} ({unit})", "unit": unit, "better": "lower"}
        for name in outcome.score_names
        for unit in [outcome.drop_unit(name)]
    ]
    axes.append({"key": "agreement", "label": "agreement with the original (%)", "unit": "%", "better": "higher"})
    axes.append({"key": "size", "label": "size (MB)", "unit": "MB", "better": "lower"})
    heights = [_heights(outcome, one) for one in outcome.candidates if one["runs"]]
    return [axis for axis in axes if any((one.get(axis["key"]) or {}).get("value") is not None for one in heights)]


def _heights(outcome: Outcome, one: Candidate) -> dict[str, dict[str, Any] | None]:
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    found: dict[str, dict[str, Any] | None] = {}
    for name in outcome.score_names:
        drop = one["drops"].get(name)
        found[f"drop.{name}"] = _scaled(drop, 1) or (nothing if one is outcome.baseline else None)
    found["agreement"] = _scaled(one["agreement"], 100)
    size = one["size_bytes"]
    found["size"] = None if size is None else {"value": size / 1e6, "low": None, "high": None}
    return found


def _scaled(interval: Mapping[str, Any] | None, factor: float) -> dict[str, Any] | None:
    if not interval or interval["value"] is None:
        return None
    return {end: None if interval[end] is None else factor * interval[end] for end in ("value", "low", "high")}


def _point(outcome: Outcome, one: Candidate) -> dict[str, Any]:
    drop_known = any(drop and drop["value"] is not None for drop in one["drops"].values())
    return {
        "id": one["id"],
        "title": one["title"],
        "role": one["role"],
        "verdict": label(one),
        "heldout": one["data"] == "heldout" or one is outcome.baseline,
        "best": one["id"] == outcome.result["best"],
        "nearest": outcome.best is None and one["id"] == outcome.result["nearest"],
        "best_at": [int(batch) for batch, name in outcome.result["best_by_batch"].items() if name == one["id"]],
        "front": bool(one["in_front"]),
        "y": _heights(outcome, one),
        "x": {
            str(run["batch"]): {name: _scaled(run["latency_ms"][name], 1) for name in PERCENTILES}
            for run in one["runs"]
        },
        "hover": {str(run["batch"]): _hover(outcome, one, run["batch"], drop_known) for run in one["runs"]},
    }


def _hover(outcome: Outcome, one: Candidate, batch: int, scored: bool) -> list[str]:
    """Lines of plain text, the first one the title; the page escapes them."""
    run = run_at(one, batch) or {}
    lines = textwrap.wrap(one["title"], 64) or [one["id"]]
    said = ", ".join(marks(outcome, one))
    lines.append(f"{one['id']} · {label(one)}{f' · {said}' if said else ''}")
    for name in ("p50", "p95", "p99"):
        figure = quantity.measured(run["latency_ms"][name], quantity.milliseconds)
        lines += [f"{name} at batch {batch}: {figure.both}"] if figure.sort is not None else []
    speedup = quantity.measured(run["speedup"], quantity.times)
    lines += [f"speed-up: {speedup.both}"] if speedup.sort is not None else []
    for name, drop in one["drops"].items():
        figure = quantity.measured(drop, quantity.in_unit(drop["unit"] if drop else "pp"))
        lines += [f"drop of {name}: {figure.both}"] if figure.sort is not None else []
    if scored:
        basis = {"heldout": "tested on the held-out data", "ranking": "on the ranking slice: ranks, does not confirm"}
        lines += [basis[one["data"]]] if one["data"] in basis else []
    for step in one["recipe"]:
        lines += textwrap.wrap(f"{step['technique']}: {_knobs(step['knobs'])}", 64, subsequent_indent="    ")
    lines += textwrap.wrap(f"{one['target']}: {_knobs(one['settings'])}", 64, subsequent_indent="    ")
    return lines


def _knobs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={knob_value(value)}" for name, value in values.items()) or "defaults"


def _limits(outcome: Outcome) -> list[dict[str, Any]]:
    """Limits as lines: ``axis`` is ``x`` for a latency percentile, else the key of the vertical axis."""
    lines = []
    for limit in outcome.limits:
        name, value = limit["name"], limit["value"]
        if name in PERCENTILES:
            lines.append({"axis": "x", "key": name, "batch": limit["batch"], "value": value, "text": limit["text"]})
        elif name == "drop":
            keys = [f"drop.{score}" for score in outcome.score_names if outcome.drop_unit(score) == limit["unit"]]
            lines += [{"axis": "y", "key": key, "batch": None, "value": value, "text": limit["text"]} for key in keys]
        elif name.startswith("drop."):
            lines.append({"axis": "y", "key": name, "batch": None, "value": value, "text": limit["text"]})
        elif name == "size":
            lines.append({"axis": "y", "key": "size", "batch": None, "value": value / 1e6, "text": limit["text"]})
    return lines


def _histograms(outcome: Outcome, shown: Candidate) -> list[dict[str, Any]]:
    found = []
    for batch in outcome.batches:
        histogram = (run_at(shown, batch) or {}).get("histogram")
        if histogram and histogram["baseline"] and histogram["candidate"]:
            found.append({"batch": batch, "title": shown["title"], **histogram})
    return found


def _any_latency(outcome: Outcome, name: str) -> bool:
    return any(run["latency_ms"][name] for one in outcome.candidates for run in one["runs"])
