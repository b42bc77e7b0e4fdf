"""Scores of a whole set: F1, AUC, correlations, RMSE: one number that is no mean over the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.ask.outputs import classes, fitted
from paretune.errors import DataError, WorkloadError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SetScore:
    """A score that only a whole set has.

    Parameters
    ----------
    metric
        (kept, labels) → one number, higher is better. Both are numpy arrays with examples on their first axis; ``kept``
        is what was kept of all outputs. scikit-learn's metrics take the two in the other order. It is taken some two
        hundred times for every candidate, each time without a part of the set, for its interval
        (``paretune.check.jackknife``).
    keep
        Takes the outputs of one batch, as the model returned them, and returns an array [examples, ...]; None keeps the
        first output.
    best
        The most that the metric can be, 1 for F1; None where it has no such end.

    Raises
    ------
    WorkloadError
        If ``metric`` or ``keep`` is no function.
    """

    metric: Callable[[Array, Array], Any]
    keep: Callable[[Any], Any] | None = None
    best: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("metric", self.metric), ("keep", self.keep)):
            if not callable(value) and not (name == "keep" and value is None):
                raise WorkloadError(
                    f"is a {type(value).__qualname__}, not a function", where=f"SetScore.{name}",
                    do="give a function (kept, labels) → one number" if name == "metric" else "give a function of the "
                    "outputs of a batch → an array with a row for every example, or leave it out",
                )  # fmt: skip


def f1(logits: Array, labels: Array) -> float:
    """F1 of class 1 for two classes, else the plain mean over the classes among the labels (macro).

    ``logits`` are [n, classes, ...], or [n] or [n, 1] binary; negative labels are left out.
    """
    from sklearn.metrics import f1_score

    predicted, truth = _both(logits, labels, "f1")
    if logits.ndim == 1 or logits.shape[1] <= 2:
        return float(f1_score(truth, predicted, labels=[1], average="macro", zero_division=0))
    return float(f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0))


def matthews(logits: Array, labels: Array) -> float:
    """Matthews' correlation of predicted and true classes: 1 for all right, 0 for no better than chance.

    ``logits`` and ``labels`` as for :func:`f1`.
    """
    from sklearn.metrics import matthews_corrcoef

    predicted, truth = _both(logits, labels, "matthews")
    return float(matthews_corrcoef(truth, predicted))


def auc(logits: Array, labels: Array) -> float:
    """Area under the ROC curve; for several classes, the plain mean of each against the rest.

    ``logits`` are [n, classes], or [n] or [n, 1] binary. ``labels`` are class numbers, which compare classes by
    probability, or [n, classes] yes or no to each class, which compare them by logit.
    """
    from sklearn.metrics import roc_auc_score

    return _over_classes(roc_auc_score, logits, labels, "auc")


def average_precision(logits: Array, labels: Array) -> float:
    """Average precision; for several classes, the plain mean over them (mAP). Shapes as for :func:`auc`."""
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


def _both(logits: Array, labels: Array, name: str) -> tuple[Array, Array]:
    """Predicted and true classes, flat."""
    predicted = classes(logits)
    truth = fitted(labels, predicted, name)
    counts = truth >= 0
    return predicted[counts], truth[counts]


def _over_classes(metric: Callable[..., Any], logits: Array, labels: Array, name: str) -> float:
    """``metric`` of binary logits, or its mean over all classes that some but not all examples belong to."""
    logits, labels = logits.astype(np.float64), np.asarray(labels)
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        logits = logits.reshape(len(logits))
        return _binary(metric, fitted(labels, logits, name), logits)
    if logits.ndim != 2:
        raise DataError(f"needs logits [examples, classes] and got shape {logits.shape}", where=f"score {name}")
    if labels.shape == logits.shape:
        return _mean(_binary(metric, labels[:, column], logits[:, column]) for column in range(logits.shape[1]))
    truth = fitted(labels, logits[:, 0], name)
    if logits.shape[1] == 2:
        return _binary(metric, truth, logits[:, 1] - logits[:, 0])
    from scipy import special

    # one class against the rest: rows are compared by probability
    logits = special.log_softmax(logits, axis=1)
    return _mean(
        _binary(metric, np.where(truth < 0, -1, truth == column), logits[:, column])
        for column in np.unique(truth[(truth >= 0) & (truth < logits.shape[1])]).astype(int)
    )


def _mean(values: Any) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _binary(metric: Callable[..., Any], truth: Array, confidence: Array) -> float:
    counts = truth >= 0
    yes = truth[counts] > 0.5
    return float(metric(yes, confidence[counts])) if 0 < yes.sum() < len(yes) else float("nan")


SET_SCORES: Mapping[str, SetScore] = {
    "f1": SetScore(f1, best=1.0),
    "matthews": SetScore(matthews, best=1.0),
    "auc": SetScore(auc, best=1.0),
    "average_precision": SetScore(average_precision, best=1.0),
    "rmse": SetScore(rmse, best=0.0),
    "pearson": SetScore(pearson, best=1.0),
    "spearman": SetScore(spearman, best=1.0),
}
