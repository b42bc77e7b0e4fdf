"""A stored answer belongs to the score that gave it: whatever changes the score changes its fingerprint."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score, recall_score

from paretune.ask.code import fingerprint_of
from paretune.ask.set_score import SetScore

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


def test_a_global_of_an_attributes_name_does_not_count() -> None:
    def made(n: int, inner: int = 1) -> Any:
        space: dict[str, Any] = {"__name__": "mine", "n": n, "inner": inner}
        exec("def score(outputs, labels):\n    def one(x):\n        return x * inner\n    return one(outputs.n)", space)
        return space["score"]

    assert fingerprint_of(made(1)) == fingerprint_of(made(2))
    assert fingerprint_of(made(1)) != fingerprint_of(made(1, inner=2)), "a function within takes it from the module"


def test_constants_within_and_sets_of_them_count() -> None:
    def made(text: str) -> Any:
        space: dict[str, Any] = {"__name__": "mine"}
        exec(f"def score(outputs, labels):\n    return {text}", space)
        return space["score"]

    bodies = ("labels in {1, 2}", "labels in {1, 3}", "[x + 1 for x in labels]", "[x + 2 for x in labels]")
    texts = [fingerprint_of(made(body)) for body in bodies]
    assert len(set(texts)) == len(texts)
    assert texts[0] == fingerprint_of(made("labels in {1, 2}"))


def test_what_a_score_was_closed_over_counts() -> None:
    def made(values: np.ndarray) -> Any:
        return lambda outputs, labels: outputs[:, 0] * values[0]

    assert fingerprint_of(made(np.ones(2))) == fingerprint_of(made(np.ones(2)))
    assert fingerprint_of(made(np.ones(2))) != fingerprint_of(made(np.zeros(2)))


def test_the_kind_of_score_and_a_function_that_is_handed_on_count() -> None:
    def flipped(metric: Any) -> Any:
        return lambda kept, labels: metric(labels, kept)

    made = [SetScore(flipped(f1_score)), SetScore(flipped(recall_score)), SetScore(f1_score), f1_score]
    made += [SetScore(f1_score, np.ravel), SetScore(f1_score, best=1.0)]
    made += [functools.partial(max, key=f1_score), functools.partial(max, key=recall_score)]
    made += [functools.partial(np.quantile, np.float64(0.5)), functools.partial(np.quantile, np.float64(0.6))]
    digests = [fingerprint_of(one) for one in made]
    assert len(set(digests)) == len(made)
    assert digests == [fingerprint_of(one) for one in made]
    assert fingerprint_of(SetScore(flipped(f1_score))) == digests[0]


def test_functions_without_a_source_are_told_apart() -> None:
    one, other = (eval(f"lambda outputs, labels: outputs > {limit}") for limit in (1, 2))
    assert fingerprint_of(one) != fingerprint_of(other)
    assert fingerprint_of(one) == fingerprint_of(eval("lambda outputs, labels: outputs > 1"))


def test_what_holds_itself_is_read_once() -> None:
    ring: list[Any] = [1]
    ring.append(ring)

    def score(outputs: Any, labels: Any) -> Any:
        return outputs * len(ring)

    first = fingerprint_of(score)
    ring[0] = 2
    assert fingerprint_of(score) != first


def test_the_weights_of_a_loss_count() -> None:
    def made(weight: float) -> Any:
        return torch.nn.CrossEntropyLoss(torch.tensor([1.0, weight], dtype=torch.bfloat16))

    assert fingerprint_of(made(2.0)) == fingerprint_of(made(2.0)) != fingerprint_of(made(3.0))
