"""The same numbers again: a bundle or a model file, with data and without."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.workload import Workload
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.plan import Plan
from paretune.deliver.bundle import pack
from paretune.errors import CallError, PluginError, WorkloadError
from paretune.measure import Measured, measure
from paretune.testing import samples

measuring = import_module("paretune.measure")  # the package offers the function under the module's name


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CONFIRM", Plan(rounds=6, seconds=0.01, count=10))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    machine = {"threads": 1, "digest": "another", "cpu": "Another CPU"}
    into = tmp_path_factory.mktemp("measure") / "b"
    pack(candidate, samples.artifact("onnx"), into, machine=machine, workload={}, evidence={})
    return into


def plain(found: Measured) -> dict[str, Any]:
    told = found.describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


def test_a_bundle_with_data_gives_scores_too(bundle: Path) -> None:
    import torch

    workload = Workload("w", samples.module(), None, samples.Images(40), {"accuracy": "accuracy", "mine": is_tensor})
    found = measure(bundle, workload, batch=(4, 1), threads=1)
    told = plain(found)
    images = np.stack([samples.Images(40)[index][0] for index in range(40)])
    with torch.inference_mode():
        right = samples.module()(torch.from_numpy(images)).argmax(dim=1).numpy() == np.arange(40) % 4
    assert told["scores"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert told["scores"]["mine"]["value"] == 0, "a model file's scores see numpy arrays"
    assert [run["batch"] for run in told["runs"]] == [1, 4]
    for run in told["runs"]:
        assert run["latency_ms"]["p50"]["value"] > 0
        assert run["samples"] >= 60
        assert run["peak_memory_bytes"] > run["import_memory_bytes"] > 10**7
    assert told["target"] == "onnxruntime"
    assert told["size_bytes"] == samples.artifact("onnx").size_bytes
    assert told["warnings"] == [
        "the bundle's evidence was made on another machine or with other versions (Another CPU)"
    ]  # fmt: skip


def test_a_users_own_score_sees_the_tensors_of_the_model_that_the_bundle_was_made_of(tmp_path: Path) -> None:
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    of_torch = {"name": "w", "form": "torch"}
    machine = {"threads": 1, "digest": "another", "cpu": "Another CPU"}
    pack(candidate, samples.artifact("onnx"), tmp_path / "b", machine=machine, workload=of_torch, evidence={})
    workload = Workload("w", samples.module(), None, samples.Images(8), {"mine": is_tensor})
    assert plain(measure(tmp_path / "b", workload, threads=1))["scores"]["mine"]["value"] == 1


def is_tensor(outputs: Any, labels: Any) -> Any:
    return np.full(len(labels), float(hasattr(outputs, "detach")))


def test_a_bundle_without_data_gives_latency_memory_and_size(bundle: Path) -> None:
    told = plain(measure(bundle, threads=1))
    assert told["scores"] == {}
    assert told["runs"][0]["throughput_per_s"] > 0
    assert told["parameters"] == samples.artifact("onnx").parameters


def test_a_model_file_with_and_without_data() -> None:
    file = samples.artifact("onnx").path(".onnx")
    bare = plain(measure(file, threads=1))
    assert (bare["title"], bare["target"], bare["scores"], bare["warnings"]) == (file.name, "onnxruntime", {}, [])
    workload = Workload("w", str(file), None, samples.Images(12))
    assert plain(measure(file, workload, threads=1))["scores"]["accuracy"]["value"] >= 0


def test_a_wrong_call_is_told(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="does not exist"):
        measure(tmp_path / "none")
    with pytest.raises(CallError, match="is no bundle"):
        measure(tmp_path)
    with pytest.raises(PluginError, match="openvino does not open form onnx"):
        measure(bundle, target="openvino")
    with pytest.raises(PluginError, match="no target"):
        measure(bundle, target="none")
    for batch in ((), (0, 1)):
        with pytest.raises(CallError, match="no batch sizes"):
            measure(bundle, batch=batch)
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(WorkloadError):
        measure(tmp_path / "model.txt")
