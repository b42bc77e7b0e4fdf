"""``paretune measure`` on what a run left, whole and tampered with."""

from __future__ import annotations

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
