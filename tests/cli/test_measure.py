"""``paretune measure`` on what a run left, whole and tampered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ("--target", "onnxruntime", "--recipe", "recipe.json", "--time", "20s", "--batch", "4")

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
