"""The three listings of what is installed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest


def test_listings(capsys: pytest.CaptureFixture[str], call: Callable[..., int]) -> None:
    for group, name in (("techniques", "onnx_int8_static"), ("targets", "openvino"), ("sources", "torch_module")):
        assert call(group, "--json") == 0
        entries = json.loads(capsys.readouterr().out)
        entry = next(entry for entry in entries if entry["name"] == name)
        assert {"name", "takes", "gives", "knobs", "installed", "needs"} <= set(entry)
        assert call(group) == 0
        assert name in capsys.readouterr().out


def test_knobs_that_many_have_are_told_once_and_with_a_name_all_are(
    capsys: pytest.CaptureFixture[str], call: Callable[..., int]
) -> None:
    assert call("techniques") == 0
    told = capsys.readouterr().out
    assert told.count("momentum") == 1
    assert "Use it when" in told
    assert call("techniques", "torch_distill") == 0
    alone = capsys.readouterr().out
    assert "momentum=0.9" in alone
    assert "onnx_fold" not in alone
    assert call("techniques", "torch_destill") == 2
    assert "torch_distill" in capsys.readouterr().err
