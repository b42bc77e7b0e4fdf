"""The schema of result.json: what it takes, what it refuses, and that it names the place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from paretune.deliver import result as results
from paretune.errors import ArtifactError

EXAMPLE = Path(__file__).with_name("result_example.json")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def example() -> dict[str, Any]:
    return dict(json.loads(EXAMPLE.read_text(encoding="utf-8")))


def test_the_schema_itself_is_valid() -> None:
    schema = json.loads((Path(results.__file__).parent / "result.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)


def test_read_gives_what_was_written(example: dict[str, Any]) -> None:
    assert results.read(EXAMPLE) == example


def test_validate_changes_nothing(example: dict[str, Any]) -> None:
    before = copy.deepcopy(example)
    results.validate(example)
    assert example == before


REFUSED: list[tuple[str, Change]] = [
    ("candidates[3].runs[0].latency_ms.p95", lambda r: r["candidates"][3]["runs"][0]["latency_ms"].update(p95="fast")),
    ("candidates[1].surprise", lambda r: r["candidates"][1].update(surprise=1)),
    ("candidates[1].verdict", lambda r: r["candidates"][1].update(verdict="good")),
    ("candidates[1].drops.accuracy", lambda r: r["candidates"][1]["drops"]["accuracy"].pop("unit")),
    ("baseline", lambda r: r["baseline"].pop("runs")),
    ("budget.confidence", lambda r: r["budget"].update(confidence=95)),
    ("budget.limits[0].op", lambda r: r["budget"]["limits"][0].update(op="<")),
    ("batches[0]", lambda r: r.update(batches=[0, 32])),
    ("seconds.total", lambda r: r["seconds"].update(total=-1)),
    ("bundle.files", lambda r: r["bundle"]["files"].update({"model.bin": "not a digest"})),
    ("candidates[2].size_bytes", lambda r: r["candidates"][2].update(size_bytes=True)),
    ("candidates[2].objective.value", lambda r: r["candidates"][2]["objective"].update(value=float("nan"))),
    ("candidates[4].id", lambda r: r["candidates"][4].update(id=r["candidates"][3]["id"])),
    ("best", lambda r: r.update(best="nobody")),
    ("front[0]", lambda r: r["front"].__setitem__(0, "nobody")),
    ("best_by_batch.1", lambda r: r["best_by_batch"].update({"1": "nobody"})),
    ("nearest", lambda r: r.update(nearest="nobody")),
]


@pytest.mark.parametrize(("place", "change"), REFUSED, ids=[place for place, _ in REFUSED])
def test_refuses_and_names_the_place(example: dict[str, Any], place: str, change: Change) -> None:
    change(example)
    with pytest.raises(ArtifactError) as caught:
        results.validate(example)
    named = f"{caught.value.where} {caught.value.what}"
    assert place.rpartition(".")[0] in named
    assert place.rpartition(".")[2].partition("[")[0] in named
    assert len(str(caught.value)) < 400


def test_every_measured_number_may_be_unknown(example: dict[str, Any]) -> None:
    for one in example["candidates"]:
        one.update(size_bytes=None, parameters=None, macs=None, agreement=None, seconds_to_build=None, objective=None)
        one["drops"] = dict.fromkeys(one["drops"])
        for run in one["runs"]:
            run.update(throughput_per_s=None, speedup=None, speedup_over_reference=None, samples=None, energy_j=None)
            run.update(peak_memory_bytes=None, latency_ms=dict.fromkeys(run["latency_ms"]))
    results.validate(example)


def test_a_newer_schema_is_told_from_a_broken_file(example: dict[str, Any]) -> None:
    example["schema"] = 2
    with pytest.raises(ArtifactError, match="newer paretune"):
        results.validate(example)


def test_read_names_the_file_and_the_place(example: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    example["title"] = 7
    path.write_text(json.dumps(example), encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        results.read(path)
    assert caught.value.where == f"{path}: title"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1, 2]", b""])
def test_read_refuses_what_is_no_result(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"result\.json"):
        results.read(path)


def test_read_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="name a run's directory"):
        results.read(tmp_path / "result.json")
