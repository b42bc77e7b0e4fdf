"""What the tests of the command line share: a call in this process, and the one line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune.check import plan
from paretune.cli import main

RECIPE = {"candidates": [{"recipe": [{"technique": "torch_to_onnx"}], "target": "onnxruntime"}]}


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three short sessions confirm: what the command line says does not hang on how sure it is."""
    monkeypatch.setattr(plan, "SHORTER", ((3, 2, 8),))


@pytest.fixture
def call() -> Callable[..., int]:
    """Calls the command line; its exit status."""

    def called(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return called


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line on stderr that says what is wrong."""

    def said() -> str:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("paretune: error: ")]
        assert len(lines) == 1, lines
        return lines[0]

    return said


@pytest.fixture
def recipe(workloads: Path) -> None:
    """A fixed list of one candidate: most of what is asked here does not hang on what is tried."""
    (workloads / "recipe.json").write_text(json.dumps(RECIPE))
