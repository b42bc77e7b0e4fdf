"""Odd inputs and load, on real children: a batch may not change a row's answer, and nothing may die or lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.target import Target
from paretune.check import behaviour, pressure
from paretune.check.behaviour import Examination, Told, judged, questions, rows_of
from paretune.check.measurement import Subject
from paretune.check.probe import Probe
from paretune.check.stress import LAYOUTS, distance
from paretune.errors import MeasureError

Opened = Callable[[str], Probe]


@pytest.fixture
def opened(rogue: Callable[..., Target], model: Artifact, tmp_path: Path) -> Opened:
    def of(mode: str) -> Probe:
        return Probe(Subject(mode, model, rogue(mode)), 1, 6, tmp_path)

    return of


@pytest.fixture
def rows(model: Artifact) -> Any:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    return rows_of(Split.whole([(row, 0) for row in x], None, "heldout"), model, 7)


def asked(probe: Probe, rows: Any, model: Artifact, names: set[str] | None = None) -> dict[str, Told]:
    with probe:
        known = Examination.begin(probe, rows, model)
        wanted = [one for one in questions(rows, model) if names is None or one.name in names]
        return {one.name: known.put(one) for one in wanted}


def test_a_sound_runner_takes_everything(opened: Opened, rows: Any, model: Artifact) -> None:
    found = asked(opened("fine"), rows, model)
    assert len(found) >= 20
    legal = {one.name for one in questions(rows, model) if one.legal}
    assert {found[name].outcome for name in legal} == {"same", "answers"}
    assert found["float64_input"].outcome == found["extra_axis"].outcome == "refuses"
    assert found["full_batch"].deviation == 0


@pytest.mark.parametrize(
    ("mode", "caught", "unharmed"),
    [
        ("alone", {"full_batch", "other_place", "ragged_batch"}, set()),
        ("scale", {"loud_company", "full_batch"}, set()),
        ("drifts", {"asked_again"}, set()),
        ("small", {"one_more"}, {"full_batch"}),
        ("dies", {"nan_in_one_row"}, {"infinity_in_one_row"}),
        ("spills", {"nan_in_one_row"}, {"full_batch", "infinity_in_one_row"}),
        ("writes", {"readonly_layout"}, {"fortran_layout", "strided_layout"}),
    ],
)
def test_planted_faults_are_found(
    mode: str, caught: set[str], unharmed: set[str], opened: Opened, rows: Any, model: Artifact
) -> None:
    fine = asked(opened("fine"), rows, model, caught | unharmed)
    found = asked(opened(mode), rows, model, caught | unharmed)
    by_name = {one.name: one for one in questions(rows, model)}
    verdicts = {name: judged(by_name[name], fine[name], told).verdict for name, told in found.items()}
    assert {name for name, verdict in verdicts.items() if verdict == "breaks"} >= caught
    assert {name for name, verdict in verdicts.items() if verdict == "holds"} >= unharmed


def test_a_runner_that_is_another_one_afterwards_is_found(opened: Opened, rows: Any, model: Artifact) -> None:
    known = asked(opened("fickle"), rows[:1], model, {"nan_in_one_row"})
    assert known["nan_in_one_row"].outcome == "same", "full batches are as before"
    silent = asked(opened("lax"), rows, model, {"float16_input", "uint8_input", "one_feature_less"})
    assert silent["float16_input"].outcome == "same"
    assert silent["uint8_input"].outcome == "same"


def test_what_the_original_does_as_well_is_no_fault_of_the_candidate(rows: Any, model: Artifact) -> None:
    by_name = {one.name: one for one in questions(rows, model)}
    legal, malformed = by_name["nan_in_one_row"], by_name["float64_input"]
    fine, refuses, dies = Told("same", 0.0), Told("refuses", None, "no"), Told("dies")
    assert judged(legal, fine, dies).verdict == "breaks"
    assert judged(legal, dies, dies).verdict == "holds"
    assert "so does the original" in judged(legal, dies, dies).text
    assert judged(legal, refuses, dies).verdict == "breaks"
    assert judged(legal, fine, refuses).verdict == "breaks"
    assert judged(malformed, fine, refuses).verdict == "holds"
    assert judged(malformed, refuses, Told("differs", 0.5)).verdict == "breaks"
    assert "by 0.5" in judged(malformed, refuses, Told("differs", 0.5)).text


def test_words_get_questions_of_their_own_and_a_fixed_batch_no_others(rows: Any, model: Artifact) -> None:
    words = (np.random.default_rng(0).integers(2, 99, (7, 5)),)
    names = {one.name for one in questions(words, model)}
    assert {"beyond_the_vocabulary", "negative_word", "nothing_but_padding", "int32_input"} <= names
    assert not {"nan_in_one_row", "uint8_input", "int64_input"} & names
    fixed = Artifact("rogue", model.root, {}, (TensorSpec("x", "float32", (6, 4)),), model.outputs)
    legal = [one for one in questions(rows, fixed) if one.legal]
    assert {len(one.inputs[0]) for one in legal} == {6}
    assert "one_more" not in {one.name for one in legal}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_keeps_the_values(layout: str) -> None:
    for array in (np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.arange(3), np.zeros((0, 4), np.float32)):
        laid = LAYOUTS[layout](array)
        assert np.array_equal(laid, array)
        assert laid.dtype == array.dtype
    laid = LAYOUTS[layout](np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    flags = laid.flags
    odd = {
        "plain": True, "fortran": not flags.c_contiguous, "strided": not flags.c_contiguous,
        "reversed": laid.strides[-1] < 0, "readonly": not flags.writeable, "misaligned": not flags.aligned,
    }  # fmt: skip
    assert odd[layout]


def test_distances_know_nan_infinity_and_shapes() -> None:
    nan, inf, one = np.array([np.nan, 1.0]), np.array([np.inf, 1.0]), np.array([0.0, 1.5])
    assert distance([nan], [nan]) == distance([inf], [inf]) == 0
    assert distance([nan], [one]) == distance([inf], [one]) == float("inf")
    assert distance([np.array([1, 2])], [one]) == pytest.approx(1)
    assert distance([one], [one[:1]]) == distance([one], []) == float("inf")


def test_load_is_measured_and_answers_that_move_are_found(
    opened: Opened, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "ROUNDS", 5)
    batch = tuple(array[:6] for array in rows)
    by_name = {load.name: load for load in pressure.loads()}
    assert {"2_threads", "4_threads", "2_processes", "hogged_cores", "cold_start"} <= set(by_name)
    for name in ("4_threads", "2_processes", "hogged_cores", "cold_start"):
        figures = pressure.measured(by_name[name], lambda: opened("fine"), batch)
        assert not isinstance(figures, str), name
        assert figures["quiet_ms"] > 0
        assert figures["pressed_ms"] > 0
        assert figures["deviation"] == 0
    fine = pressure.measured(by_name["4_threads"], lambda: opened("fine"), batch)
    crowded = pressure.measured(by_name["4_threads"], lambda: opened("crowded"), batch)
    found = pressure.judged(by_name["4_threads"], fine, crowded)
    assert found.verdict == "breaks"
    assert "answers move" in found.text
    assert pressure.judged(by_name["4_threads"], crowded, crowded).verdict == "holds"


def test_a_subject_that_cannot_be_measured_is_told(
    opened: Opened, rows: Any, model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "ROUNDS", 2)
    bad = (np.zeros((6, 4)),)
    load = pressure.loads()[0]
    figures = pressure.measured(load, lambda: opened("fine"), bad)
    assert isinstance(figures, str)
    assert "takes float32" in figures
    fine = pressure.measured(load, lambda: opened("fine"), (rows[0][:6],))
    assert pressure.judged(load, fine, figures).verdict == "breaks"
    with opened("fine") as probe, pytest.raises(MeasureError, match=r"does not answer plain rows: .*takes float32"):
        Examination.begin(probe, (np.zeros((7, 4)),), model)
    assert behaviour.TOLERANCE == 0.01
