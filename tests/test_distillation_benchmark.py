"""The benchmark of distillation counts what fits and judges over seeds as Student would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "distillation.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distillation_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_whole_epochs_that_fit(bench):
    assert bench.fitting(100, {"epoch_s": 9.0, "before_s": 10.0}) == 10
    assert bench.fitting(5, {"epoch_s": 9.0, "before_s": 10.0}) == 1


def test_lines_of_another_setting_and_torn_ones_are_left_alone(bench, tmp_path):
    bench.note(tmp_path, {"seconds": 1}, "run", {"kind": "none", "seed": 0})
    bench.note(tmp_path, {"seconds": 2}, "run", {"kind": "none", "seed": 1})
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"what": "run", "ki')
    assert [one["seed"] for one in bench.lines(tmp_path, {"seconds": 1}, "run")] == [0]
    assert bench.lines(tmp_path, {"seconds": 1}, "calibration") == []


def test_gains_are_paired_by_seed(bench):
    shares = {"none": (0.60, 0.62, 0.61), "distill": (0.63, 0.64, 0.65)}
    runs = [
        {"kind": kind, "seed": seed, "accuracy": value, "epochs": 3, "seconds": 9.0, "cpu_seconds": 8.0, "whole": True}
        for kind, values in shares.items()
        for seed, value in enumerate(values)
    ]
    alone, taught = bench.summary(runs)
    assert alone["gain_pp"] is None
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=1.0 / 3**0.5)  # gains of 3, 2 and 4 points
    assert taught["gain_pp"]["value"] == pytest.approx(3.0)
    assert (taught["gain_pp"]["low"], taught["gain_pp"]["high"]) == (pytest.approx(low), pytest.approx(high))
    assert "| distill | 3 | 3 | 9 | 64.00 [" in bench.table([alone, taught])
    assert bench.interval([1.0]) == {"value": 1.0, "low": None, "high": None}
