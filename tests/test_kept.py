"""Trained results that are kept open, and answer as their page says."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("PARETUNE_DATA") or ROOT.parent / "shared" / "data")
WEIGHTS = ROOT / "benchmarks" / "weights"


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kept", ROOT / "benchmarks" / "kept.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", sorted(path.parent for path in WEIGHTS.glob("*/artifact.json")), ids=lambda p: p.name)
def test_every_kept_result_is_whole_small_and_on_the_page(place: Path) -> None:
    assert Artifact.open(place).form == "torch"
    assert sum(path.stat().st_size for path in place.iterdir()) <= 5_000_000
    assert f"`{place.name}`" in (WEIGHTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not DATA.is_dir(), reason="set PARETUNE_DATA to the directory that holds the data")
@pytest.mark.parametrize(
    ("workload", "parameters"), [("resnet56_blocks_2_1x", 371_610), ("resnet56_blocks_2_5x", 334_490)]
)
def test_the_pruned_network_is_the_workloads_student(workload: str, parameters: int) -> None:
    work = getattr(benchmark(), workload)()
    student = work.student()
    assert sum(parameter.numel() for parameter in student.parameters()) == parameters
    batch = next(Split.whole(work.heldout, None, "heldout").head(500).batches(500))
    with torch.inference_mode():
        right = (student(torch.from_numpy(batch.inputs[0])).argmax(1).numpy() == batch.labels).mean()
    assert right > 0.85
