"""Two side by side: real children, an outcome from the whole interval, and clear errors for what cannot be compared."""

from __future__ import annotations

import json
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from paretune.ask import plugin
from paretune.ask.workload import Workload
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.plan import Plan
from paretune.check.statistics import Estimate
from paretune.compare import Comparison, compare, told
from paretune.deliver.bundle import pack
from paretune.errors import CallError, DataError
from paretune.testing import samples

comparing = import_module("paretune.compare")


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "COMPARE", Plan(rounds=3, seconds=0.01, count=5, sessions=3))


def bundle(into: Path) -> Path:
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    machine = {"threads": 1, "digest": "another", "cpu": "Another CPU"}
    pack(candidate, samples.artifact("onnx"), into, machine=machine, workload={}, evidence={})
    return into


def products(path: Path, count: int, width: int = 256) -> Path:
    """``x`` [batch, width] multiplied ``count`` times by a matrix."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
    names = ["x", *(f"h{number}" for number in range(1, count)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [tensor])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def plain(found: Comparison) -> dict[str, Any]:
    said = found.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    return said


def test_much_less_work_is_faster_both_ways(tmp_path: Path) -> None:
    light, heavy = products(tmp_path / "light.onnx", 2), products(tmp_path / "heavy.onnx", 60)
    there = plain(compare(light, heavy, batch=(8, 1), seconds=60, threads=1))
    assert there["outcome"] == "faster"
    assert there["ratio"]["low"] > 1
    assert set(there["batches"]) == {"1", "8"}
    assert there["batches"]["8"]["outcome"] == "faster"
    assert there["sessions"] == 3
    assert [there[side]["title"] for side in "ab"] == ["light.onnx", "heavy.onnx"]
    assert there["a"]["runs"][0]["latency_ms"]["p50"]["value"] < there["b"]["runs"][0]["latency_ms"]["p50"]["value"]
    back = plain(compare(heavy, light, seconds=60, threads=1))
    assert back["outcome"] == "slower"
    assert back["ratio"]["high"] < 1


def test_scores_are_compared_where_there_is_data(tmp_path: Path) -> None:
    mine = bundle(tmp_path / "b")
    workload = Workload("w", samples.module(), None, samples.Images(40), {"accuracy": "accuracy", "m": "matthews"})
    said = plain(compare(mine, mine, workload, threads=1))
    assert said["drops"]["m"]["value"] == 0
    assert said["drops"]["m"]["high"] > 0
    assert said["drops"]["accuracy"]["value"] == 0
    assert said["drops"]["accuracy"]["unit"] == "pp"
    assert len(said["warnings"]) == 1, "made on another machine: said once, not for each side"


def test_time_bounds_the_sessions_but_three_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "COMPARE", Plan(rounds=2, seconds=0.005, count=2, sessions=50))
    model = products(tmp_path / "m.onnx", 2)
    assert plain(compare(model, model, seconds=0.01, threads=1))["sessions"] == 3
    assert 3 < plain(compare(model, model, seconds=6, threads=1))["sessions"] < 50


def test_what_takes_other_inputs_is_refused(tmp_path: Path) -> None:
    wide, narrow = products(tmp_path / "wide.onnx", 1, 64), products(tmp_path / "narrow.onnx", 1, 32)
    with pytest.raises(DataError, match=r"their inputs differ: float32\[64\] and float32\[32\] an example"):
        compare(wide, narrow)


def test_a_call_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model = products(tmp_path / "m.onnx", 1)
    with pytest.raises(CallError, match="does not exist"):
        compare(model, tmp_path / "nothing.onnx")
    with pytest.raises(CallError, match="no batch sizes"):
        compare(model, model, batch=())


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.01, 1.2, "faster"),
        (0.8, 0.99, "slower"),
        (0.9, 1.1, "no difference shown"),
        (1.0, 1.1, "no difference shown"),
    ],
)
def test_only_a_whole_interval_says_anything(low: float, high: float, outcome: str) -> None:
    assert told(Estimate((low + high) / 2, low, high)) == outcome
