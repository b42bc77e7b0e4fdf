"""Who hears of a run, and what a person reads who named no observer."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import pytest

from paretune.ask.event import Event
from paretune.journal import Lines, listeners


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a script whose output goes to a file."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


def test_without_a_person_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listeners(None) == ()
    monkeypatch.setattr(sys, "stderr", None)
    assert listeners(None) == (), "as in a program without a console"


@pytest.mark.parametrize("where", ["terminal", "prompt", "notebook"])
def test_a_person_reads_lines_unless_observers_are_given(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "terminal":
        monkeypatch.setattr(sys, "stderr", Screen())
    elif where == "prompt":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    (lines,) = listeners(None)
    assert isinstance(lines, Lines)
    assert listeners(()) == ()
    assert listeners([lines, lines]) == (lines, lines)


def test_lines_say_what_stays_and_not_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Screen()
    monkeypatch.setattr(sys, "stderr", page)
    data = {"title": "quick", "status": "built"}
    for event in (
        Event("stage", "measuring"),
        Event("progress", "50 %"),
        Event("step", "onnx_fold"),
        Event("candidate", "2.50× as fast", data),
        Event("candidate", "no such operator", {**data, "status": "failed"}),
        Event("candidate", "2.40× as fast", {**data, "stage": "confirmed"}),
        Event("warning", "no training data"),
        Event("end", "done"),
    ):
        Lines().on(event)
    assert page.getvalue().splitlines() == [
        "· measuring",
        "· quick: 2.50× as fast",
        "× quick: no such operator",
        "✓ quick: 2.40× as fast",
        "! no training data",
    ]
