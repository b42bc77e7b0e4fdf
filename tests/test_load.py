"""A bundle or a model file under each load shape, in a real child on a real runtime."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.event import Event
from paretune.ask.workload import Workload
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.load import SAMPLES, Schedule
from paretune.deliver.bundle import pack
from paretune.errors import CallError, MeasureError, ParetuneError
from paretune.load import Load, bisect, load
from paretune.testing import samples

loading = import_module("paretune.load")  # the package offers the function under the module's name


@pytest.fixture(scope="module")
def file() -> Path:
    return samples.artifact("onnx").path(".onnx")


def plain(found: Load) -> dict[str, Any]:
    told = found.describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


class Heard:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on(self, event: Event) -> None:
        self.texts.append(event.text)


@pytest.mark.parametrize("shape", ["single-stream", "multi-stream"])
def test_streams(shape: str, file: Path) -> None:
    told = plain(load(file, shape=shape, seconds=0.4, threads=1))
    assert (told["shape"], told["samples_per_query"]) == (shape, SAMPLES[shape])
    assert told["answered"] == told["queries"] >= 64
    assert 0 <= told["latency_ms"]["p50"]["low"] <= told["latency_ms"]["p50"]["value"]
    assert told["early_stopping_ms"]["p90"] >= told["latency_ms"]["p90"]["value"]
    assert told["title"] == file.name
    assert told["target"] == "onnxruntime"
    assert told["rate_per_s"] is None


def test_offline_answers_batches(file: Path) -> None:
    told = plain(load(file, shape="offline", seconds=0.2, threads=1, samples=4))
    assert told["samples_per_query"] == 4
    assert told["answered"] == told["queries"] >= 11
    assert told["throughput_per_s"]["value"] > 0


def test_a_server_at_a_given_rate_with_the_users_data(file: Path) -> None:
    workload = Workload("w", str(file), None, samples.Images(5))
    found = load(file, workload, rate=200.0, seconds=0.5, threads=1, seed=3)
    told = plain(found)
    assert (told["shape"], told["queries"], told["rate_per_s"]) == ("server", 100, 200.0)
    assert told["rate_from"] == "as asked"
    due = Schedule.served(1, 200.0, 100, seed=3).due_ns
    assert due is not None
    assert np.array_equal(found.trace.due_ns, due), "the seed alone determines when"


def test_without_a_rate_it_is_a_share_of_single_streams(file: Path) -> None:
    heard = Heard()
    told = plain(load(file, seconds=0.4, threads=1, observers=[heard]))
    alone = float(told["rate_from"].split()[-2].replace(",", ""))
    assert told["rate_from"].startswith("0.7 × single-stream's")
    assert told["rate_per_s"] == pytest.approx(0.7 * alone, rel=0.01)
    assert [text.split()[0].rstrip(",") for text in heard.texts] == ["single-stream", "server"]


def test_with_a_bound_the_rate_is_searched_for(file: Path) -> None:
    told = plain(load(file, seconds=0.4, bound_ms=1000.0, threads=1))
    assert len(told["probes"]) == loading.PROBES
    held = [probe["rate"] for probe in told["probes"] if probe["holds"]]
    assert told["rate_per_s"] == max(held)
    assert all(probe["bound_ms"] <= 1000 for probe in told["probes"] if probe["holds"])
    assert "within 1000 ms (early stopping, 99%)" in told["rate_from"]
    with pytest.raises(MeasureError, match=r"p90 takes 64 queries to prove, and at most .* give at least \d+ seconds"):
        load(file, seconds=1e-4, bound_ms=1000.0, threads=1)
    with pytest.raises(MeasureError, match=r"no rate can keep p9\d? within 1e-06 ms: alone, .* raise"):
        load(file, seconds=0.2, bound_ms=1e-6, threads=1)


def test_the_example_in_the_documentation_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "measuring.md").read_text(encoding="utf-8")
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    machine = {"threads": 1, "digest": "another", "cpu": "Another CPU"}
    pack(candidate, samples.artifact("onnx"), tmp_path / "bundle", machine=machine, workload={}, evidence={})
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "measuring.md", "exec"), namespace := {})
    assert namespace["found"]["queries"] == 200
    assert capsys.readouterr().out.strip()


def test_bisection_ends_at_the_highest_that_holds() -> None:
    assert bisect(lambda rate: rate <= 33.0, 0.0, 64.0, 6) == 33.0
    assert bisect(lambda rate: True, 0.0, 64.0, 3) == 56.0
    assert bisect(lambda rate: True, 32.0, 64.0, 1) == 48.0
    assert bisect(lambda rate: False, 8.0, 64.0, 4) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shape": "burst"}, "no load shape 'burst' — choose one of single-stream, multi-stream, server, offline"),
        ({"shape": "offline", "rate": 3.0}, "offline has no rate"),
        ({"shape": "single-stream", "bound_ms": 3.0}, "single-stream has no bound"),
        ({"rate": 0.0}, "0.0 is no rate"),
        ({"rate": 5.0, "bound_ms": 3.0}, "a rate was given"),
        ({"seconds": 0.0}, "no time to measure for"),
        ({"samples": 0}, "cannot hold 0 samples"),
    ],
)
def test_a_wrong_call_is_told(wrong: dict[str, Any], says: str, file: Path) -> None:
    with pytest.raises(CallError) as caught:
        load(file, **wrong)
    assert says in str(caught.value)


def test_a_bundles_fixed_batch_is_what_a_query_holds(file: Path, tmp_path: Path) -> None:
    import onnx

    from paretune.forms import onnx as form

    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    (tmp_path / "four").mkdir()
    fixed = form.seal(model, tmp_path / "four", like=samples.artifact("onnx"))
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    machine = {"threads": 1, "digest": "another", "cpu": "Another CPU"}
    pack(candidate, fixed, bundle := tmp_path / "b", machine=machine, workload={}, evidence={})
    with pytest.raises(CallError, match="takes batches of 4, and 2 were asked"):
        load(bundle, samples=2)
    told = plain(load(bundle, shape="single-stream", seconds=0.1, threads=1))
    assert told["samples_per_query"] == 4
    assert told["warnings"]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ParetuneError):
        load(tmp_path / "model.onnx", seconds=0.1)
