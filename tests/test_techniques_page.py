"""docs/techniques.md, which `python benchmarks/techniques.py` writes, has every technique that ships, and all knobs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from paretune.ask import plugin
from paretune.ask.knob import knobs_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8")
found = importlib.util.spec_from_file_location("techniques", ROOT / "benchmarks" / "techniques.py")
assert found is not None
assert found.loader is not None
techniques = importlib.util.module_from_spec(found)
found.loader.exec_module(techniques)
KINDS = {name: plugin.load("techniques", name) for name in plugin.names("techniques")}
OWN = {name: kind for name, kind in KINDS.items() if kind.__module__.startswith("paretune.")}


@pytest.mark.parametrize("name", OWN)
def test_the_page_tells_of_every_technique_and_each_of_its_knobs(name: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| [`{name}`](#{name}) |"))
    assert OWN[name].use in row
    (section,) = (part for part in PAGE.split("\n## ")[1:] if part.partition("\n")[0] == name)
    told = [line for line in section.splitlines() if line.startswith("| `")]
    wanted = [techniques.knob_row(knob, said) for knob, said in knobs_of(OWN[name]).items()]
    assert told == wanted, "run python benchmarks/techniques.py"


def test_the_page_tells_of_no_other_technique() -> None:
    rows = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| [`")]
    heads = [line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")]
    assert sorted(rows) == sorted(heads) == sorted(OWN)
