"""The loop as a library: several inputs and scores, fixed candidates, what is kept in float, time, and SIGKILL."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import paretune
from paretune.ask.budget import Budget
from paretune.ask.event import Event
from paretune.ask.knob import make
from paretune.ask.plugin import load
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.plan import HURRIED
from paretune.deliver.run import read_log
from paretune.errors import BudgetError, CallError, DataError, RecipeError, WorkloadError
from paretune.optimize import seconds_of


class TwoInputs(torch.nn.Module):
    """Token ids and floats in by name, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 16)
        self.mixing = torch.nn.Linear(16 + 4, 64)
        self.head = torch.nn.Linear(64, 3)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.cat([self.embedding(ids).mean(1), features], 1)
        hidden = torch.relu(self.mixing(hidden))
        return {"logits": self.head(hidden), "hidden": hidden}


def two_inputs() -> paretune.Workload:
    torch.manual_seed(0)
    net = TwoInputs().eval()
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (1500, 7))
    features = random.normal(size=(1500, 4)).astype("float32")
    with torch.inference_mode():
        labels = net(torch.from_numpy(ids), torch.from_numpy(features))["logits"].argmax(1).numpy()
    items = [({"ids": i, "features": f}, y) for i, f, y in zip(ids, features, labels, strict=True)]

    def small_hidden(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        assert isinstance(outputs["hidden"], torch.Tensor), "a score sees what the model returns"
        return 1 / (1 + outputs["hidden"].abs().mean(1))

    scores: dict[str, Any] = {"accuracy": "accuracy", "small": small_hidden}
    parts = {"low first id": lambda inputs, label: inputs["ids"][0] < 25}
    return paretune.Workload("two", net, train=items[:600], heldout=items[600:], score=scores, slices=parts)


def candidates(*steps: str, target: str = "onnxruntime", **knobs: Any) -> Candidate:
    made = [make(load("techniques", step), knobs if step == steps[-1] else {}, step) for step in steps]
    return Candidate(Recipe(tuple(made)), load("targets", target)())


class Heard:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on(self, event: Event) -> None:
        self.events.append(event)


def test_several_inputs_and_scores_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # confirmed briefly: there is time left to watch the memory of the best
    monkeypatch.setattr(import_module("paretune.confirm"), "fitting", lambda *told: (HURRIED, 2))
    heard = Heard()
    recipes = [
        candidates("torch_to_onnx"),
        candidates("torch_to_onnx", "onnx_to_openvino", target="openvino"),
        candidates("torch_to_onnx", "onnx_fold", "onnx_int8_dynamic"),
    ]
    run = paretune.optimize(
        two_inputs(), "drop<=1pp, drop.small<=5%, energy<=1J", recipes=recipes, targets=["onnxruntime", "openvino"],
        time="2m", watts_per_core=3.0, out=tmp_path / "run", observers=[heard],
    )  # fmt: skip
    assert run.best is not None, run.why_none
    assert set(run.best.entry["drops"]) == {"accuracy", "small"}
    assert run.best.entry["drops"]["small"]["unit"] == "%"
    assert set(run.best.entry["slices"]) == {"accuracy", "small"}
    for score, report in run.best.entry["slices"].items():
        assert {one["name"] for one in report["slices"]} == {"class 0", "class 1", "class 2", "low first id"}, score
        assert sum(one["count"] for one in report["slices"] if one["name"].startswith("class")) == 900
    assert "Where accuracy suffers most" in run.report.read_text()
    assert [
        spec["name"] for spec in json.loads((run.root / "bundle" / "bundle.json").read_text())["artifact"]["inputs"]
    ]
    assert len(run.result["candidates"]) == 3
    growth = run.best.entry["memory_growth"]
    assert growth["inferences"] > 100
    assert growth["verdict"] != "leaking"
    assert growth["text"] in run.report.read_text()
    assert all(entry["memory_growth"] is None for entry in run.result["candidates"] if entry["id"] != run.best.id)
    assert run.result["budget"]["rates"]["watts_per_core"] == 3.0
    (finding,) = [finding for finding in run.best.entry["findings"] if finding["limit"] == "energy<=1J"]
    assert finding["verdict"] == "meets"
    assert "<iframe" in run._repr_html_()
    kinds = {event.kind for event in heard.events}
    assert {"stage", "progress", "step", "candidate", "end"} <= kinds
    saved = run.best.save(tmp_path / "saved")
    assert saved.artifact.digest == paretune.Bundle.open(tmp_path / "saved").artifact.digest
    with pytest.raises(CallError, match="exists already"):
        run.best.save(tmp_path / "saved")


def test_scores_of_the_whole_set_have_limits_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("paretune.confirm"), "fitting", lambda *told: (HURRIED, 2))

    def hidden(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert isinstance(outputs["hidden"], torch.Tensor), "what is kept is taken of what the model returns"
        return outputs["hidden"]

    def spread(kept: np.ndarray, labels: np.ndarray) -> float:
        assert kept.shape == (len(labels), 64)
        return float(kept.std())

    scores = {"accuracy": "accuracy", "f1": "f1", "spread": paretune.SetScore(spread, hidden)}
    run = paretune.optimize(
        dataclasses.replace(two_inputs(), score=scores), "drop.accuracy<=1pp, drop.f1<=20%, drop.spread<=5%",
        recipes=[candidates("torch_to_onnx")], targets=["onnxruntime"], time="20s", out=tmp_path / "run",
    )  # fmt: skip
    assert run.best is not None, run.why_none
    whole = run.result["baseline"]["scores"]["f1"]
    assert whole["value"] == 1, "the labels are the original's own answers"
    assert 0.5 < whole["low"] < 1
    said = {finding["limit"]: finding for finding in run.best.entry["findings"]}
    assert {one["verdict"] for one in said.values()} == {"meets"}
    assert said["drop.f1<=20%"]["low"] <= run.best.entry["drops"]["f1"]["value"] <= said["drop.f1<=20%"]["high"]
    assert said["drop.f1<=20%"]["high"] > 1, "all right among 900 is no proof of all right"
    assert set(run.best.entry["slices"]) == {"accuracy"}, "a score of the whole set has no worst slice"


def test_what_is_kept_stays_in_float(tmp_path: Path) -> None:
    recipe = candidates("torch_to_onnx", "onnx_fold", "onnx_int8_dynamic")
    run = paretune.optimize(
        two_inputs(), "size<=1KB", recipes=[recipe], targets=["onnxruntime"], heldout_limit=100,
        keep=("*linear*", "*MatMul*", "*Gemm*", "absent*"), out=tmp_path / "run",
    )  # fmt: skip
    (entry,) = [entry for entry in run.result["candidates"] if entry["id"] == recipe.id]
    assert entry["status"] == "failed", "everything was kept: nothing is left to quantise, and that is a finding"
    assert "onnx_int8_dynamic" in entry["error"]
    warned = [warning for warning in run.result["warnings"] if "such a name" in warning]
    assert "keep 'absent*': nothing in any candidate tried has such a name" in warned
    assert len(warned) < 4, "the patterns that kept something are not among them"
    assert run.best is None, "a size that nothing meets: no finalist, and nothing to confirm"


def test_a_recipe_that_does_not_connect_is_refused(tmp_path: Path) -> None:
    wrong = candidates("torch_to_onnx", target="openvino")
    heard = Heard()
    with pytest.raises(RecipeError, match="openvino does not open"):
        paretune.optimize(two_inputs(), recipes=[wrong], targets=["openvino"], out=tmp_path / "run", observers=[heard])
    assert [event.text for event in heard.events] == ["reading the data and the model"], "nothing was measured"


def test_a_limit_on_a_score_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no score 'f1'"):
        paretune.optimize(two_inputs(), "drop.f1<=1%", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_short_time_still_ends_with_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # a person at a prompt is told what goes on
    run = paretune.optimize(two_inputs(), "drop<=2pp", targets=["onnxruntime"], time=1, out=tmp_path / "run")
    assert run.result["stopped"] == "time"
    assert any("the time was over" in (entry["why"] or "") for entry in run.result["candidates"])
    assert any("give --time more" in warning for warning in run.result["warnings"])
    assert run.best is not None, "the reference at least was measured, and is confirmed"
    told = capsys.readouterr()
    assert "· reading the data and the model\n" in told.err
    assert told.out == ""


def test_a_call_that_is_stopped_early_does_not_undo_an_earlier_one(tmp_path: Path) -> None:
    recipe = candidates("torch_to_onnx", "onnx_to_openvino", target="openvino")
    asked: dict[str, Any] = {
        "recipes": [recipe],
        "targets": ["openvino"],
        "heldout_limit": 200,
        "out": tmp_path / "run",
    }
    first = paretune.optimize(two_inputs(), "drop<=5pp", **asked)
    assert first.best is not None
    memory = {entry["target"]: entry["runs"][0]["import_memory_bytes"] for entry in first.result["candidates"]}
    base = first.result["baseline"]["runs"][0]["import_memory_bytes"]
    assert all(found < 0.7 * base for found in memory.values()), "no runtime but torch loads torch"
    heard = Heard()
    again = paretune.optimize(two_inputs(), "drop<=5pp", **asked, resume=True, time=0.01, observers=[heard])
    assert any("the result of the earlier call stands" in event.text for event in heard.events)
    assert again.result == first.result
    assert (tmp_path / "run" / "bundle" / "bundle.json").is_file()
    other = paretune.optimize(two_inputs(), "drop<=4pp", **asked, resume=True, time=0.01)
    assert other.best is None, "another budget is another question"
    asked |= {"recipes": [candidates("torch_to_onnx")], "targets": ["onnxruntime"]}
    third = paretune.optimize(two_inputs(), "drop<=5pp", **asked, resume=True)
    assert third.best is not None
    assert sum("2 calls of this run tested different candidates" in one for one in third.result["warnings"]) == 1
    assert not any("calls of this run" in warning for warning in first.result["warnings"])


def test_an_earlier_answer_stands_for_the_same_question_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, seen = tmp_path / "run", []
    ended = import_module("paretune.conclude").conclude
    monkeypatch.setattr(import_module("paretune.optimize"), "conclude", lambda loop: seen.append(loop) or ended(loop))
    asked: dict[str, Any] = {"recipes": [candidates("torch_to_onnx")], "targets": ["onnxruntime"], "out": root}
    run = paretune.optimize(two_inputs(), "drop<=5pp, size<=10MB", **asked, heldout_limit=200)
    assert run.best is not None
    best, (loop,) = run.result["best"], seen

    def stands(**changed: Any) -> bool:
        """Whether it does after a call that is stopped before it says anything, and differs from the first in this."""
        facts = {**vars(loop), "trials": [], "stopped": "time"}
        return import_module("paretune.conclude")._standing(SimpleNamespace(**(facts | changed))) is not None

    assert stands()
    assert stands(budget=Budget.parse("size <= 10MB, drop<=5pp")), "the same in other words"
    assert not stands(budget=Budget.parse("drop<=4pp, size<=10MB"))
    assert not stands(budget=Budget.parse("drop<=5pp, size<=10MB", "size"))
    assert not stands(batches=(1, 2))
    assert not stands(targets=["openvino"])
    assert not stands(stopped="finished")
    assert not stands(machine={**loop.machine, "digest": "another"})
    assert not stands(allowed=("torch_to_onnx",)), "techniques that may not be used any more"
    assert not stands(original=SimpleNamespace(digest="another"))
    assert not stands(workload=dataclasses.replace(loop.workload, score={"other": lambda outputs, labels: labels}))
    kept = dataclasses.replace(loop.builder.fit, keep=("head",))
    assert not stands(builder=SimpleNamespace(fit=kept))
    refused, tested, failed = (
        lambda name, data=data: SimpleNamespace(id=name, confirmed=data and SimpleNamespace(data=data))
        for data in ("ranking", "heldout", None)
    )
    assert stands(trials=[refused("another")]), "another one was too slow"
    assert not stands(trials=[refused(best)])
    assert not stands(trials=[tested("another")]), "what was tested is the news"
    assert stands(trials=[failed(best)]), "not confirmed: the time was over"
    ended_here = failed(best)
    assert not stands(trials=[ended_here], stopped_at=ended_here), "it failed on held-out data"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2min", 120), (5, 5)])
def test_lengths_of_time(text: str | int, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1m", "0s", "10 m 5"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(CallError):
        seconds_of(text)


def test_a_killed_run_goes_on_where_it_was(workloads: Path) -> None:
    told = [candidates("torch_to_onnx"), candidates("torch_to_onnx", "onnx_fold", "onnx_int8_static")]
    (workloads / "recipe.json").write_text(json.dumps({"candidates": [one.describe() for one in told]}))
    command = [
        sys.executable, "-m", "paretune", "optimize", "works.py:good", "--budget", "drop<=5pp", "--recipe",
        "recipe.json", "--time", "15s", "--out", "run", "--resume",
    ]  # fmt: skip
    log = workloads / "run" / "log.jsonl"

    def finished() -> list[str]:
        events = read_log(workloads / "run") if log.exists() else []
        return [event["key"] for event in events if event["event"] == "step" and not event["cached"]]

    for steps in (2, 5):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 90
        while len(finished()) < steps and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = finished()
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    after = finished()
    assert after[: len(done)] == done
    assert len(after) == len(set(after)), "a finished step was repeated"
    run = paretune.Run.open(workloads / "run")
    assert run.best is not None
    assert paretune.Bundle.open(workloads / "run" / "bundle").artifact.digest
    assert not list((workloads / "run" / "store" / "scratch").iterdir()), "what the killed runs left was swept"


def test_a_slice_that_fails_is_told_before_any_work(tmp_path: Path) -> None:
    work = dataclasses.replace(two_inputs(), slices={"mine": lambda inputs, label: inputs["absent"] > 0})
    with pytest.raises(DataError, match=r"Workload.slices\['mine'\]: failed: KeyError\('absent'\)"):
        paretune.optimize(work, "drop<=1pp", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(WorkloadError, match="is a str, not a function"):
        dataclasses.replace(work, slices={"mine": "night"})


def small_student() -> torch.nn.Module:
    torch.manual_seed(1)
    net = TwoInputs()
    net.mixing, net.head = torch.nn.Linear(16 + 4, 16), torch.nn.Linear(16, 3)
    return net


class SameHidden(torch.nn.Module):
    """A student whose ``hidden`` is as wide as the original's."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.widen = small_student(), torch.nn.Linear(16, 64)

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        answers: dict[str, torch.Tensor] = self.net(ids, features)
        return {"logits": answers["logits"], "hidden": self.widen(answers["hidden"])}


@pytest.mark.slow
def test_a_student_is_taught_and_measured(tmp_path: Path) -> None:
    workload = dataclasses.replace(two_inputs(), student=SameHidden)
    teach = make(load("techniques", "torch_distill"), {"student": "given", "epochs": 3}, "torch_distill")
    taught = Candidate(Recipe((teach, *candidates("torch_to_onnx").recipe.steps)), load("targets", "onnxruntime")())
    run = paretune.optimize(
        workload, "size<=1KB", recipes=[taught], targets=["onnxruntime"], heldout_limit=100, out=tmp_path / "run"
    )
    (entry,) = [entry for entry in run.result["candidates"] if entry["id"] == taught.id]
    assert entry["status"] == "built", entry["error"]
    assert entry["parameters"] < run.result["baseline"]["parameters"]
    assert entry["runs"][0]["latency_ms"]["p50"]["value"] > 0
    assert not list((tmp_path / "run" / "store" / "unfinished").iterdir())


def test_a_technique_that_trains_is_used_by_its_whole_name_alone(tmp_path: Path) -> None:
    heard = Heard()
    run = paretune.optimize(
        two_inputs(), "size<=1KB", only=["torch_finetune", "torch_dist*"], targets=["torch"], heldout_limit=100,
        time="3m", out=tmp_path / "run", observers=[heard],
    )  # fmt: skip
    recipes = [[step["technique"] for step in entry["recipe"]] for entry in run.result["candidates"]]
    assert ["torch_finetune"] in recipes
    assert not any("torch_distill" in steps for steps in recipes)
    # on a CPU with BF16 the target has more settings to try than its own
    entry, *_ = [
        entry for entry in run.result["candidates"] if [s["technique"] for s in entry["recipe"]] == ["torch_finetune"]
    ]
    assert entry["status"] == "built", entry["error"]
    (curve,) = entry["history"]
    assert len(curve["losses"]) == 10
    warned = [event.text for event in heard.events if "give --only its whole name" in event.text]
    assert any(text.startswith("torch_distill ") for text in warned)
    assert not any(text.startswith("torch_finetune ") for text in warned)


def test_teaching_the_original_by_itself_is_told_to_make_nothing_smaller() -> None:
    named = ["torch_distill", "torch_distill_progressive", "torch_finetune", "torch_prune_blocks"]
    kinds = {name: load("techniques", name) for name in named}
    idle = import_module("paretune.optimize")._idle
    (told,) = idle(two_inputs(), named[:3], kinds, None)
    assert told.startswith("torch_distill by itself teaches the original")
    assert '"student": "made"' in told
    assert not idle(two_inputs(), named, kinds, None), "what was pruned is worth healing"


def test_a_student_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        WorkloadError, match=r"Workload.student: answers logits .* hidden float32\[batch, 16\], and the"
    ):
        paretune.optimize(dataclasses.replace(two_inputs(), student=small_student), "size<=1MB", out=tmp_path / "a")
    with pytest.raises(WorkloadError, match=r"Workload\.student: the function that makes it failed"):
        paretune.optimize(dataclasses.replace(two_inputs(), student=lambda: 1 / 0), "size<=1MB", out=tmp_path / "b")


def test_one_of_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        CallError, match="optimize: is one of 2 processes, and a run is made by one — let `accelerate launch"
    ):
        paretune.optimize(two_inputs(), "size<=1MB", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_asked_for_and_not_used_is_told() -> None:
    idle = import_module("paretune.optimize")._idle
    work, distil = two_inputs(), load("techniques", "torch_distill")
    usable = {"torch_distill": distil, "onnx_fold": load("techniques", "onnx_fold")}
    assert idle(work, None, usable, None) == []
    assert idle(work, ["onnx_*"], usable, None) == []
    (told,) = idle(work, ["torch_d*", "onnx_fold"], usable, None)
    assert told.startswith("torch_distill trains, which no pattern asks for")
    assert (
        idle(work, ["torch_finetune"], {**usable, "torch_finetune": load("techniques", "torch_finetune")}, None) == []
    )
    schooled = dataclasses.replace(work, student=small_student)
    plain = Candidate(Recipe((distil(),)), load("targets", "torch")())
    given = Candidate(Recipe((distil(student="given"),)), load("targets", "torch")())
    assert idle(schooled, None, usable, [given]) == []
    for fixed in (None, [plain]):
        (told,) = idle(schooled, None, usable, fixed)
        assert told.startswith("Workload.student is not used")


def test_a_step_of_ones_own_is_what_a_run_trains_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of the training data are one too high, which the user's step knows and no loss does."""
    monkeypatch.setattr(import_module("paretune.confirm"), "fitting", lambda *told: (HURRIED, 2))
    drawn = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)
    items = [(x, np.int64(x[:3].argmax())) for x in drawn]

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()

    def step(model: Any, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(inputs), (labels + 2) % 3)

    workload = paretune.Workload(
        "shifted", net, train=[(x, (y + 1) % 3) for x, y in items[:600]], heldout=items[600:], step=step
    )
    knobs = {"epochs": 12, "batch": 32, "learning_rate": 0.02}
    kinds = {"torch_finetune": knobs, "torch_distill": {**knobs, "alpha": 0.1, "answers": "classes"}}
    recipes = [
        Candidate(
            Recipe((make(load("techniques", name), given, name), load("techniques", "torch_to_onnx")())),
            load("targets", "onnxruntime")(),
        )
        for name, given in kinds.items()
    ]
    run = paretune.optimize(
        workload,
        "drop<=100pp",
        recipes=recipes,
        targets=["onnxruntime"],
        time="10m",
        out=tmp_path / "run",
        observers=(),
    )
    found = [entry["id"] for entry in run.result["candidates"] if entry["role"] == "candidate"]
    assert len(found) == 2
    for one in found:
        run.pack(one, tmp_path / one)
        session = onnxruntime.InferenceSession(next((tmp_path / one).rglob("*.onnx")))
        (answers,) = session.run(None, {session.get_inputs()[0].name: drawn[600:]})
        assert np.mean(answers.argmax(1) == drawn[600:, :3].argmax(1)) > 0.85


def test_a_step_takes_the_place_of_a_loss() -> None:
    def step(model: object, inputs: object, labels: object) -> float:
        return 0.0

    work = dataclasses.replace(two_inputs(), step=step)
    assert work.minimised is not None
    assert work.minimised(None, None, None) == 0.0
    with pytest.raises(WorkloadError, match=r"Workload.step: takes the place of the loss"):
        dataclasses.replace(work, loss=step)
    with pytest.raises(WorkloadError, match=r"Workload.step: is a str, not a function"):
        dataclasses.replace(work, step="sideways")
