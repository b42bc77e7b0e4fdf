"""A technique from a separate package, installed by pip: found, searched and conformant, in under 200 lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "plugin" / "paretune-weights"

WORKLOAD = """
import numpy as np
import torch
from paretune import Workload

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
x = np.random.default_rng(0).normal(size=(1600, 16)).astype("float32")
y = net(torch.from_numpy(x)).argmax(1).numpy()
items = list(zip(x, y))
work = Workload("outside", net, train=items[:800], heldout=items[800:])
"""
CONFORMANCE = """
from paretune_weights import OnnxWeightsInt8
from paretune.testing import TechniqueConformance


class TestOnnxWeightsInt8(TechniqueConformance):
    technique = OnnxWeightsInt8
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True)
    # what the tests themselves import goes on being what is imported
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def run(arguments: list[str], environment: dict[str, str], at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, cwd=at, capture_output=True, text=True, check=False
    )


def test_it_takes_fewer_than_200_lines() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".toml")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 200


def test_it_is_listed_with_its_knobs(environment: dict[str, str], tmp_path: Path) -> None:
    listed = run(["paretune", "techniques", "--json"], environment, tmp_path)
    assert listed.returncode == 0, listed.stderr
    entry = next(entry for entry in json.loads(listed.stdout) if entry["name"] == "onnx_weights_int8")
    assert entry["takes"] == ["onnx"]
    assert entry["installed"]
    assert [knob["name"] for knob in entry["knobs"]] == ["smallest"]


def test_it_passes_the_conformance_suite(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_outside.py").write_text(CONFORMANCE)
    ran = run(["pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."], environment, tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "passed" in ran.stdout


def test_it_is_found_and_searched(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORKLOAD)
    command = ["paretune", "optimize", "work.py:work", "--only", "onnx_weights_int8", "--target", "onnxruntime"]
    ran = run([*command, "--budget", "size<=4KB", "--out", "run", "--json", "--time", "2m"], environment, tmp_path)
    assert ran.returncode in (0, 3), ran.stderr
    result = json.loads(ran.stdout)
    steps = {step["technique"] for entry in result["candidates"] for step in entry["recipe"] if entry["runs"]}
    assert "onnx_weights_int8" in steps
    sizes = {entry["title"]: entry["size_bytes"] for entry in result["candidates"] if entry["runs"]}
    assert min(sizes.values()) < result["baseline"]["size_bytes"]
