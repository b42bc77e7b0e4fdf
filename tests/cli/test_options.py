"""Options that several verbs take, and the file that gives their defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune.cli import options
from paretune.errors import CallError


@pytest.mark.usefixtures("recipe")
def test_a_config_gives_defaults_and_flags_win(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    (workloads / "paretune.toml").write_text(
        'seed = 5\n[optimize]\nbudget = "drop<=3pp"\ntarget = ["onnxruntime"]\nrecipe = "recipe.json"\ntime = "20s"\n'
    )
    assert call("optimize", "works.py:good", "--config", "paretune.toml", "--out", "run", "--seed", "6", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["budget"]["text"] == "drop<=3pp"
    assert json.loads((workloads / "run" / "run.json").read_text())["seed"] == 6
    (workloads / "paretune.toml").write_text("colour = 1\n")
    assert call("optimize", "works.py:good", "--config", "paretune.toml") == 2
    assert "no setting 'colour'" in complaint()


def test_lists_are_read_and_none_stays_none() -> None:
    assert options.split(None) is None
    assert options.split(" torch, onnxruntime,") == ["torch", "onnxruntime"]
    assert options.sizes("1,32") == [1, 32]
    assert options.kept(["conv*=fp32", "a=b=fp32"]) == ["conv*", "a=b"]


@pytest.mark.parametrize(
    ("read", "text", "flag"),
    [
        (options.sizes, "1,many", "--batch"),
        (options.sizes, "", "--batch"),
        (options.kept, ["conv"], "--keep"),
        (options.kept, ["=fp32"], "--keep"),
        (options.kept, ["conv=fp16"], "--keep"),
    ],
)
def test_what_cannot_be_read_names_the_flag(read: Callable[[object], object], text: object, flag: str) -> None:
    with pytest.raises(CallError) as caught:
        read(text)
    assert caught.value.where == flag
    assert caught.value.do
