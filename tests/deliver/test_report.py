"""The report says what the result holds, escapes what users wrote, and loads nothing."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from paretune.deliver import quantity, report, result
from paretune.errors import ArtifactError, OutputError

EXAMPLE = Path(__file__).with_name("result_example.json")
HOSTILE = "<script>alert('1')</script>\"&amp;{{ 7 * 7 }}</title>"
# elements that HTML closes by itself or never closes
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Texts by section, the tags' balance, and everything that would make a browser load something."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.unbalanced: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def ids(self) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get("id"))]


@pytest.fixture
def example() -> dict[str, Any]:
    return dict(json.loads(EXAMPLE.read_text(encoding="utf-8")))


def none_meets(example: dict[str, Any]) -> dict[str, Any]:
    """The same run under a latency limit that nothing reaches."""
    found = copy.deepcopy(example)
    limit = found["budget"]["limits"][1]
    limit.update(value=1.0, text="p95@1<=1ms")
    found["budget"]["text"] = "drop<=1pp, p95@1<=1ms, size<=5MB"
    for one in [found["baseline"], *found["candidates"]]:
        for finding in one["findings"]:
            if finding["limit"] == "p95@1<=5ms":
                finding.update(limit="p95@1<=1ms", verdict="breaks")
                one["verdict"] = "breaks"
        one["confirmed"] = False
    found.update(nearest=found["best"], best=None, best_by_batch={"1": None, "32": None}, bundle=None, stopped="time")
    found["why_none"] = "No candidate is fast enough at batch 1."
    return found


def regression(example: dict[str, Any]) -> dict[str, Any]:
    """One batch size, an unbounded score with a drop in per cent, no reference, no time limit, little known."""
    found = copy.deepcopy(example)
    best = next(one for one in found["candidates"] if one["id"] == found["best"])
    found["candidates"] = [best]
    for one in (found["baseline"], best):
        one["runs"] = one["runs"][:1]
        one["scores"] = {"mse": {"value": -0.01234, "low": -0.013, "high": -0.0118}}
        one["drops"], one["agreement"] = {"mse": {"value": 0.42, "low": 0.1, "high": 0.77, "unit": "%"}}, None
        one.update(macs=None, findings=[], precision=None, form=None)
        one["runs"][0].update(speedup_over_reference=None, histogram=None)
    best["findings"] = [
        {
            "limit": "drop<=2%",
            "verdict": "meets",
            "value": 0.42,
            "low": 0.1,
            "high": 0.77,
            "text": "mse drops by 0.42 %",
        },
        {
            "limit": "throughput@1",
            "verdict": "meets",
            "value": 617.0,
            "low": 601.0,
            "high": 625.0,
            "text": "617 a second",
        },
    ]
    best["runs"][0]["latency_ms"]["p99"] = None
    best["runs"][0]["samples"] = 400
    found["baseline"]["drops"] = {}
    found["budget"] = {
        "text": "drop<=2%, throughput>=300/s",
        "confidence": 0.9,
        "limits": [
            {"name": "drop", "op": "<=", "value": 2.0, "unit": "%", "batch": None, "text": "drop<=2%"},
            {
                "name": "throughput",
                "op": ">=",
                "value": 300.0,
                "unit": "/s",
                "batch": None,
                "text": "throughput>=300/s",
            },
        ],
    }
    found.update(title="wine quality", batches=[1], reference=None, front=[best["id"]], best_by_batch={"1": best["id"]})
    found.update(timeline=[], warnings=[], time_limit_s=None, bundle=None, stopped=None)
    found["workload"] = {"name": "wine", "digest": None, "heldout_size": 1200}
    found["machine"] = {}
    found["seconds"] = {"total": None, "building": None, "measuring": None}
    return found


def page_of(value: dict[str, Any]) -> Page:
    result.validate(value)
    return Page(report.render(value))


def test_headline_and_key_figures(example: dict[str, Any]) -> None:
    text = page_of(example).text
    assert "ResNet-56 runs 7.31× faster at batch 1 and 5.15× faster at batch 32, losing 0.12 pp of accuracy" in text
    assert "confirmed on 10,000 held-out examples" in text
    assert "It meets the budget drop<=1pp, p95@1<=5ms, size<=5MB." in text
    assert "For batch 1 alone, torch_to_onnx → onnx_fold → onnx_int8_static → onnxruntime is the best choice" in text
    assert "0.88 pp left" in text
    assert "31 % of 3.47 MB" in text


def test_every_candidate_and_its_reason_is_there(example: dict[str, Any]) -> None:
    page = page_of(example)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for one in example["candidates"]:
        assert f"c-{one['id']}" in ids
        reason = one["error"] if one["status"] == "failed" else one["why"]
        assert reason is None or reason in page.text
    # two skipped for the same reason are said once
    assert page.text.count("needs training, and the time limit of 10 min leaves none torch_prune_channels") == 1


def test_the_page_is_well_formed_and_loads_nothing(example: dict[str, Any]) -> None:
    for value in (example, none_meets(example), regression(example)):
        page = page_of(value)
        assert page.unbalanced == []
        assert page.open == []
        for tag, attributes in page.tags:
            assert tag not in {"iframe", "img", "object", "embed", "base", "form"}
            assert "src" not in attributes
            assert (attributes.get("href") or "#").startswith(("#", "data:,"))
        policy = next(one["content"] for _, one in page.tags if one.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        assert "@import" not in report.asset("report.css")
        assert "url(" not in report.asset("report.css")
        # the library offers to send figures to its makers unless told otherwise
        assert "showSendToCloud: false" in report.asset("report.js")


def test_what_users_wrote_is_escaped(example: dict[str, Any]) -> None:
    calm = len(page_of(example).scripts)
    example["title"] = example["warnings"][0] = HOSTILE
    example["workload"]["scores"] = [HOSTILE]
    example["machine"]["cpu"] = example["budget"]["limits"][0]["text"] = HOSTILE
    example["timeline"][1]["text"] = HOSTILE
    for one in example["candidates"]:
        one.update(title=HOSTILE, why=HOSTILE, target=HOSTILE, precision=HOSTILE)
        one["settings"] = {HOSTILE: HOSTILE}
        one["recipe"] = [{"technique": HOSTILE, "knobs": {HOSTILE: [HOSTILE, True, None]}}]
        one["drops"] = dict.fromkeys([HOSTILE], one["drops"].get("accuracy"))
        one["scores"] = dict.fromkeys([HOSTILE], one["scores"].get("accuracy"))
        one["findings"] = [{**finding, "text": HOSTILE, "limit": HOSTILE} for finding in one["findings"]]
    html = report.render(example)
    page = Page(html)
    assert "<script>alert" not in html
    assert len(page.scripts) == calm
    assert page.unbalanced == []
    assert f"Drop of {HOSTILE}" in page.text
    assert HOSTILE in json.loads(page.scripts[0])["points"][3]["hover"]["1"][0]


def test_the_plots_hold_the_numbers_of_the_result(example: dict[str, Any]) -> None:
    data = json.loads(page_of(example).scripts[0])
    best = next(one for one in data["points"] if one["best"])
    source = next(one for one in example["candidates"] if one["id"] == example["best"])
    assert best["x"]["32"]["p95"] == source["runs"][1]["latency_ms"]["p95"]
    assert best["y"]["drop.accuracy"]["value"] == 0.12
    assert best["y"]["agreement"]["value"] == pytest.approx(98.61)
    assert best["heldout"] is True
    ranked = [one for one in data["points"] if not one["heldout"]]
    assert ranked
    assert any("ranks, does not confirm" in line for one in ranked for line in one["hover"]["1"])
    assert {"axis": "x", "key": "p95", "batch": 1, "value": 5.0, "text": "p95@1<=5ms"} in data["limits"]
    assert [one["batch"] for one in data["histograms"]] == [1, 32]
    built = [one for one in example["candidates"] if one["runs"]]
    assert len(data["points"]) == len(built) + 1


def test_nothing_meets(example: dict[str, Any]) -> None:
    page = page_of(none_meets(example))
    assert "Nothing tried meets the budget for ResNet-56" in page.text
    assert "The nearest candidate is torch_to_onnx → onnx_fold → onnx_to_openvino → openvino_int8_nncf" in page.text
    assert "p95@1<=1ms binds: it reaches 1.78 ms (1.74 … 1.83 ms), 0.782 ms (78 %) past the limit." in page.text
    assert "The time limit of 10 min ended the search" in page.text
    assert "0.782 ms too much" in page.text
    assert "Key figures of the nearest candidate" in page.text
    assert "2 of 3 met; p95@1<=1ms breaks" in page.text
    nearest = none_meets(example)["nearest"]
    assert f"paretune pack RUN --id {nearest} --out DIR" in page.text
    assert "paretune measure RUN/bundle" not in page.text


def test_nothing_was_built(example: dict[str, Any]) -> None:
    value = none_meets(example)
    value["candidates"] = [one for one in value["candidates"] if one["status"] != "built"]
    value.update(nearest=None, reference=None, front=[], why_none="Nothing could be built.")
    value["baseline"]["runs"] = []
    page = page_of(value)
    assert "Nothing could be built." in page.text
    assert "No candidate was measured, so there is nothing to draw." in page.text
    assert "calibration needs 9.4 GB of memory" in page.text


def test_regression_at_one_batch_size(example: dict[str, Any]) -> None:
    page = page_of(regression(example))
    assert "wine quality runs 7.31× faster at batch 1, losing 0.42 % of mse" in page.text
    assert "(0.10 … 0.77 %), confirmed on 1,200 held-out examples" in page.text
    assert "Intervals are at 90 % confidence." in page.text
    assert "at least 300/s" in page.text
    assert "317/s above" in page.text
    assert "−0.0123" in page.text
    assert "batch 1: no p99 from 400 samples" in page.text
    assert "batch 1, the only one asked" in page.text
    assert not any(attributes.get("name") == "batch" for _, attributes in page.tags)


def test_a_dash_says_why(example: dict[str, Any]) -> None:
    titles = [attributes.get("title") or "" for _, attributes in page_of(example).tags]
    assert "420 samples are too few for it" in titles
    assert "not measured at batch 32" in titles
    assert "failed: BuildError: calibration needs 9.4 GB of memory — ask for fewer calibration examples" in titles
    assert "not tried: no C++ compiler on this machine — apt-get install g++" in titles
    assert "its answers were not scored" in titles


def test_an_unticked_item_says_what_is_missing(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    best.update(confirmed=False, data="ranking", agreement=None)
    best["runs"][0].update(settled=False, peak_memory_bytes=None)
    best["runs"].pop(1)
    example["bundle"] = None
    text = page_of(example).text
    assert "0 of 10 ticked" not in text
    assert "1 of 10 ticked" in text
    assert "measured on the ranking slice only" in text
    assert "batch 32 has no measurement" in text
    assert "batch 1: unknown; batch 32: unknown" in text
    assert "no digests are recorded" in text


def test_what_disturbed_the_timing_and_a_leak_are_told(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    text = page_of(example).text
    assert "what else went on was not recorded" in text
    assert "not watched: paretune measure --soak does" in text
    quiet = {"seconds": 2.0, "text": "load 0.5 → 0.6, steal 0.0 %", "warnings": []}
    for run in best["runs"]:
        run["disturbance"] = quiet
    best["memory_growth"] = {
        "verdict": "leaking", "inferences": 10_000, "seconds": 2.0, "text": "memory leaks: it grows by 1 kB",
        "bytes_per_thousand": {"value": 1000.0, "low": 900.0, "high": 1100.0},
    }  # fmt: skip
    text = page_of(example).text
    assert "batch 1: load 0.5 → 0.6, steal 0.0 %; batch 32: load 0.5" in text
    assert "memory leaks: it grows by 1 kB" in text
    best["runs"][1]["disturbance"] = {**quiet, "warnings": ["steal 12 % while timing"]}
    assert "batch 32: steal 12 % while timing" in page_of(example).text


def test_energy_and_cost_are_shown_with_where_they_come_from(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    assert "cost of right ones" not in page_of(example).text
    example["budget"]["rates"] = {"watts_per_core": 5.0, "per_hour": 0.34, "per_kwh": 0.25, "currency": "EUR"}
    ends = {"value": 0.004, "low": 0.0039, "high": 0.0042}
    best["runs"][0]["energy_j"] = {**ends, "kind": "estimated", "how": "from CPU time", "per_example": 0.004}
    best["runs"][0]["cost"] = {
        "per_thousand": {"value": 0.0021, "low": 0.002, "high": 0.0022}, "per_thousand_correct": None,
        "currency": "EUR", "kind": "estimated",
    }  # fmt: skip
    page = page_of(example)
    assert "4.00 mJ" in page.text
    assert "3.90 … 4.20 mJ, estimated" in page.text
    assert "0.00210 EUR" in page.text
    assert "0.00200 … 0.00220 EUR, estimated" in page.text
    best["runs"][0]["cost"]["per_thousand"]["kind"] = "guessed"
    with pytest.raises(ArtifactError, match="cost"):
        result.validate(example)


def test_the_original_may_be_the_best(example: dict[str, Any]) -> None:
    example["best"] = example["baseline"]["id"]
    assert "Keep ResNet-56 as it is" in page_of(example).text


def test_a_speed_up_that_is_not_shown_is_not_claimed(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    best["runs"][0]["speedup"] = {"value": 1.02, "low": 0.97, "high": 1.06}
    best["runs"][1]["speedup"] = {"value": 0.5, "low": 0.48, "high": 0.52}
    best["drops"]["accuracy"].update(value=-0.3, low=-0.6, high=0.1)
    assert "2.00× slower at batch 32, with no change of accuracy shown" in page_of(example).text
    best["drops"]["accuracy"].update(value=-0.3, low=-0.6, high=-0.1)
    text = page_of(example).text
    assert "no faster or slower at batch 1, as far as shown" in text
    assert "2.00× slower at batch 32, gaining 0.30 pp of accuracy" in text


@pytest.mark.parametrize(
    ("facts", "learnt"),
    [({}, False), ({"ranking_of": "train"}, False), ({"ranking_of": "heldout"}, True), ({"fit_size": 2000}, True)],
)
def test_whether_what_was_trained_learnt_from_the_ranking_data(
    example: dict[str, Any], facts: dict[str, Any], learnt: bool
) -> None:
    example["workload"] |= facts
    assert ("what was trained learnt from them too" in report.render(example)) == learnt


def test_render_is_repeatable_and_changes_nothing(example: dict[str, Any]) -> None:
    before = copy.deepcopy(example)
    assert report.render(example) == report.render(example)
    assert example == before


def test_write_replaces_the_file_in_one_step(example: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    report.write(example, path)
    first = path.read_text(encoding="utf-8")
    report.write({**example, "title": "another"}, path)
    assert path.read_text(encoding="utf-8") != first
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_an_output_error(example: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"report\.html"):
        report.write(example, tmp_path / "file" / "report.html")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inner").write_text("")
    with pytest.raises(OutputError, match="taken"):
        report.write(example, tmp_path / "taken")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (quantity.milliseconds(0.04217), "0.0422\u00a0ms"),
        (quantity.milliseconds(12345.6), "12,346\u00a0ms"),
        (quantity.times(3.14159), "3.14×"),
        (quantity.times(12.34), "12.3×"),
        (quantity.byte_size(999_900), "1.00\u00a0MB"),
        (quantity.byte_size(12), "12\u00a0B"),
        (quantity.count(855_770), "856\u00a0k"),
        (quantity.count(12), "12"),
        (quantity.points(-0.001), "0.00\u00a0pp"),
        (quantity.points(-0.1), "−0.10\u00a0pp"),
        (quantity.seconds(3900), "1\u00a0h 5\u00a0min"),
        (quantity.seconds(59.7), "1\u00a0min"),
        (quantity.number(0), "0"),
        (quantity.span({"low": -0.1, "high": 0.35}, quantity.points), "−0.10 … 0.35\u00a0pp"),
        (quantity.span({"low": 900e3, "high": 1.2e6}, quantity.byte_size), "900\u00a0kB … 1.20\u00a0MB"),
        (quantity.measured({"value": 2.0, "low": None, "high": None}, quantity.times).both, "2.00×"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_training_is_shown_by_its_curves_and_tables(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    best["history"] = [
        {
            "kind": "curve", "technique": "torch_distill", "title": HOSTILE, "losses": [2.5, 1.25, None],
            "scores": [0.5, None, 0.75], "rates": [0.1, 0.05, 0.0], "kept": 3,
        },
        {
            "kind": "table", "technique": "torch_prune_channels", "title": "widths",
            "columns": ["layer", "before", "after"], "rows": [["layer1.0.conv1", 16, 11], [HOSTILE, None, 0.25]],
        },
    ]  # fmt: skip
    result.validate(example)
    html = report.render(example)
    page = Page(html)
    assert not page.unbalanced
    assert "How it was trained" in page.text
    assert "layer1.0.conv1 16 11" in page.text
    assert not [script for script in page.scripts if script.startswith("alert")]
    assert "curve-0" in page.ids()
    drawn = json.loads(next(text for text in page.scripts if text.startswith('{"axes"')))
    assert drawn["curves"][0]["losses"] == [2.5, 1.25, None]


def test_what_other_candidates_learnt_and_what_steps_say_is_shown_too(example: dict[str, Any]) -> None:
    best = next(one for one in example["candidates"] if one["id"] == example["best"])
    other = next(one for one in example["candidates"] if one is not best and one["status"] == "built")
    curve = {"kind": "curve", "title": "", "losses": [2.0, 1.0], "scores": [None, None], "rates": [0.1, 0.0], "kept": 2}
    best["notes"] = [f"torch_qat: weights left in float: {HOSTILE}"]
    best["history"] = [{**curve, "technique": "torch_qat"}]
    other["history"] = [{**curve, "technique": "torch_qat"}, {**curve, "technique": "torch_distill"}]
    result.validate(example)
    page = Page(report.render(example))
    assert f"torch_qat: weights left in float: {HOSTILE}" in page.text
    drawn = json.loads(next(text for text in page.scripts if text.startswith('{"axes"')))["curves"]
    assert [(one["technique"], one["candidate"]) for one in drawn] == [
        ("torch_qat", ""), ("torch_distill", other["title"]),
    ]  # fmt: skip


def test_a_candidate_that_was_not_trained_has_no_such_section(example: dict[str, Any]) -> None:
    assert "How it was trained" not in Page(report.render(example)).text
