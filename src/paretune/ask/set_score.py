"""Scores of a whole set: F1, AUC, correlations, RMSE: one number that is no mean over the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.ask.outputs import classes, first_tensor, fitted
from paretune.errors import DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SetScore:
    """A score that only a whole set has.

    ``metric`` takes what was kept of all outputs and the labels, both numpy arrays with examples on their first axis,
    and returns one number, higher is better. ``keep`` takes the outputs of one batch, as the model returned them, and
    returns an array [examples, ...]; None keeps the first output. Its interval comes from leaving examples out
    (``paretune.check.jackknife``), so the metric is taken up to a thousand times for every candidate.
    """

    metric: Callable[[Array, Array], Any]
    keep: Callable[[Any], Any] | None = None


def f1(predicted: Array, labels: Array) -> float:
    """F1 of class 1 where there are only the classes 0 and 1, else the plain mean over all classes (macro)."""
    from sklearn.metrics import f1_score

    truth = fitted(labels, predicted, "f1")
    seen = np.union1d(truth, predicted)
    average = "binary" if np.isin(seen, (0, 1)).all() else "macro"
    return float(f1_score(truth.reshape(-1), predicted.reshape(-1), average=average, zero_division=0))


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews' correlation of predicted and true classes: 1 for all right, 0 for no better than chance."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(fitted(labels, predicted, "matthews").reshape(-1), predicted.reshape(-1)))


def auc(logits: Array, labels: Array) -> float:
    """Area under the ROC curve; for several classes, the plain mean of each against the rest."""
    from sklearn.metrics import roc_auc_score

    return _over_classes(roc_auc_score, logits, labels, "auc")


def average_precision(logits: Array, labels: Array) -> float:
    """Average precision; for several classes, or labels that say yes or no to each, the plain mean over them (mAP)."""
    from sklearn.metrics import average_precision_score

    return _over_classes(average_precision_score, logits, labels, "average_precision")


def rmse(values: Array, labels: Array) -> float:
    """Minus the root of the mean squared error."""
    return -float(np.sqrt(np.mean((values.astype(np.float64) - fitted(labels, values, "rmse")) ** 2)))


def pearson(values: Array, labels: Array) -> float:
    """Correlation of outputs and labels."""
    from scipy import stats

    flat = values.astype(np.float64).reshape(-1)
    return float(stats.pearsonr(flat, fitted(labels, values, "pearson").reshape(-1)).statistic)


def spearman(values: Array, labels: Array) -> float:
    """Correlation of the ranks of outputs and labels."""
    from scipy import stats

    flat = values.reshape(-1)
    return float(stats.spearmanr(flat, fitted(labels, values, "spearman").reshape(-1)).statistic)


def _predicted(outputs: Any) -> Array:
    return classes(first_tensor(outputs))


def _logits(outputs: Any) -> Array:
    """Binary logits [n], or logits [n, classes]."""
    logits = first_tensor(outputs).astype(np.float64)
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return logits.reshape(len(logits))
    if logits.ndim != 2:
        raise DataError(f"needs logits [examples, classes] and got shape {logits.shape}", where="score")
    return logits


def _over_classes(metric: Callable[..., Any], logits: Array, labels: Array, name: str) -> float:
    """``metric`` of binary logits, or its mean over all classes that some but not all examples belong to."""
    labels = np.asarray(labels)
    if logits.ndim == 1:
        return _binary(metric, fitted(labels, logits, name), logits)
    if labels.shape == logits.shape:
        belongs = labels > 0
    else:
        truth = fitted(labels, logits[:, 0], name)
        if logits.shape[1] == 2:
            return _binary(metric, truth, logits[:, 1] - logits[:, 0])
        belongs = truth[:, None] == np.arange(logits.shape[1])
        from scipy import special

        # one class against the rest: rows are compared by probability
        logits = special.log_softmax(logits, axis=1)
    found = [_binary(metric, belongs[:, column], logits[:, column]) for column in range(logits.shape[1])]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _binary(metric: Callable[..., Any], truth: Array, confidence: Array) -> float:
    yes = truth > 0
    return float(metric(yes, confidence)) if 0 < yes.sum() < len(yes) else float("nan")


SET_SCORES: Mapping[str, SetScore] = {
    "f1": SetScore(f1, _predicted),
    "matthews": SetScore(matthews, _predicted),
    "auc": SetScore(auc, _logits),
    "average_precision": SetScore(average_precision, _logits),
    "rmse": SetScore(rmse),
    "pearson": SetScore(pearson),
    "spearman": SetScore(spearman),
}
