"""Scores: (outputs, labels) → one number per example, or one of the whole set; higher is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paretune.ask.outputs import classes, first_tensor, fitted
from paretune.ask.set_score import SET_SCORES, SetScore
from paretune.errors import DataError, WorkloadError

Array = np.ndarray[Any, Any]
PerExample = Callable[[Any, Any], Any]
Score = str | PerExample | SetScore


def _per_example(values: Array) -> Array:
    means: Array = np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1)
    return means


def accuracy(outputs: Any, labels: Array) -> Array:
    """Share of right answers: 0 or 1 for a class, the share of right pixels or tokens where labels have more axes."""
    predicted = classes(first_tensor(outputs))
    return _per_example(predicted == fitted(labels, predicted, "accuracy"))


def top5(outputs: Any, labels: Array) -> Array:
    """1 where the label is among the five largest of axis 1 (all of them where there are fewer)."""
    logits = first_tensor(outputs)
    if logits.ndim != 2:
        raise DataError(f"needs logits [examples, classes] and got shape {logits.shape}", where="score top5")
    best = np.argsort(-logits, axis=1)[:, :5]
    truth = fitted(labels, best[:, 0], "top5")
    return np.asarray((best == truth[:, None]).any(axis=1), np.float64)


def mse(outputs: Any, labels: Array) -> Array:
    """Minus the mean squared error of each example."""
    values = first_tensor(outputs)
    return -_per_example((values.astype(np.float64) - fitted(labels, values, "mse")) ** 2)


def mae(outputs: Any, labels: Array) -> Array:
    """Minus the mean absolute error of each example."""
    values = first_tensor(outputs)
    return -_per_example(np.abs(values.astype(np.float64) - fitted(labels, values, "mae")))


def iou(outputs: Any, labels: Array) -> Array:
    """Intersection over union of each example's mask, averaged over the classes present in either mask.

    ``outputs`` are logits [examples, classes, …] (one channel: a binary logit), ``labels`` class numbers [examples, …];
    a negative label is left out.
    """
    logits = first_tensor(outputs)
    binary = logits.ndim >= 3 and logits.shape[1] == 1
    predicted = (logits[:, 0] > 0).astype(np.int64) if binary else classes(logits)
    truth = fitted(labels, predicted, "iou").astype(np.int64)
    scores = []
    for mask, label in zip(predicted.reshape(len(predicted), -1), truth.reshape(len(truth), -1), strict=True):
        mask, label = mask[label >= 0], label[label >= 0]
        present = np.union1d(mask, label)
        per_class = [((mask == c) & (label == c)).sum() / ((mask == c) | (label == c)).sum() for c in present]
        scores.append(float(np.mean(per_class)) if per_class else 1.0)
    return np.asarray(scores)


def cosine(outputs: Any, labels: Array) -> Array:
    """Cosine similarity of each example's output to its label (an embedding, say)."""
    values = first_tensor(outputs)
    target = fitted(labels, values, "cosine").astype(np.float64).reshape(len(values), -1)
    flat = values.astype(np.float64).reshape(len(values), -1)
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(target, axis=1)
    similar = np.where(norms > 0, (flat * target).sum(axis=1) / np.where(norms > 0, norms, 1), 0.0)
    # rounding may carry parallel vectors past 1
    return np.asarray(np.clip(similar, -1.0, 1.0))


PER_EXAMPLE: Mapping[str, Callable[[Any, Array], Array]] = {
    "accuracy": accuracy,
    "top5": top5,
    "mse": mse,
    "mae": mae,
    "iou": iou,
    "cosine": cosine,
}
_HOW = "give a function (outputs, labels) → one number per example, or paretune.SetScore(metric) for one of the set"
BUILT_IN: Mapping[str, PerExample | SetScore] = {**PER_EXAMPLE, **SET_SCORES}
UNBOUNDED = frozenset({"mse", "mae", "rmse"})
"""Built-in scores that do not lie between 0 and 1: their drop is asked in per cent of the original, not in points."""


def unit_of_drop(score: str) -> str:
    """``%`` (of the original) for a score that does not lie between 0 and 1, else ``pp``: where no limit says it."""
    return "%" if score in UNBOUNDED else "pp"


def named(score: Score | Mapping[str, Score]) -> dict[str, PerExample | SetScore]:
    """Every score of a workload by name.

    Raises
    ------
    WorkloadError
        If a name is not a built-in score, or a score is neither a name nor callable.
    """
    if isinstance(score, str):
        score = {score: score}
    elif not isinstance(score, Mapping):
        metric = score.metric if isinstance(score, SetScore) else score
        score = {getattr(metric, "__name__", "score").strip("<>"): score}
    found: dict[str, PerExample | SetScore] = {}
    for name, one in score.items():
        if not isinstance(name, str):
            raise WorkloadError(f"{name!r} is not a name", where="score", do="name every score by a string")
        if isinstance(one, str) and one not in BUILT_IN:
            raise WorkloadError(
                f"there is no built-in score {one!r}", where="score",
                do=f"use one of {', '.join(BUILT_IN)}, or {_HOW}",
            )  # fmt: skip
        if not isinstance(one, str | SetScore) and not callable(one):
            raise WorkloadError(
                f"{name!r} is a {type(one).__qualname__}, not a function", where="score", do=_HOW,
            )  # fmt: skip
        found[name] = BUILT_IN[one] if isinstance(one, str) else one
    if not found:
        raise WorkloadError("is empty", where="score", do="name at least one score")
    return found
