"""``paretune measure`` on what a run left, whole and tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

QUICK = ("--target", "onnxruntime", "--recipe", "recipe.json", "--time", "20s", "--batch", "4")
CONTENTS = {"nothing": b"", "words": b"this is no model", "a pickle": b"\x80\x04N."}

pytestmark = pytest.mark.usefixtures("recipe")


def test_a_tampered_bundle_is_refused(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    assert call("optimize", "works.py:good", "--budget", "drop<=5pp", *QUICK, "--out", "run") == 0
    capsys.readouterr()
    model = workloads / "run" / "bundle" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\x00")
    assert call("measure", "run/bundle") == 1
    assert "sha256" in complaint()


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_bad_file_ends_with_1_and_a_missing_one_with_2(
    content: str, name: str, workloads: Path, call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    (workloads / name).write_bytes(CONTENTS[content])
    np.savez(workloads / "data.npz", image=np.zeros((4, 1, 8, 8), np.float32), label=np.zeros(4, np.int64))
    optimize = ("--data", "data.npz", "--target", "onnxruntime", "--out", "run")
    for verb in (("measure", name), ("optimize", name, *optimize)):
        assert call(*verb) == 1
        assert name in complaint()
        (workloads / name).rename(workloads / "aside")
        assert call(*verb) == 2
        assert name in complaint()
        (workloads / "aside").rename(workloads / name)
    assert not (workloads / "run").exists()


@pytest.fixture
def model(workloads: Path) -> str:
    from paretune.testing import samples

    shutil.copyfile(samples.artifact("onnx").path(".onnx"), workloads / "net.onnx")
    return "net.onnx"


def test_a_load_is_shown_and_is_a_document(
    model: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--load", "server", "--rate", "100", "--seconds", "0.3")
    assert call("measure", model, *quick) == 0
    shown = capsys.readouterr().out
    assert "net.onnx on onnxruntime, server" in shown
    assert "30 queries of 1 sample" in shown
    assert call("measure", model, *quick, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["queries"], told["rate_per_s"], told["rate_from"]) == (30, 100.0, "as asked")
    assert told["early_stopping_ms"]["p50"] >= told["latency_ms"]["p50"]["value"]
    assert told["early_stopping_ms"]["p90"] is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--rate", "3"), "--rate: belongs to a load"),
        (("--bound-ms", "3"), "--bound-ms: belongs to a load"),
        (("--seconds", "3"), "--seconds: belongs to a load"),
        (("--load", "server", "--batch", "8"), "a load has no batch sizes"),
        (("--load", "flood"), "no load shape 'flood'"),
        (("--load", "offline", "--rate", "3"), "offline has no rate"),
        (("--load", "server", "--seconds", "0"), "no time to measure for"),
    ],
)
def test_a_slip_with_a_load_is_told(
    wrong: tuple[str, ...], says: str, model: str, call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    assert call("measure", model, *wrong) == 2
    assert says in complaint()
