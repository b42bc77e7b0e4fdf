"""``paretune report`` and ``paretune pack`` on a finished run's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "deliver" / "result_example.json"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "run"
    root.mkdir()
    (root / "result.json").write_text(EXAMPLE.read_text())
    return root


def test_a_run_is_shown_and_its_page_written(
    run: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(EXAMPLE.read_text())
    assert call("report", "run") == 0
    shown = capsys.readouterr()
    assert f"meets {result['budget']['text']}" in shown.out
    assert "report: run/report.html" in shown.err
    assert result["best"] in (run / "report.html").read_text()
    assert call("report", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == result


@pytest.mark.parametrize("arguments", [("report", "nowhere"), ("pack", "nowhere", "--id", "a", "--out", "b")])
@pytest.mark.usefixtures("run")
def test_what_is_no_run_is_a_wrong_call(
    arguments: tuple[str, ...], call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    assert call(*arguments) == 2
    assert "nowhere" in complaint()


@pytest.mark.usefixtures("run")
def test_a_bundle_is_not_written_over_something(call: Callable[..., int], complaint: Callable[[], str]) -> None:
    best = json.loads(EXAMPLE.read_text())["best"]
    assert call("pack", "run", "--id", best, "--out", "run") == 2
    assert "exists already" in complaint()
