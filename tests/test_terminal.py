"""What a person sees, rendered at a fixed width and read back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paretune import tables, terminal
from paretune.ask.event import Event

RESULT = json.loads((Path(__file__).parent / "deliver" / "result_example.json").read_text())


def shown(what: Any, width: int = 200) -> str:
    page = io.StringIO()
    Console(file=page, width=width, highlight=False).print(what)
    return page.getvalue()


def test_the_table_leads_with_the_original_and_marks_the_best() -> None:
    rows = terminal.leading(RESULT)
    assert rows[0]["id"] == RESULT["baseline"]["id"]
    assert rows[1]["id"] == RESULT["reference"]
    assert rows[2]["id"] == RESULT["best"]
    text = shown(terminal.table(RESULT))
    assert f"meets {RESULT['budget']['text']}" in text
    for batch in RESULT["batches"]:
        assert f"p50@{batch}" in text


def test_a_load_shows_its_percentiles_their_bounds_and_what_was_found() -> None:
    names = ("p50", "p90", "p99")
    two = {"value": 2.0, "low": 1.5, "high": 2.5}
    found = {
        "title": "net", "target": "onnxruntime", "shape": "server", "samples_per_query": 1, "queries": 1200,
        "seconds": 4.0, "rate_per_s": 300.0, "rate_from": "as asked", "busy": 0.412, "findings": ["overloaded: much"],
        "latency_ms": {"p50": two, "p90": two, "p99": None},
        "early_stopping_ms": {"p50": 2.25, "p90": 3.5, "p99": None}, "needed": dict.fromkeys(names, 662),
        "throughput_per_s": {"value": 299.0, "low": 280.0, "high": None}, "lateness_us": {"p50": 12.0, "p99": 90.0},
    }  # fmt: skip
    text = shown(tables.loaded(found))
    for part in (
        "1,200 queries of 1 sample in 4.0 s, 300.0/s (as asked)", "2 ms (1.5 … 2.5)", "≤ 2.25 ms", "– (needs 662)",
        "299 samples/s (280 … ∞); busy 41% of the time", "12 µs late", "! overloaded: much",
    ):  # fmt: skip
        assert part in text
    bare = {**found, "latency_ms": dict.fromkeys(names), "throughput_per_s": None, "lateness_us": None, "findings": []}
    assert "early stopping" not in shown(tables.loaded(bare))


def test_ends_that_are_not_known_are_dashes() -> None:
    run = {"batch": 1, "latency_ms": {"p50": {"value": 1.5, "low": 0.0, "high": None}}}
    side = {"title": "one", "target": "openvino", "size_bytes": 1_000_000, "runs": [run]}
    ratio = {"value": 1.2, "low": 1.1, "high": None}
    found = {
        "a": side, "b": side, "batches": {"1": {"outcome": "faster", "ratio": ratio}}, "outcome": "faster",
        "ratio": ratio, "sessions": 3, "drops": {"mse": {"value": None, "low": None, "high": None, "unit": "%"}},
    }  # fmt: skip
    text = shown(tables.compared(found))
    assert "A is faster: 1.200× (1.100 … –), 3 sessions" in text
    assert "mse of A lies – % (–) below that of B" in text
    assert "1.5 ms (–)" in text, "no bound on either side"


@pytest.mark.parametrize(
    ("drop", "told"),
    [
        ((0.33, -0.19, 0.85), "lies +0.33 pp (-0.19 … +0.85) below that of B"),
        ((-0.39, -0.64, 0.15), "lies +0.39 pp (-0.15 … +0.64) above that of B"),
        ((-0.39, None, -0.15), "lies +0.39 pp (+0.15 … –) above that of B"),
    ],
)
def test_a_gain_is_told_as_one(drop: tuple[float, float | None, float], told: str) -> None:
    run = {"batch": 1, "latency_ms": {"p50": {"value": 1.5, "low": 1.4, "high": 1.6}}}
    side = {"title": "one", "target": "openvino", "size_bytes": 1_000_000, "runs": [run]}
    ratio = {"value": 1.2, "low": 1.1, "high": 1.3}
    found = {
        "a": side, "b": side, "batches": {"1": {"outcome": "faster", "ratio": ratio}}, "outcome": "faster",
        "ratio": ratio, "sessions": 3,
        "drops": {"accuracy": {**dict(zip(("value", "low", "high"), drop, strict=True)), "unit": "pp"}},
    }  # fmt: skip
    assert told in shown(tables.compared(found))


def test_scenarios_show_every_family_and_tell_what_broke() -> None:
    def finding(name: str, verdict: str, error: str | None = None) -> dict[str, Any]:
        return {"scenario": name, "verdict": verdict, "text": f"{name} in words", "error": error}

    excess = {"value": 3.0, "low": 2.0, "high": 4.5, "unit": "pp", "verdict": "breaks"}
    counts = {"scenarios": 20, "breaks": 14, "undecided": 1, "holds": 5}
    found = {
        "title": "INT8", "examples": 1500, "score": "accuracy", "tolerance": 1.0,
        "clean": {"original": 0.9, "candidate": 0.89, "drop": {"unit": "pp"}},
        "families": [
            {"family": "weather", **counts, "excess": excess, "worst": "fog@5"},
            {"family": "batch", **counts, "excess": None, "worst": None},
        ],
        "findings": [
            *(finding(f"fog@{number}", "breaks") for number in range(14)), finding("mine", "undecided", "it failed"),
            finding("rain", "holds"),
        ],
    }  # fmt: skip
    text = shown(tables.stressed(found))
    assert "INT8 on 1,500 examples: accuracy 0.9 → 0.89 unchanged; 1 pp of excess is tolerated" in text
    assert "+3.00 pp (+2.00 … +4.50)" in text
    assert text.index("weather") < text.index("batch")
    assert "✗ fog@11: fog@11 in words" in text
    assert "✗ fog@12" not in text, "twelve are told"
    assert "and 2 more" in text
    assert "? mine: mine in words" in text
    assert "rain" not in text


def test_nothing_meets_says_which_limit_binds() -> None:
    none = {**RESULT, "best": None, "why_none": "p95<=5ms binds, 40 % past it"}
    assert "p95<=5ms binds" in shown(terminal.headline(none))


def test_a_user_s_words_are_not_markup() -> None:
    best = next(entry for entry in RESULT["candidates"] if entry["id"] == RESULT["best"])
    renamed = {**best, "title": "[bold]x[/nothing]"}
    result = {**RESULT, "candidates": [renamed if entry is best else entry for entry in RESULT["candidates"]]}
    assert "[bold]x[/nothing]" in shown(terminal.table(result))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_speaks_on_a_terminal_and_in_a_log(is_terminal: bool) -> None:
    page = io.StringIO()
    console = Console(file=page, force_terminal=is_terminal, width=100, highlight=False)
    data = {"id": "a", "title": "quick", "role": "candidate", "status": "built", "stage": "candidate", "pace": 2.5}
    with terminal.Progress(console) as progress:
        progress.on(Event("stage", "measuring", {"left_s": 61.0}))
        progress.on(Event("progress", "trying quick", {"done": 1, "total": 4, "left_s": 59.0}))
        progress.on(Event("candidate", "2.50× as fast", {**data, "verdict": "meets"}))
        progress.on(Event("candidate", "cannot be built", {**data, "status": "failed"}))
        progress.on(Event("warning", "no training data"))
    text = page.getvalue()
    assert "quick: 2.50× as fast" in text
    assert "× quick: cannot be built" in text
    assert "no training data" in text
    assert ("\x1b[" in text) == is_terminal
    if not is_terminal:
        assert "measuring" in text


def test_measured_and_listing() -> None:
    run = {
        "batch": 8, "throughput_per_s": 1234.5, "peak_memory_bytes": 5_000_000, "samples": 300,
        "latency_ms": {"p50": {"value": 1.0, "low": 0.9, "high": 1.1}, "p90": None, "p95": None, "p99": None},
        "energy_j": {"value": 0.0042, "kind": "estimated", "how": "estimated at 5 W a core"},
        "cost": {"per_thousand": {"value": 0.0123}},
        "disturbance": {"text": "steal 12.0 %", "warnings": ["figures are those of a busy machine"]},
    }  # fmt: skip
    found = {
        "rates": {"currency": "EUR"}, "memory_growth": {"verdict": "leaking", "text": "memory leaks"},
        "title": "mine", "target": "openvino", "size_bytes": 2_000_000, "runs": [run],
        "scores": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}},
    }  # fmt: skip
    text = shown(tables.measured(found))
    assert "1 ms (0.9 … 1.1)" in text
    assert "accuracy 0.9000" in text
    assert "about 4.2 mJ" in text
    assert "cost of 1,000 (EUR)" in text
    assert "0.0123" in text
    for said in ("energy: estimated at 5 W a core", "while timing batch 8: steal 12.0 %", "! figures", "memory leaks"):
        assert said in text
    found = {**found, "memory_growth": None, "runs": [{**run, "cost": None, "disturbance": None}]}
    text = shown(tables.measured(found))
    assert "cost" not in text
    assert "while timing" not in text
    knob = {"name": "samples", "default": 256, "help": "examples", "low": 1, "high": 9}
    entry = {
        "name": "t",
        "takes": ["onnx"],
        "gives": None,
        "knobs": [knob],
        "installed": False,
        "needs": "pip install x",
    }
    listed = shown(tables.listing([{**entry, "about": "does things"}]))
    assert "samples=256" in listed
    assert "(1 … 9)" in listed
    assert "pip install x" in listed
