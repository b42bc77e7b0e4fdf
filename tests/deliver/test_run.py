"""A run's directory is started, resumed, opened and packed from by rules that say what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.budget import Budget
from paretune.ask.event import Event
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.answers import Answers
from paretune.check.measurement import BatchRun, Measurement
from paretune.check.verdict import judge
from paretune.deliver import run as runs
from paretune.deliver import summary
from paretune.deliver.bundle import Bundle, pack
from paretune.deliver.run import BASELINE, CALL, LOG, RESULT, Log, Run, place, read_call, read_log, save, start
from paretune.deliver.trial import Trial
from paretune.errors import ArtifactError, CallError, OutputError
from paretune.testing import samples

MACHINE = {"threads": 1, "digest": "m", "cpu": "a CPU"}
WORKLOAD = {"name": "w", "digest": "d", "heldout_size": 50}
FACTS = {
    "paretune": "0", "title": "w", "started": "2026-01-01T00:00:00+00:00", "machine": MACHINE, "workload": WORKLOAD,
    "seconds": {"total": 1.0, "building": 0.5, "measuring": 0.5}, "warnings": [],
}  # fmt: skip


def candidate(target: str, *steps: str, **knobs: Any) -> Candidate:
    kinds = [plugin.load("techniques", step)() for step in steps]
    return Candidate(Recipe(tuple(kinds)), plugin.load("targets", target)(**knobs))


@pytest.fixture
def finished(tmp_path: Path) -> Run:
    """A run of the sample model: the baseline, the best, another that meets, and one that failed."""
    root = tmp_path / "run"
    given = Answers({"accuracy": np.ones(50)}, np.zeros(50, int), np.full(50, 0.9), "heldout")
    rng = np.random.default_rng(0)

    def measured(name: str, latency_ms: float) -> Measurement:
        def blocks(centre: float) -> Any:
            return tuple(tuple(centre * (1 + 0.01 * rng.standard_normal(25))) for _ in range(16))

        run = BatchRun(1, blocks(latency_ms), {"base": blocks(1.0)}, 1.0, 1, 1, 10**8, 1, 1)
        return Measurement(name, 10**6, 10, 10, {1: run}, {"heldout": given})

    base = measured("base", 1.0)
    trials = [Trial(candidate("torch"), role="baseline", status="built", artifact=samples.artifact("torch"))]
    trials[0].ranked = judge(base, base, Budget(), "heldout")
    roads = {("onnxruntime", "torch_to_onnx"): 0.7, ("openvino", "torch_to_onnx", "onnx_to_openvino"): 0.5}
    for road, latency_ms in roads.items():
        form = "openvino" if road[0] == "openvino" else "onnx"
        place = root / "store" / form
        shutil.copytree(samples.artifact(form).root, place)
        trial = Trial(candidate(*road), status="built", artifact=samples.artifact(form).open(place))
        trial.ranked = trial.confirmed = judge(base, measured(trial.id, latency_ms), Budget(), "heldout")
        trials.append(trial)
    failed = Trial(candidate("onnxruntime", "torch_to_onnx", graph="basic"), status="failed", error="no such operator")
    found = summary.document(
        [*trials, failed], Budget(), root, ["onnxruntime", "openvino"], (1,), None, FACTS
    )  # fmt: skip
    made = save(root, found)
    pack(
        trials[0].candidate, samples.artifact("torch"), root / BASELINE, machine=MACHINE, workload=WORKLOAD, evidence={}
    )
    return made


def by_target(run: Run, target: str) -> str:
    return next(entry["id"] for entry in run.result["candidates"] if entry["target"] == target)


# -- starting and resuming -------------------------------------------------------------------------------------


def test_a_run_is_not_written_over_unless_it_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    assert place(out, "w", resume=False) == out
    assert not out.exists(), "finding the place makes nothing"
    start(out)
    assert list(out.iterdir()) == [], "the trial file is gone"
    assert place(out, "w", resume=False) == out, "an empty directory is as good as none"
    (out / CALL).write_text("{}")
    with pytest.raises(CallError, match="exists already — add --resume") as caught:
        place(out, "w", resume=False)
    assert caught.value.exit_code == 2
    assert place(out, "w", resume=True) == out
    start(out)
    assert (out / CALL).read_text() == "{}"
    assert place(tmp_path / "new", "w", resume=True) == tmp_path / "new", "--resume starts what is not there"


def test_what_is_no_run_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(CallError, match="holds no run"):
        place(tmp_path, "w", resume=True)
    (tmp_path / LOG).write_text("")
    assert place(tmp_path, "w", resume=True) == tmp_path, "a run that was killed before its call was written"


def test_runs_without_a_name_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def placed(name: str, resume: bool) -> Path:
        found = place(None, name, resume)
        start(found)
        (found / CALL).write_text("{}")
        return found

    assert placed("w", resume=True) == Path("runs/w-1"), "nothing to go on with"
    assert placed("w", resume=False) == Path("runs/w-2")
    assert placed("w", resume=True) == Path("runs/w-2"), "the last one"
    assert placed("other", resume=False) == Path("runs/other-1")


@pytest.mark.parametrize("resume", [False, True])
def test_a_place_that_cannot_be_a_directory_is_refused(resume: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CallError, match="is a file, not a run's directory"):
        place(tmp_path / "file", "w", resume)
    with pytest.raises(OutputError):
        start(tmp_path / "file" / "run")


# -- the log ---------------------------------------------------------------------------------------------------


def test_a_log_keeps_every_event_but_progress(tmp_path: Path) -> None:
    log = Log(tmp_path / LOG)
    log.on(Event("start", "begun\nhere", {"left_s": 1.5}))
    log.on(Event("progress", "…"))
    log.close()
    (event,) = read_log(tmp_path)
    assert (event["event"], event["text"], event["left_s"]) == ("start", "begun\nhere", 1.5)
    assert event["time"] > 1e9


def test_half_written_lines_are_passed_over(tmp_path: Path) -> None:
    for number in range(3):
        log = Log(tmp_path / LOG)
        log.on(Event("step", f"é{number}"))
        log.close()
        with (tmp_path / LOG).open("ab") as file:  # killed in the middle of a character
            file.write(b'{"event": "step", "text": "\xc3')
    assert [event["text"] for event in read_log(tmp_path)] == ["é0", "é1", "é2"]


# -- opening ---------------------------------------------------------------------------------------------------


def test_what_is_no_run_and_what_has_not_finished_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="is not a run's directory"):
        Run.open(tmp_path / "none")
    (tmp_path / CALL).write_text('{"seed": 3}')
    with pytest.raises(CallError, match=r"has not finished — go on with it by .*--resume"):
        Run.open(tmp_path)
    assert read_call(tmp_path) == {"seed": 3}
    (tmp_path / CALL).write_text('{"seed": ')
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_call(tmp_path)
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(ArtifactError):
        Run.open(tmp_path)


def test_a_finished_run_opens_as_it_was_saved(finished: Run) -> None:
    opened = Run.open(finished.root)
    assert opened.result == json.loads(json.dumps(finished.result))
    assert opened.best is not None
    assert opened.best.id == by_target(opened, "openvino")
    assert {choice.id for choice in opened.front} == set(opened.result["front"])
    assert opened.why_none is None
    assert opened.report.read_text().startswith("<!")
    assert "<iframe" in opened._repr_html_()
    assert "openvino" in opened.best.title


def test_a_result_that_does_not_fit_is_not_written(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        save(tmp_path / "other", {**finished.result, "best": "unknown"})
    assert not (tmp_path / "other" / RESULT).exists()


def test_a_candidate_is_found_by_the_beginning_of_its_id(finished: Run) -> None:
    whole = by_target(finished, "openvino")
    assert finished.choice(whole).id == finished.choice(whole[:7]).id == whole
    assert finished.choice(finished.result["baseline"]["id"]).entry["role"] == "baseline"
    for name in ("", "zz"):
        with pytest.raises(CallError, match="no candidate"):
            finished.choice(name)
    doubled = Run(finished.root, {**finished.result, "candidates": finished.result["candidates"] * 2})
    with pytest.raises(CallError, match="several candidates begin with"):
        doubled.choice(whole)


# -- packing ---------------------------------------------------------------------------------------------------


def test_any_built_candidate_can_be_packed(finished: Run, tmp_path: Path) -> None:
    for target, form in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        name = by_target(finished, target)
        made = finished.pack(name, tmp_path / form)
        opened = Bundle.open(tmp_path / form)
        assert opened == made
        assert opened.manifest["id"] == name
        assert opened.artifact.files == samples.artifact(form).files
        assert opened.manifest["evidence"] == finished.choice(name).entry
        assert (tmp_path / form / "report.html").read_text() == finished.report.read_text()
    baseline = finished.pack(finished.result["baseline"]["id"], tmp_path / "baseline")
    assert (baseline.artifact.form, baseline.target.name) == ("torch", "torch")


def test_a_module_without_its_code_is_not_packed(finished: Run, tmp_path: Path) -> None:
    place = finished.root / "store" / "torch"
    shutil.copytree(samples.artifact("torch").root, place)
    name = by_target(finished, "onnxruntime")
    finished.choice(name).entry["runs"][0]["artifact"] = "store/torch"  # type: ignore[index]
    with pytest.raises(CallError, match="a module's parameters, which do not open without its code"):
        finished.pack(name, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_was_not_built_or_was_changed_is_not_packed(finished: Run, tmp_path: Path) -> None:
    failed = next(entry["id"] for entry in finished.result["candidates"] if entry["status"] == "failed")
    with pytest.raises(CallError, match="was not built: no such operator"):
        finished.pack(failed, tmp_path / "b")
    model = finished.root / "store" / "onnx" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="corrupt or was changed"):
        finished.pack(by_target(finished, "onnxruntime"), tmp_path / "b")
    shutil.rmtree(finished.root / BASELINE)
    with pytest.raises(CallError, match="could not be saved without its own code"):
        finished.pack(finished.result["baseline"]["id"], tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_saving_a_choice_spares_what_is_there(finished: Run, tmp_path: Path) -> None:
    assert finished.best is not None
    finished.best.save(str(tmp_path / "b"))
    with pytest.raises(CallError, match="exists already"):
        finished.best.save(tmp_path / "b")
    assert runs.BUNDLE == "bundle"
