"""Scores: (outputs, labels) → one number per example, higher is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paretune.errors import DataError, WorkloadError

Array = np.ndarray[Any, Any]
Score = str | Callable[[Any, Any], Any]


def first_tensor(outputs: Any) -> Array:
    """What a built-in score looks at: the only output, ``logits`` of a dict that has it, else the first."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits", next(iter(outputs.values())))
    while isinstance(outputs, tuple | list):
        outputs = outputs[0]
    array: Array = np.asarray(outputs)
    return array


def classes(logits: Array) -> Array:
    """The predicted class along axis 1; a single column (or none) is a binary logit with its threshold at 0."""
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return (logits.reshape(len(logits)) > 0).astype(np.int64)
    return np.asarray(logits.argmax(axis=1))


def _per_example(values: Array) -> Array:
    means: Array = np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1)
    return means


def accuracy(outputs: Any, labels: Array) -> Array:
    """Share of right answers: 0 or 1 for a class, the share of right pixels or tokens where labels have more axes."""
    predicted = classes(first_tensor(outputs))
    return _per_example(predicted == _fit(labels, predicted, "accuracy"))


def top5(outputs: Any, labels: Array) -> Array:
    """1 where the label is among the five largest of axis 1 (all of them where there are fewer)."""
    logits = first_tensor(outputs)
    if logits.ndim != 2:
        raise DataError(f"needs logits [examples, classes] and got shape {logits.shape}", where="score top5")
    best = np.argsort(-logits, axis=1)[:, :5]
    truth = _fit(labels, best[:, 0], "top5")
    return np.asarray((best == truth[:, None]).any(axis=1), np.float64)


def mse(outputs: Any, labels: Array) -> Array:
    """Minus the mean squared error of each example."""
    values = first_tensor(outputs)
    return -_per_example((values.astype(np.float64) - _fit(labels, values, "mse")) ** 2)


def mae(outputs: Any, labels: Array) -> Array:
    """Minus the mean absolute error of each example."""
    values = first_tensor(outputs)
    return -_per_example(np.abs(values.astype(np.float64) - _fit(labels, values, "mae")))


def iou(outputs: Any, labels: Array) -> Array:
    """Intersection over union of each example's mask, averaged over the classes present in either mask.

    ``outputs`` are logits [examples, classes, …] (one channel: a binary logit), ``labels`` class numbers [examples, …];
    a negative label is left out.
    """
    logits = first_tensor(outputs)
    binary = logits.ndim >= 3 and logits.shape[1] == 1
    predicted = (logits[:, 0] > 0).astype(np.int64) if binary else classes(logits)
    truth = _fit(labels, predicted, "iou").astype(np.int64)
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
    target = _fit(labels, values, "cosine").astype(np.float64).reshape(len(values), -1)
    flat = values.astype(np.float64).reshape(len(values), -1)
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(target, axis=1)
    similar = np.where(norms > 0, (flat * target).sum(axis=1) / np.where(norms > 0, norms, 1), 0.0)
    # rounding may carry parallel vectors past 1
    return np.asarray(np.clip(similar, -1.0, 1.0))


BUILT_IN: Mapping[str, Callable[[Any, Array], Array]] = {
    "accuracy": accuracy,
    "top5": top5,
    "mse": mse,
    "mae": mae,
    "iou": iou,
    "cosine": cosine,
}
UNBOUNDED = frozenset({"mse", "mae"})
"""Built-in scores that do not lie between 0 and 1: their drop is asked in per cent of the original, not in points."""


def named(score: Score | Mapping[str, Score]) -> dict[str, Callable[[Any, Any], Any]]:
    """Every score of a workload by name.

    Raises
    ------
    WorkloadError
        If a name is not a built-in score, or a score is neither a name nor callable.
    """
    if isinstance(score, str):
        score = {score: score}
    elif not isinstance(score, Mapping):
        score = {getattr(score, "__name__", "score").strip("<>"): score}
    found: dict[str, Callable[[Any, Any], Any]] = {}
    for name, one in score.items():
        if not isinstance(name, str):
            raise WorkloadError(f"{name!r} is not a name", where="score", do="name every score by a string")
        if isinstance(one, str) and one not in BUILT_IN:
            raise WorkloadError(
                f"there is no built-in score {one!r}", where="score",
                do=f"use one of {', '.join(BUILT_IN)}, or a function (outputs, labels) → one number per example",
            )  # fmt: skip
        if not isinstance(one, str) and not callable(one):
            raise WorkloadError(
                f"{name!r} is a {type(one).__qualname__}, not a function", where="score",
                do="give a function (outputs, labels) → one number per example, or a built-in's name",
            )  # fmt: skip
        found[name] = BUILT_IN[one] if isinstance(one, str) else one
    if not found:
        raise WorkloadError("is empty", where="score", do="name at least one score")
    return found


def _fit(labels: Array, values: Array, name: str) -> Array:
    labels = np.asarray(labels)
    if labels.size != values.size:
        raise DataError(
            f"labels of shape {labels.shape} do not fit answers of shape {values.shape}", where=f"score {name}",
            do="give one label for each answer, or a score of your own",
        )  # fmt: skip
    fitted: Array = labels.reshape(values.shape)
    return fitted
