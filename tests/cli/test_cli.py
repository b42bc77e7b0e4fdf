"""The program as a whole: its verbs, its help and what that costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

VERBS = ["optimize", "train", "batch-size", "demo", "measure", "report", "pack", "techniques", "targets", "sources"]


def test_the_verbs_are_listed_in_the_order_of_use(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    page = capsys.readouterr().out
    page = page[page.index("Commands") :]
    listed = [line.split()[1] for line in page.splitlines() if len(line) > 2 and line[0] == "│" and line[2] != " "]
    assert [word for word in listed if word in VERBS] == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_options_that_all_share(
    verb: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(verb, "--help") == 0
    page = capsys.readouterr().out
    assert "--json" in page
    assert "--debug" in page


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\n"
        "from paretune.cli import main\n"
        "try:\n    main(['optimize', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = ['torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'plotly', 'scipy', 'sklearn', 'numpy']\n"
        "print(*[name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr.strip() == ""


def test_the_version_and_the_module_are_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "paretune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"paretune {version('paretune')}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("optimise",), "Did you mean 'optimize'"),
        (("techniques", "--nope"), "No such option: --nope"),
        (("demo", "--seed", "-1"), "--seed"),
        (("report", "a", "b"), "b"),
    ],
)
def test_a_call_that_is_not_understood_is_one_line(
    arguments: tuple[str, ...],
    words: str,
    call: Callable[..., int],
    complaint: Callable[[], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*arguments) == 2
    said = complaint()
    assert words in said
    assert "--help" in said
    if arguments != ("optimise",):
        assert call(*arguments, "--json") == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["exit"] == 2
        assert words in error["what"]


@pytest.mark.parametrize("arguments", [(), ("optimize",), ("pack",)])
def test_without_arguments_the_help_is_shown(
    arguments: tuple[str, ...], call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.out
    assert "error" not in shown.err
