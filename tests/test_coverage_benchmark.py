"""The statistics' evidence can be made again, and its tables have their places in the document."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAST = "flips-pp,flips-relative,scores-pp,sets,percentiles-few,ratios,selection"


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "coverage.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def markers() -> list[str]:
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    return re.findall(r"<!-- begin ([\w-]+) -->", text)


def test_tables_are_the_same_again_and_are_put_between_their_markers(tmp_path: Path) -> None:
    document = tmp_path / "statistics.md"
    document.write_text((ROOT / "docs" / "statistics.md").read_text(encoding="utf-8"), encoding="utf-8")
    again = [re.sub(r", \d+ s$", "", run("--small", "--only", FAST), flags=re.MULTILINE) for _ in range(2)]
    assert again[0] == again[1]
    found = run("--small", "--only", "needed", "--document", str(document))
    text = document.read_text(encoding="utf-8")
    assert "≤ 1 pp" in found
    assert text.count("<!-- begin needed -->") == 1
    assert found.split("\n\n", 1)[1].strip() in text
    assert "381" in found, "no flips, one point"


def test_every_table_has_its_place_and_every_place_its_table() -> None:
    listed = re.findall(
        r'^    "([\w-]+)": ', (ROOT / "benchmarks" / "coverage.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(markers())


def test_no_place_is_empty() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- begin ([\w-]+) -->\s*<!-- end", text) == []


@pytest.mark.slow
def test_no_accuracy_cell_fails() -> None:
    found = run("--quick")
    parts = dict(re.findall(r"^## ([\w-]+), \d+ s\n(.*?)(?=^## |\Z)", found, re.MULTILINE | re.DOTALL))
    for name in ("flips-pp", "flips-relative", "scores-pp", "sets"):
        assert "none fails" in parts[name], parts[name]
    sequence = [line for line in parts["selection"].splitlines() if "fixed sequence" in line]
    assert sequence
    assert not any("**" in line for line in sequence)
