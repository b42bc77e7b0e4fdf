"""How a command ends: whatever is raised becomes an exit status and one line; stdout is kept for the document."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from paretune.cli import ending
from paretune.errors import ArtifactError, BudgetError, CallError


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CallError("is wrong", where="--flag", do="mend it"), 2, "--flag: is wrong — mend it"),
        (ArtifactError("is corrupt", where="model.onnx"), 1, "model.onnx: is corrupt"),
        (KeyError("x\ny"), 1, "something unforeseen: KeyError"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_whatever_is_raised_is_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending.guarded(raising(error)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paretune: error: ")
    assert words in line


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending.guarded(raising(ValueError("odd")), debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_exit_status_passes_through() -> None:
    assert ending.guarded(lambda: None) == 0
    assert ending.guarded(raising(SystemExit(ending.MEETS_NONE))) == ending.MEETS_NONE
    assert ending.guarded(lambda: ending.MEETS_NONE) == ending.MEETS_NONE
    assert ending.guarded(raising(SystemExit("words"))) == 1


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending.guarded(lambda: ending.INTERRUPTED) == 1
    assert "--resume goes on" in capsys.readouterr().err


def test_with_json_an_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = BudgetError.at("p95<=5mz", 6, "unknown unit 'mz'", "p95 takes ms")
    assert ending.guarded(raising(error), json=True) == 2
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "error": {
            "what": "unknown unit 'mz' at character 7",
            "where": "budget 'p95<=5mz'",
            "do": "p95 takes ms",
            "exit": 2,
        }
    }
    line, *quote = told.err.splitlines()
    assert line == f"paretune: error: {error}"
    assert quote == ["    p95<=5mz", "          ^"]


def test_only_the_document_reaches_stdout() -> None:
    code = (
        "import os, sys\n"
        "from paretune.cli import ending\n"
        "with ending.stdout_for_the_document(True):\n"
        "    print('a workload speaks')\n"
        "    os.write(1, b'a runtime speaks\\n')\n"
        "    ending.show({'a': 1})\n"
        "print('afterwards')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    document, end, after = done.stdout.partition("afterwards")
    assert json.loads(document) == {"a": 1}
    assert (end, after) == ("afterwards", "\n")
    assert "a workload speaks" in done.stderr
    assert "a runtime speaks" in done.stderr
