"""What the README and docs/architecture.md show, runs: Python blocks whole, commands against the help they have."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paretune.ask.budget import Budget
from paretune.ask.workload import load
from paretune.build.candidate import read_recipes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "architecture.md": ARCHITECTURE}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line) for line in lines]


def test_the_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["run"].result["best"] is not None
    assert namespace["logits"].shape == (8, 10)
    labels = [int(label) for _, label in namespace["heldout"][:8]]
    assert (namespace["logits"].argmax(1) == labels).sum() >= 7
    assert (tmp_path / "runs" / "tour" / "report.html").is_file()


def test_the_technique_in_the_architecture_keeps_to_the_protocol(tmp_path: Path) -> None:
    (block,) = blocks(ARCHITECTURE, "python")
    (tmp_path / "mine.py").write_text(block)
    # in a process of its own: a dataclass of a module that was never imported cannot be looked up
    (tmp_path / "test_mine.py").write_text(
        "from mine import OnnxRound\nfrom paretune.testing import TechniqueConformance\n\n\n"
        "class TestOnnxRound(TechniqueConformance):\n    technique = OnnxRound\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    program = str(Path(sys.executable).with_name("paretune"))
    names = {words[1] for page in PAGES.values() for words in commands(page)}
    plain = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return {
        name: subprocess.run([program, name, "--help"], capture_output=True, text=True, check=True, env=plain).stdout
        for name in names
    }


@pytest.mark.parametrize("words", [words for page in PAGES.values() for words in commands(page)], ids=" ".join)
def test_every_command_and_flag_shown_exists(words: list[str], helps: dict[str, str]) -> None:
    assert words[0] == "paretune"
    known = set(re.findall(r"--[a-z][a-z-]*", helps[words[1]]))
    assert {word for word in words if word.startswith("--")} <= known
    if "--budget" in words:
        assert Budget.parse(words[words.index("--budget") + 1]).limits
    for place, _, name in (word.rpartition(":") for word in words if ".py:" in word):
        assert hasattr(load(f"{ROOT / place}:{name}"), "heldout")


def test_every_limit_shown_parses() -> None:
    table = README[README.index("| limit |") : README.index("## What you get")]
    shown = re.findall(r"`([^`]*(?:<=|>=)[^`]*)`", table)
    assert len(shown) >= 5
    for limits in shown:
        assert Budget.parse(limits).limits, limits


def test_the_recipes_shown_are_read(tmp_path: Path) -> None:
    shown = blocks(README, "json")
    assert shown
    for block in shown:
        (tmp_path / "recipe.json").write_text(block)
        found = read_recipes(tmp_path / "recipe.json")
        assert len(found) == len(json.loads(block)["candidates"])
        assert all(candidate.recipe.gives("torch") in candidate.target.accepts for candidate in found)


def test_the_two_commands_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in ("demo", "test"):
        assert f"make {name}" in README
        assert name in targets


def test_the_table_of_the_public_names_is_true() -> None:
    import paretune

    for name in re.findall(r"paretune\.([A-Za-z]+)\(", "".join(blocks(README, "python"))):
        assert name in paretune.__all__
