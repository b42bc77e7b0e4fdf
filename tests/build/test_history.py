"""What a step did is kept beside its artefact, and comes back with it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from paretune.ask.knob import knob
from paretune.build import history
from paretune.build.candidate import Builder
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.errors import BuildError
from paretune.testing import samples


class Silent:
    def on(self, event: Any) -> None:
        del event


@dataclass(frozen=True)
class Telling:
    """Copies its input, and says what it did."""

    name: ClassVar[str] = "telling"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "prune"
    needs: ClassVar[dict[str, str]] = {}
    cost: ClassVar[float] = 1.0

    width: int = knob(3, "of the layer", low=1, high=8)

    def apply(self, artifact, fit):
        for name in artifact.files:
            (fit.out / name).write_bytes((artifact.root / name).read_bytes())
        fit.record(history.table(self.name, "widths", ["layer", "before", "after"], [["fc", 8, self.width]]))
        fit.record(history.curve(self.name, "", [1.0, math.nan], [None, 0.5], [0.1, 0.0], 2))
        return type(artifact).seal("onnx", fit.out, artifact.inputs, artifact.outputs)

    @classmethod
    def light(cls):
        return ()


def test_steps_tell_and_a_cached_step_tells_again(tmp_path: Path) -> None:
    before = samples.artifact("onnx")
    fit = samples.fit(before, tmp_path / "scratch")
    builder = Builder(Store(tmp_path / "store"), before, fit, Silent())
    made = builder.build(Recipe((Telling(), Telling(width=2))))
    assert [entry["rows"] for entry in made.history if entry["kind"] == "table"] == [[["fc", 8, 3]], [["fc", 8, 2]]]
    curves = [entry for entry in made.history if entry["kind"] == "curve"]
    assert curves[0]["losses"] == [1.0, None]  # JSON knows no NaN
    again = replace(builder, store=Store(tmp_path / "store")).build(Recipe((Telling(), Telling(width=2))))
    assert again.history == made.history
    assert again.digest == made.digest


def test_a_table_has_a_cell_for_every_column() -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        history.table("t", "widths", ["layer", "after"], [["fc"]])


def test_small_losses_keep_their_digits() -> None:
    entry = history.curve("t", "", [3.1234567e-7, 1234.5678], [None, None], [1e-9, 0.0], 2)
    assert (entry["losses"], entry["rates"]) == ([3.12346e-7, 1234.57], [1e-9, 0.0])


def test_numbers_of_numpy_become_plain_ones() -> None:
    entry = history.table("t", "widths", ["a", "b", "c"], [[np.int64(8), np.float32(math.nan), np.float32(0.5)]])
    assert json.loads(json.dumps(entry))["rows"] == [[8, None, 0.5]]


@dataclass(frozen=True)
class Odd(Telling):
    """Records what cannot be written."""

    name: ClassVar[str] = "odd"

    def apply(self, artifact, fit):
        fit.record({"kind": "table", "rows": object()})
        return super().apply(artifact, fit)


def test_what_cannot_be_written_is_a_finding_on_the_candidate(tmp_path: Path) -> None:
    before = samples.artifact("onnx")
    builder = Builder(Store(tmp_path / "store"), before, samples.fit(before, tmp_path / "scratch"), Silent())
    with pytest.raises(BuildError, match=r"odd: TypeError: Object of type object is not JSON"):
        builder.build(Recipe((Odd(),)))


@pytest.mark.parametrize("text", ["", "{", "3", "null"])
def test_a_history_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / history.FILE).write_text(text)
    assert history.read(tmp_path) == ()


def test_nothing_is_written_where_nothing_was_told(tmp_path: Path) -> None:
    history.write([], tmp_path)
    assert list(tmp_path.iterdir()) == []
    history.write([history.table("t", "x", ["a"], [["b"]])], tmp_path)
    assert json.loads((tmp_path / history.FILE).read_text())[0]["title"] == "x"
