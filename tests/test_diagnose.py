"""What can be proven is told from the data alone, what would be tried from what is installed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paretune.ask.workload import Workload
from paretune.check import power
from paretune.diagnose import FLIPS, Diagnosis, diagnose
from paretune.errors import DataError, PluginError
from paretune.testing import samples


def plain(found: Diagnosis) -> dict[str, Any]:
    said = found.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    return said


def workload(heldout: int) -> Workload:
    return Workload("mine", samples.module(), samples.Images(60), samples.Images(heldout))


def test_what_held_out_data_can_prove_is_said_for_every_rate_of_flips() -> None:
    said = plain(diagnose(workload(200), "drop<=1pp, p95<=5ms"))
    assert [row["flip_rate"] for row in said["power"]] == list(FLIPS)
    halves = [row["half_width_pp"] for row in said["power"]]
    assert halves == sorted(halves), "the more flips, the less is known"
    assert said["power"][0]["provable_pp"] == pytest.approx(power.provable_limit(200, 0.0))
    assert {row["limit"] for row in said["limits"]} == {"drop<=1pp"}
    none = said["limits"][0]
    assert (none["flip_rate"], none["chance"], none["examples_needed"]) == (0.0, 0.0, 381)
    assert any("will most likely stay undecided: 200 held-out examples" in text for text in said["warnings"])


def test_of_a_score_of_the_whole_set_no_power_is_claimed() -> None:
    both = Workload("mine", samples.module(), None, samples.Images(200), {"accuracy": "accuracy", "f1": "f1"})
    said = plain(diagnose(both, "drop.accuracy<=1pp, drop.f1<=2pp"))
    assert {row["limit"] for row in said["limits"]} == {"drop.accuracy<=1pp"}
    assert any(text.startswith("what this data can prove of f1 is not known") for text in said["warnings"])
    assert said["data"]["scores"] == ["accuracy", "f1"]


def test_the_model_and_the_candidates_are_told_without_building() -> None:
    said = plain(diagnose(workload(20), targets=["onnxruntime", "torch"]))
    assert said["data"]["heldout"] == 20
    assert said["data"]["ranking"] + said["data"]["fit"] == 60
    assert said["model"]["form"] == "torch"
    assert said["model"]["home"] == "torch"
    assert said["model"]["parameters"] > 0
    assert set(said["candidates"]) == {"onnxruntime", "torch"}
    assert said["candidates"]["onnxruntime"] > said["candidates"]["torch"] >= 1
    assert said["limits"] == []
    assert not any("undecided" in text for text in said["warnings"])


def test_what_optimize_would_refuse_is_refused() -> None:
    with pytest.raises(DataError, match="holds one example"):
        diagnose(workload(1))
    with pytest.raises(PluginError, match="there is no target 'nowhere'"):
        diagnose(workload(20), targets=["nowhere"])
