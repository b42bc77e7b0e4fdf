"""``paretune optimize`` as a person uses it, right and wrong: exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paretune.build.candidate import read_recipes
from paretune.cli.optimize import RECIPE
from paretune.deliver import result as results
from paretune.deliver.run import Run, read_log

QUICK = ("--target", "onnxruntime", "--recipe", "recipe.json", "--time", "20s", "--batch", "4")

pytestmark = pytest.mark.usefixtures("recipe")


def test_from_a_module_to_a_bundle(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    quick = ("--target", "onnxruntime", "--only", "onnx_int8_static", "--time", "2m", "--batch", "4")
    (workloads / "prices.toml").write_text('currency = "EUR"\n[machine]\nper_hour = 0.34\nper_kwh = 0.25\n')
    asked = ("--budget", "drop<=2pp, energy<=1J, cost<=1", "--prices", "prices.toml", "--watts-per-core", "4")
    assert call("optimize", "works.py:good", *asked, *quick, "--out", "run", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == results.read(workloads / "run" / "result.json")
    assert shown["best"]
    best = next(entry for entry in shown["candidates"] if entry["id"] == shown["best"])
    assert best["verdict"] == "meets"
    assert best["data"] == "heldout"
    assert best["runs"][0]["speedup"]["value"] > 1
    assert shown["budget"]["rates"]["watts_per_core"] == 4
    for entry in (shown["baseline"], best):
        told = entry["runs"][0]
        assert told["energy_j"]["kind"] in ("measured", "estimated")
        assert 0 < told["energy_j"]["low"] <= told["energy_j"]["value"] <= told["energy_j"]["high"] < 1
        assert told["energy_j"]["per_example"] == pytest.approx(told["energy_j"]["value"] / 4)
        assert 0 < told["cost"]["per_thousand"]["value"] < told["cost"]["per_thousand_correct"]["value"] * 1.0001
        assert told["disturbance"]["others"] >= 0
    said = {finding["limit"]: finding for finding in best["findings"]}
    assert {finding["verdict"] for finding in said.values()} == {"meets"}
    kind = best["runs"][0]["energy_j"]["kind"]
    assert ("not measured" in said["energy<=1J"]["text"]) == (kind == "estimated"), "what decided is said"
    assert "cost of right ones" in (workloads / "run" / "report.html").read_text()
    assert shown["seconds"]["overhead"] < shown["seconds"]["total"]
    for name in (
        "run.json",
        "log.jsonl",
        "report.html",
        "bundle/bundle.json",
        "baseline/model.pt2",
        "bundle/model.onnx",
    ):
        assert (workloads / "run" / name).is_file(), name
    assert json.loads((workloads / "run" / "run.json").read_text())["seed"] == 0

    assert call("report", "run") == 0
    assert "meets drop<=2pp" in capsys.readouterr().out
    assert call("measure", "run/bundle", "works.py:good", "--batch", "4", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["scores"]["accuracy"]["value"] == pytest.approx(best["scores"]["accuracy"]["value"], abs=1e-12)
    assert again["runs"][0]["latency_ms"]["p50"]["value"] > 0
    other = shown["reference"]
    assert call("pack", "run", "--id", other, "--out", "other") == 0
    assert (workloads / "other" / "model.onnx").is_file()
    assert call("pack", "run", "--id", "zzz", "--out", "third") == 2
    assert "no candidate 'zzz'" in complaint()

    assert call("optimize", "works.py:good", *quick, "--out", "run") == 2
    assert "--resume" in complaint()
    assert call("optimize", "works.py:good", "--budget", "drop<=2pp", *quick, "--out", "run", "--resume", "--json") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed["front"] == shown["front"]
    steps = [event for event in read_log(workloads / "run") if event["event"] == "step"]
    done = [event["key"] for event in steps if not event["cached"]]
    assert len(done) == len(set(done)), "a finished step was repeated"


def test_from_an_onnx_file_and_arrays(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    script = (
        "import works, numpy as np, torch\n"
        "torch.onnx.export(works.net, (torch.zeros(2, 1, 8, 8),), 'model.onnx', dynamo=True, input_names=['image'],"
        " dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))\n"
        "np.savez('data.npz', image=works.images, label=works.labels)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    asked = ("optimize", "model.onnx", "--data", "data.npz", "--target", "openvino", "--time", "20s", "--out", "run")
    assert call(*asked, "--budget", "p95<=50ms, size<=5MB", "--without", "onnx_*", "--json") in (0, 3)
    result = json.loads(capsys.readouterr().out)
    assert result["baseline"]["target"] == "onnxruntime"
    assert any("no training data" in warning for warning in result["warnings"])
    tried = {step["technique"] for entry in result["candidates"] for step in entry["recipe"]}
    assert "onnx_to_openvino" not in tried, "--without onnx_* leaves conversions by that name out too"
    assert call("measure", "model.onnx", "--soak") == 0
    told = capsys.readouterr().out
    for words in ("p50", "mJ", "energy: ", "while timing batch 1: load", "inferences of one batch"):
        assert words in told, told
    assert "memory leaks" not in told


def test_the_help_shows_a_recipe_that_can_be_read(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert call("optimize", "--help") == 0
    assert RECIPE in capsys.readouterr().out
    (workloads / "shown.json").write_text(RECIPE)
    (candidate,) = read_recipes(workloads / "shown.json")
    assert candidate.title == "torch_to_onnx → onnxruntime"


def test_nothing_meets(workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int]) -> None:
    code = call("optimize", "works.py:good", "--budget", "p50<=1us, drop<=2pp", *QUICK, "--out", "run")
    assert code == 3
    assert "p50<=1us binds" in capsys.readouterr().out
    run = Run.open(workloads / "run")
    assert run.best is None
    assert run.result["nearest"]
    assert not (workloads / "run" / "bundle").exists()
    near = json.loads((workloads / "run" / "nearest" / "bundle.json").read_text())
    assert near["id"] == run.result["nearest"]
    assert (workloads / "run" / "nearest" / "report.html").is_file()
    assert len(repr(run)) < 1000


BAD = {
    "no workload": (("nonsense",), "does not name a workload"),
    "no file": (("nowhere.py:good",), "there is no such file"),
    "no name": (("works.py:goood",), "has nothing named 'goood'"),
    "not a workload": (("works.py:number",), "not a paretune.Workload"),
    "factory that fails": (("works.py:broken",), "no data today"),
    "one example": (("works.py:one",), "holds one example"),
    "no examples": (("works.py:empty",), "holds no examples"),
    "no labels": (("works.py:unlabelled",), "no labels"),
    "NaN in held-out data": (("works.py:missing",), "not finite"),
    "a model and no workload": (("works.py:net",), "not a paretune.Workload"),
    "seed": (("works.py:good", "--seed", "-1"), "seed"),
    "dtype": (("works.py:double",), "float64"),
    "shape of held-out data alone": (("works.py:wrong",), "heldout"),
    "shape": (("works.py:shaped",), "heldout"),
    "not-a-number scores": (("works.py:not_a_score",), "not finite"),
    "one score for all": (("works.py:set_level",), "one number for every example"),
    "a score that fails": (("works.py:raising",), "nonsense"),
    "no road": (("works.py:branching", "--target", "onnxruntime"), "no road leads"),
    "budget": (("works.py:good", "--budget", "drop<=1pp, p95<=5"), "character 18"),
    "contradiction": (("works.py:good", "--budget", "drop<=1pp, drop<=2pp"), "contradict"),
    "target": (("works.py:good", "--target", "onnxruntme"), "did you mean onnxruntime?"),
    "technique": (("works.py:good", "--only", "onnx_int9"), "no technique"),
    "time": (("works.py:good", "--time", "soon"), "no length of time"),
    "batch": (("works.py:good", "--batch", "0"), "no batch sizes"),
    "objective": (("works.py:good", "--minimize", "joy"), "cannot be minimised"),
    "keep": (("works.py:good", "--keep", "conv"), "PATTERN=fp32"),
    "recipe": (("works.py:good", "--recipe", "works.py"), "cannot be read as JSON"),
    "model without data": (("model.onnx",), "--data"),
    "no data file": (("works.py", "--data", "none.npz"), "there is no such file"),
    "cost without prices": (("works.py:good", "--budget", "cost<=0.1"), "give --prices"),
    "prices": (("works.py:good", "--prices", "works.py"), "per_hour = 0.34"),
    "watts": (("works.py:good", "--watts-per-core", "-1"), "watts"),
    "config": (("works.py:good", "--config", "none.toml"), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line(
    case: str,
    workloads: Path,
    call: Callable[..., int],
    complaint: Callable[[], str],
) -> None:
    arguments, words = BAD[case]
    quick = () if "--target" in arguments else ("--target", "onnxruntime")
    code = call("optimize", *arguments, *quick, "--out", "run")
    said = complaint()
    assert words in said
    assert code in (1, 2)
    assert "Traceback" not in said
    assert not (workloads / "run" / "result.json").exists()
    assert not (workloads / "run" / "bundle").exists()
    if code == 2:
        assert not (workloads / "run").exists(), "the mended call may have the same --out"


def test_a_pickle_is_refused_unopened(workloads: Path, call: Callable[..., int], complaint: Callable[[], str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, ("exploded",))

    (workloads / "model.pt").write_bytes(pickle.dumps(Bomb()))
    assert call("optimize", "works.py:pickled", "--out", "run") == 2
    assert "pickle" in complaint()
    assert not (workloads / "exploded").exists()


def test_training_that_overlaps_is_told(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    assert call("optimize", "works.py:overlapping", "--budget", "drop<=5pp", *QUICK, "--out", "run", "--json") in (0, 3)
    captured = capsys.readouterr()
    assert any("also stand in held-out" in warning for warning in json.loads(captured.out)["warnings"])


def test_resume_starts_what_is_not_there_and_tells_a_tampered_store(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    asked = ("optimize", "works.py:good", *QUICK, "--out", "run", "--resume")
    assert call(*asked) in (0, 3)
    told = "there is no run at run to go on with: it starts here"
    assert [line for line in capsys.readouterr().err.splitlines() if "no run" in line] == [f"! {told}"]
    assert told not in json.loads((workloads / "run" / "result.json").read_text())["warnings"]
    model = next((workloads / "run" / "store").rglob("model.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    assert call(*asked) == 1
    said = capsys.readouterr().err
    assert "no run" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("paretune: error: ")]
    assert "sha256" in line
    assert "model.onnx" in line


def test_a_run_that_is_gone_on_with_outlives_a_mistake(
    workloads: Path, call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    (workloads / "runs" / "empty-1").mkdir(parents=True)
    call_written = json.dumps({"workload": "works.py:empty"})
    (workloads / "runs" / "empty-1" / "run.json").write_text(call_written)
    assert call("optimize", "works.py:empty", "--target", "onnxruntime", "--resume") == 2
    assert "holds no examples" in complaint()
    assert (workloads / "runs" / "empty-1" / "run.json").is_file()


def test_an_unwritable_place(workloads: Path, call: Callable[..., int], complaint: Callable[[], str]) -> None:
    (workloads / "file").write_text("")
    assert call("optimize", "works.py:good", "--out", "file/run") == 1
    assert "file" in complaint()


def test_ctrl_c_ends_with_the_best_so_far(workloads: Path) -> None:
    command = [sys.executable, "-m", "paretune", "optimize", "works.py:good", "--budget", "drop<=5pp", "--time", "5m"]
    process = subprocess.Popen(
        [*command, "--target", "onnxruntime,openvino", "--out", "run"], stderr=subprocess.PIPE, text=True
    )
    log = workloads / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        events = read_log(workloads / "run") if log.exists() else []
        if sum(event["event"] == "candidate" for event in events) >= 3:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=150)
    assert process.returncode in (0, 3), said
    result = Run.open(workloads / "run").result
    assert result["stopped"] == "interrupted"
    assert any(entry["confirmed"] for entry in result["candidates"])


def test_labels_saved_as_objects_are_refused(
    workloads: Path, call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    (workloads / "model.onnx").write_bytes(b"\x80\x04.")
    np.savez(workloads / "data.npz", label=np.array([{}], dtype=object))
    assert call("optimize", "model.onnx", "--data", "data.npz", "--out", "run") == 2
    assert "data.npz" in complaint()
