"""``paretune scenarios``: a table by family, one JSON document, a page, and mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ("--target", "onnxruntime", "--recipe", "recipe.json", "--time", "20s", "--batch", "4")

pytestmark = pytest.mark.usefixtures("recipe")
MINE = (
    "from paretune.check.scenario import scenario\n\n@scenario('mine')\ndef half(image, rng):\n    return image / 2\n"
)


def test_a_bundle_is_shown_beside_its_original(
    workloads: Path, capsys: pytest.CaptureFixture[str], call: Callable[..., int], complaint: Callable[[], str]
) -> None:
    assert call("optimize", "works.py:good", "--budget", "drop<=5pp", *QUICK, "--out", "run") == 0
    capsys.readouterr()
    (workloads / "mine.py").write_text(MINE)
    given = (
        "run/bundle",
        "works.py:good",
        "--limit",
        "60",
        "--only",
        "fog@?,mine,full_batch",
        "--scenarios",
        "mine.py",
    )
    assert call("scenarios", *given, "--out", "found", "--json", "--baseline", "run/baseline") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((workloads / "found" / "scenarios.json").read_text())
    assert {one["family"] for one in document["families"]} == {"weather", "mine", "batch"}
    assert len(document["findings"]) == 7
    assert "plotly" in (workloads / "found" / "scenarios.html").read_text()
    assert call("scenarios", *given) == 0
    shown = capsys.readouterr().out
    assert "excess drop of the whole" in shown
    assert "weather" in shown
    for arguments, says in (
        (("run", "works.py:good"), "is no bundle"),
        (("run/bundle", "works.py:good", "--only", "nothing"), "no scenario matches"),
        (("run/bundle", "works.py:good", "--scenarios", "none.py"), "no such file"),
        (("run/bundle", "works.py:good", "--tolerance", "0"), "out of range"),
    ):
        assert call("scenarios", *arguments) == 2
        assert says in complaint()
