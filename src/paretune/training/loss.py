"""What is minimised, and what an epoch is scored by, when the user says nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from paretune.errors import BuildError, ParetuneError
from paretune.training.learner import answer_of
from paretune.training.lesson import Lesson

Call = Callable[..., Any]
"""Runs the model on a lesson's inputs, ``call(*lesson.inputs)``, and returns whatever it returns."""
Step = Callable[[Call, Lesson], torch.Tensor]
"""``(call, lesson)`` → a scalar, the mean over the lesson's examples: what a step of training minimises."""
Examine = Callable[[Call, Lesson], torch.Tensor]
"""``(call, lesson)`` → one number an example [n], higher is better: what an epoch is scored by."""


def supervised(loss: Callable[..., Any] | None) -> Step:
    """The step of plain training: ``loss(outputs, labels)``, or :func:`against_labels` where there is none."""

    def step(call: Call, lesson: Lesson) -> torch.Tensor:
        return hard(loss, call(*lesson.inputs), lesson)

    return step


def hard(loss: Callable[..., Any] | None, outputs: Any, lesson: Lesson) -> torch.Tensor:
    """The loss of a model's outputs against the labels, by the user's function or the default.

    Raises
    ------
    BuildError
        If there are no labels, or the user's loss fails or does not return a scalar tensor that depends on the outputs.
    """
    if lesson.labels is None:
        raise BuildError("has no labels to learn from", where="train", do="return (inputs, label) items")
    if loss is None:
        return against_labels(answer_of(outputs), lesson.labels)
    try:
        found = loss(outputs, lesson.labels)
    except ParetuneError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise BuildError(
            f"failed: {type(error).__name__}: {error}", where="Workload.loss",
            do="give a function (outputs, labels) → scalar tensor",
        ) from error  # fmt: skip
    if not isinstance(found, torch.Tensor) or found.numel() != 1 or not found.requires_grad:
        raise BuildError(
            f"returned {_told(found)}", where="Workload.loss",
            do="return a scalar tensor that was computed from the outputs by torch's own functions",
        )  # fmt: skip
    return found.reshape(())


def against_labels(answer: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy for class labels (integers; negative ones are left out), the mean squared error for floats."""
    if labels.is_floating_point():
        return functional.mse_loss(answer.float(), like(labels, answer))
    logits, truth = rows(answer, labels)
    if not len(truth):
        return answer.float().sum() * 0
    return functional.cross_entropy(logits, truth)


def examine(call: Call, lesson: Lesson) -> torch.Tensor:
    """Share of right classes of each example, or minus its mean squared error where labels are floats."""
    if lesson.labels is None:
        raise BuildError("has no labels to score on", where="train", do="return (inputs, label) items")
    answer = answer_of(call(*lesson.inputs))
    if lesson.labels.is_floating_point():
        errors = (answer.float() - like(lesson.labels, answer)) ** 2
        return -errors.reshape(len(lesson), -1).mean(dim=1)
    logits, truth = rows(answer, lesson.labels, every=True)
    right = (logits.argmax(dim=-1) == truth).float().reshape(len(lesson), -1)
    counted = (truth >= 0).float().reshape(len(lesson), -1)
    return (right * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def like(labels: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Float labels in the shape of the answers; a mere broadcast would teach the mean.

    Raises
    ------
    BuildError
        If there are not as many as answers.
    """
    if labels.numel() != answer.numel():
        raise _misfit(labels, answer)
    return labels.float().reshape(answer.shape)


def rows(answer: torch.Tensor, labels: torch.Tensor, every: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [m, classes] and classes int64 [m]; those with a negative label only with ``every``.

    Classes lie along axis 1, as torch has it, else along the last axis. A single column (or none) is a binary logit z,
    and stands for the two logits 0 and z.

    Raises
    ------
    BuildError
        If the labels' shape fits neither, or a label is not below the number of classes.
    """
    if labels.is_floating_point():
        raise _misfit(labels, answer)
    logits = class_rows(answer, labels)
    truth = labels.reshape(-1).long()
    if truth.numel() and int(truth.max()) >= logits.shape[1]:
        raise BuildError(
            f"holds class {int(truth.max())}, and the model answers {logits.shape[1]} classes counted from 0",
            where="train", do="number the classes as the model does",
        )  # fmt: skip
    kept = truth >= 0
    return (logits, truth) if every or bool(kept.all()) else (logits[kept], truth[kept])


def class_rows(answer: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits float32 [m, classes], one row for each of ``labels``; see :func:`rows`."""
    count = labels.numel()
    answer = answer.float()
    if answer.numel() == count:
        flat = answer.reshape(-1)
        return torch.stack([torch.zeros_like(flat), flat], dim=1)
    if answer.ndim >= 2 and count == answer.numel() // answer.shape[1] and _fits(labels, answer, 1):
        return answer.movedim(1, -1).reshape(count, -1)
    if answer.ndim >= 2 and count == answer.numel() // answer.shape[-1] and _fits(labels, answer, -1):
        return answer.reshape(count, -1)
    raise _misfit(labels, answer)


def _fits(labels: torch.Tensor, answer: torch.Tensor, axis: int) -> bool:
    wanted = list(answer.shape)
    del wanted[axis]
    return [size for size in labels.shape if size != 1] == [size for size in wanted if size != 1]


def _misfit(labels: torch.Tensor, answer: torch.Tensor) -> BuildError:
    kind = str(labels.dtype).removeprefix("torch.")
    return BuildError(
        f"labels of shape {list(labels.shape)} ({kind}) do not fit answers of shape {list(answer.shape)}",
        where="train", do="give one label for each answer, or the workload a loss of its own",
    )  # fmt: skip


def _told(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__qualname__}"
    return f"a tensor of shape {list(value.shape)}" + ("" if value.requires_grad else " without a gradient")
