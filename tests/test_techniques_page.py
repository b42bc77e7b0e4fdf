"""docs/techniques.md, which `python benchmarks/techniques.py` writes, has every technique that ships, and all knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paretune.ask import plugin
from paretune.ask.knob import knobs_of

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "techniques.md").read_text(encoding="utf-8")
KINDS = {name: plugin.load("techniques", name) for name in plugin.names("techniques")}
OWN = {name: kind for name, kind in KINDS.items() if kind.__module__.startswith("paretune.")}


@pytest.mark.parametrize("name", OWN)
def test_the_page_tells_of_every_technique_and_each_of_its_knobs(name: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| [`{name}`](#{name}) |"))
    assert OWN[name].use in row
    _, _, rest = PAGE.partition(f"\n## {name}\n")
    section = rest.partition("\n## ")[0]
    told = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert told == list(knobs_of(OWN[name]))
    for knob, said in knobs_of(OWN[name]).items():
        assert said.describe()["help"] in section, knob


def test_every_technique_of_the_table_has_a_section() -> None:
    rows: list[Any] = [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| [`")]
    assert sorted(rows) == sorted(OWN)
