"""A trial tells what is known of it, and nothing that JSON cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.budget import Budget
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.answers import Answers
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.verdict import judge
from paretune.deliver.trial import Trial, quantile_points, timing
from paretune.testing import samples


def run(count: int = 25, rounds: int = 16) -> BatchRun:
    rng = np.random.default_rng(0)
    blocks = tuple(tuple(1 + 0.1 * rng.random(count)) for _ in range(rounds))
    return BatchRun(1, blocks, {"base": blocks}, 950.0, 2, 10**7, 10**8, 10**6, 10**5)


def made() -> Trial:
    return Trial(Candidate(Recipe(), plugin.load("targets", "onnxruntime")()), artifact=samples.artifact("onnx"))


def plain(trial: Trial, base: Path = Path("elsewhere")) -> dict[str, Any]:
    told = trial.describe(0.95, base)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


def test_a_trial_that_was_not_tried_has_no_figures() -> None:
    told = plain(Trial(made().candidate, why="not tried: the time was over"))
    assert (told["status"], told["verdict"], told["runs"], told["findings"]) == ("skipped", "not tested", [], [])
    assert told["size_bytes"] is told["data"] is told["objective"] is None
    assert not told["confirmed"]


def test_a_ranked_trial_is_not_tested_unless_it_breaks() -> None:
    trial = made()
    given = Answers({"accuracy": np.ones(50)}, np.zeros(50, int), np.ones(50), "ranking")
    measured = Measurement(trial.id, 100, 1, None, {1: run()}, {"ranking": given})
    for limit, said in (("p50<=2ms", "not tested"), ("p50<=0.1ms", "breaks")):
        trial.ranked = judge(measured, measured, Budget.parse(limit), "ranking")
        assert plain(trial)["verdict"] == said
    anew = replace(measured, answers={"heldout": replace(given, data="heldout")})
    trial.confirmed = judge(anew, anew, Budget.parse("p50<=2ms, drop<=50pp"), "heldout")
    told = plain(trial)
    assert (told["verdict"], told["confirmed"]) == ("meets", True)
    assert told["runs"][0]["energy_j"] == {
        "value": None, "low": None, "high": None, "kind": "unavailable", "per_example": None,
        "how": "nothing was recorded that tells it",
    }  # fmt: skip
    assert "cost" not in told["runs"][0], "no prices were given"
    assert told["drops"]["accuracy"].keys() == {"value", "low", "high", "unit"}
    assert told["size_bytes"] == samples.artifact("onnx").size_bytes


def test_what_is_not_finite_is_null() -> None:
    trial = made()
    zero = Answers({"accuracy": np.zeros(50)}, np.zeros(50, int), np.ones(50), "ranking")
    measured = Measurement(trial.id, 100, 1, None, {1: run()}, {"ranking": zero})
    trial.ranked = judge(measured, measured, Budget.parse("drop<=1%"), "ranking")
    told = plain(trial)
    assert told["drops"]["accuracy"] == {"value": None, "low": None, "high": None, "unit": "%"}
    trial.ranked = judge(measured, measured, Budget.parse("p50<=1s", "drop"), None)
    assert plain(trial)["objective"] == {"value": None, "low": None, "high": None}


def test_the_artefact_is_named_from_the_run_where_it_lies_in_it(tmp_path: Path) -> None:
    trial = made()
    trial.measurement = Measurement(trial.id, 100, 1, None, {1: run()})
    root = samples.artifact("onnx").root
    assert plain(trial, root.parent.parent)["runs"][0]["artifact"] == f"{root.parent.name}/{root.name}"
    assert plain(trial, tmp_path)["runs"][0]["artifact"] == root.resolve().as_posix()
    assert plain(trial, tmp_path)["runs"][0]["speedup"] is None, "nothing was judged"


def test_a_percentile_without_enough_samples_is_null() -> None:
    told = timing(run(count=100), 0.95)
    assert all(told["latency_ms"].values()), "1,600 samples state them all"
    assert (told["samples"], told["sessions"]) == (1600, 1)
    few = timing(run(count=4, rounds=15), 0.95)["latency_ms"]
    assert [name for name, value in few.items() if value is None] == ["p95", "p99"]
    assert told["disturbance"] is None, "nothing was recorded"
    assert (told["throughput_per_s"], told["callers"], told["peak_memory_bytes"]) == (950.0, 2, 10**8)


@pytest.mark.parametrize("most", [10, 1000])
def test_quantiles_for_a_plot_are_few_and_ordered(most: int) -> None:
    points = quantile_points(run(), most)
    samples_ms = np.concatenate(run().blocks)
    assert len(points) == min(most, 400)
    assert points == sorted(points)
    assert np.median(points) == pytest.approx(np.median(samples_ms), rel=0.01)
    assert samples_ms.min() - 1e-5 <= points[0] <= points[-1] <= samples_ms.max() + 1e-5
