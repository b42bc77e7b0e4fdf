"""A stored answer belongs to the score that gave it: whatever changes the score changes its fingerprint."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np

from paretune.check.answers import fingerprint_of

CODE = """
import numpy as np

THRESHOLD = {threshold}
WEIGHTS = np.array([1.0, {weight}])


def scaled(values):
    return values * {factor}


def hit(outputs, labels):
    return (scaled(outputs) @ WEIGHTS > THRESHOLD) == labels
"""


def score(into: Path, threshold: float = 0.5, weight: float = 2.0, factor: float = 1.0) -> Any:
    path = into / f"score_{threshold}_{weight}_{factor}.py"
    path.write_text(CODE.format(threshold=threshold, weight=weight, factor=factor))
    module = types.ModuleType("mine")
    module.__dict__["__name__"] = "mine"
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module.__dict__["hit"]


def test_a_value_a_function_or_an_array_that_the_score_uses_counts(tmp_path: Path) -> None:
    same = fingerprint_of(score(tmp_path))
    assert fingerprint_of(score(tmp_path)) == same
    assert fingerprint_of(score(tmp_path, threshold=0.6)) != same
    assert fingerprint_of(score(tmp_path, weight=3.0)) != same
    assert fingerprint_of(score(tmp_path, factor=2.0)) != same


def test_what_a_score_was_closed_over_counts() -> None:
    def made(values: np.ndarray) -> Any:
        return lambda outputs, labels: outputs[:, 0] * values[0]

    assert fingerprint_of(made(np.ones(2))) == fingerprint_of(made(np.ones(2)))
    assert fingerprint_of(made(np.ones(2))) != fingerprint_of(made(np.zeros(2)))
