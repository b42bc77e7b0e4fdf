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
