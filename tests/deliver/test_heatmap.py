"""The page of scenarios: self-contained, escaped, complete, and the worst family first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from paretune.check.excess import Excess
from paretune.check.statistics import Estimate
from paretune.deliver import heatmap
from paretune.deliver.scenarios import Finding, Scenarios


def excess(value: float, verdict: Any) -> Excess:
    return Excess(Estimate(value, value - 1, value + 1), "pp", verdict, 120 if verdict == "undecided" else None)


def example() -> dict[str, Any]:
    scored = [
        Finding(f"fog@{severity}", "weather", "accuracy", verdict, "words <b>about</b> it", "a veil", severity,
                excess(value, verdict), 0.9, 0.9 - value / 100, 0.95)
        for severity, value, verdict in ((1, 0.1, "holds"), (2, 6.0, "breaks"))
    ]  # fmt: skip
    findings = (
        Finding("rotation@1", "geometry", "accuracy", "undecided", "rotated", "turned", 1, excess(0.9, "undecided"),
                0.8, 0.79, 0.9),
        *scored,
        Finding("mine", "<script>", "accuracy", "undecided", "cannot be run", error="it failed"),
        Finding("one_more", "batch", "behaviour", "holds", "answers the same", figures={"original": {}}),
        Finding("cold_start", "load", "load", "holds", "opens in 1 s", figures={"original": None}),
    )  # fmt: skip
    families = {"weather": excess(3.0, "breaks"), "geometry": excess(0.9, "undecided")}
    return Scenarios(
        "INT8 <i>on</i> x", "onnxruntime", "nets", "accuracy", 500, 1.0, 0.95, 0, (0.9, 0.89),
        Estimate(1.0, 0.5, 1.5), "pp", families, findings, {"cpu": "A CPU", "threads": 2}, ("look <here>",), 12.3,
    ).describe()  # fmt: skip


def test_families_come_with_the_worst_first_and_their_counts() -> None:
    found = example()
    assert [one["family"] for one in found["families"]][:2] == ["weather", "geometry"]
    weather = found["families"][0]
    assert (weather["scenarios"], weather["breaks"], weather["holds"], weather["worst"]) == (2, 1, 1, "fog@2")
    assert found["findings"][0]["stem"] == "rotation"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_map_has_a_row_for_each_corruption_and_a_column_for_each_severity() -> None:
    data = heatmap.map_data(example())
    assert [(row["family"], row["name"]) for row in data["rows"]] == [
        ("weather", "fog"), ("geometry", "rotation"), ("<script>", "mine"),
    ]  # fmt: skip
    assert data["columns"] == ["once", "severity 1", "severity 2"]
    by_key = {measure["key"]: measure["values"] for measure in data["measures"]}
    assert by_key["excess"] == [[None, 0.1, 6.0], [None, 0.9, None], [None, None, None]]
    assert by_key["original"][0] == [None, 0.9, 0.9]
    assert data["marks"] == [["", "✓", "✗"], ["", "?", ""], ["?", "", ""]]


def test_the_page_is_whole_loads_nothing_and_escapes_what_users_name(tmp_path: Path) -> None:
    heatmap.write(example(), tmp_path / "scenarios.html")
    page = (tmp_path / "scenarios.html").read_text(encoding="utf-8")
    assert "1 of 6 scenarios break: fog@2" in page
    assert "<i>on</i>" not in page
    assert "<b>about</b>" not in page
    assert "look &lt;here&gt;" in page
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", body)
    assert "default-src 'none'" in page
    for text in ("one_more", "cold_start", "Could not be run", "cannot be run", "A CPU", "+6.00"):
        assert text in page, text
    assert heatmap.render(example()) == page


def test_without_accuracy_scenarios_there_is_no_map() -> None:
    found = example()
    rest = [one for one in found["findings"] if one["kind"] != "accuracy"]
    quiet = {**found, "findings": rest, "families": [one for one in found["families"] if one["kind"] != "accuracy"]}
    page = heatmap.render(quiet)
    assert 'id="map"' not in page
    assert "Nothing breaks in 2 scenarios" in page
