"""What is minimised, and what an epoch is scored by, when the user says nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from paretune.ask.own_step import OwnStep
from paretune.build.passing import is_passing
from paretune.errors import BuildError, ParetuneError
from paretune.training.device import home
from paretune.training.learner import answer_of
from paretune.training.lesson import Lesson

IGNORED = -100
"""The label that torch's own losses leave out."""

Call = Callable[..., Any]
"""Runs the model on a lesson's inputs, ``call(*lesson.inputs)``, and returns whatever it returns."""
Step = Callable[[Call, Lesson], torch.Tensor]
"""``(call, lesson)`` → a scalar, the mean over the lesson's examples: what a step of training minimises."""
Examine = Callable[[Call, Lesson], torch.Tensor]
"""``(call, lesson)`` → one number an example [n], higher is better: what an epoch is scored by."""


def supervised(loss: Callable[..., Any] | None) -> Step:
    """The step of plain training: ``loss(outputs, labels)``, or :func:`against_labels` where there is none; or the
    user's own step."""
    own = prepared(loss)

    def step(call: Call, lesson: Lesson) -> torch.Tensor:
        if isinstance(own, OwnStep):
            return stepped(own, call, lesson)
        return hard(own, call(*lesson.inputs), lesson)

    return step


def prepared(loss: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The loss for one training: of a module a copy, on the device that trains, so that the user's own stays as it was
    whatever state it gathers, and the next training begins with the same."""
    return copy.deepcopy(loss).to(home()) if isinstance(loss, torch.nn.Module) else loss


def hard(loss: Callable[..., Any] | None, outputs: Any, lesson: Lesson) -> torch.Tensor:
    """The loss of a model's outputs against the labels, by the user's function or the default.

    It is a mean over the labels that count: not the negative ones, or -100 for a user's function. In a part of a batch
    it is scaled such that the parts' losses, weighted by their examples, add up to that of the batch.

    Raises
    ------
    BuildError
        If there are no labels, or the user's loss fails or does not return a scalar tensor that depends on the outputs.
    """
    if lesson.labels is None:
        raise BuildError("has no labels to learn from", where="train", do="return (inputs, label) items")
    if loss is None:
        found = against_labels(answer_of(outputs), lesson.labels, lesson.classes_last)
        return found * balance(lesson, lambda labels: labels >= 0)
    share = balance(lesson, lambda labels: labels != IGNORED)
    if share == 0:
        return answer_of(outputs).float().sum() * 0
    return _asked(loss, "loss", "(outputs, labels)", outputs, lesson.labels) * share


def stepped(own: OwnStep, call: Call, lesson: Lesson) -> torch.Tensor:
    """The loss by a user's own step.

    Raises
    ------
    BuildError
        If it fails or does not return a scalar tensor that depends on the outputs.
    """
    given: Any = lesson.inputs if len(lesson.inputs) > 1 else lesson.inputs[0]
    if lesson.names is not None:
        given = dict(zip(lesson.names, lesson.inputs, strict=True))
    share = balance(lesson, lambda labels: labels != IGNORED)
    if share == 0:
        return answer_of(call(*lesson.inputs)).float().sum() * 0
    return _asked(own, "step", "(model, inputs, labels)", call, given, lesson.labels) * share


def _asked(function: Callable[..., Any], field: str, takes: str, *given: Any) -> torch.Tensor:
    try:
        found = function(*given)
    except ParetuneError:
        raise
    except Exception as error:  # whatever the user's function raises
        if is_passing(error):
            raise  # the training says what to do
        moved = "keep its tensors in an nn.Module, which is moved to the device that trains"
        raise BuildError(
            f"failed: {type(error).__name__}: {error}", where=f"Workload.{field}",
            do=moved if "same device" in str(error) else f"give a function {takes} → scalar tensor",
        ) from error  # fmt: skip
    hangs = isinstance(found, torch.Tensor) and (found.requires_grad or not torch.is_grad_enabled())
    if not isinstance(found, torch.Tensor) or found.numel() != 1 or not hangs:
        raise BuildError(
            f"returned {_told(found)}", where=f"Workload.{field}",
            do="return a scalar tensor that was computed from the outputs by torch's own functions",
        )  # fmt: skip
    return found.reshape(())


def balance(lesson: Lesson, counts: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How many labels count for each example of a part of a batch, over how many do in the whole batch; 1 for a whole
    batch, or where labels are no classes."""
    if lesson.labels is None or lesson.batch_labels is None or lesson.labels.is_floating_point():
        return 1.0
    whole = int(counts(lesson.batch_labels).sum()) / len(lesson.batch_labels)
    return int(counts(lesson.labels).sum()) / len(lesson) / whole if whole else 1.0


def against_labels(answer: torch.Tensor, labels: torch.Tensor, last: bool = False) -> torch.Tensor:
    """Cross-entropy for class labels (integers; negative ones are left out), the mean squared error for floats."""
    if labels.is_floating_point():
        return functional.mse_loss(answer.float(), like(labels, answer))
    logits, truth = rows(answer, labels, last=last)
    if not len(truth):
        return answer.float().sum() * 0
    return functional.cross_entropy(logits, truth)


def examine(call: Call, lesson: Lesson) -> torch.Tensor:
    """Share of right classes of each example, or minus its mean squared error where labels are floats."""
    return examined(answer_of(call(*lesson.inputs)), lesson)


def examined(answer: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    """The scores of :func:`examine` for answers that were given.

    Raises
    ------
    BuildError
        If there are no labels, or they do not fit the answers.
    """
    if lesson.labels is None:
        raise BuildError("has no labels to score on", where="train", do="return (inputs, label) items")
    if lesson.labels.is_floating_point():
        errors = (answer.float() - like(lesson.labels, answer)) ** 2
        return -errors.reshape(len(lesson), -1).mean(dim=1)
    logits, truth = rows(answer, lesson.labels, every=True, last=lesson.classes_last)
    right = (logits.argmax(dim=-1) == truth).float().reshape(len(lesson), -1)
    counted = (truth >= 0).float().reshape(len(lesson), -1)
    return (right * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def examining(loss: Callable[..., Any] | None) -> Examine:
    """The score of an epoch of plain training: that of :func:`examine`, or minus the user's loss where labels are such
    that only that understands them."""
    if loss is None:
        return examine
    own = supervised(loss)

    def score(call: Call, lesson: Lesson) -> torch.Tensor:
        try:
            return examine(call, lesson)
        except BuildError:
            return -own(call, lesson).expand(len(lesson))

    return score


def meant(lesson: Lesson, classes: bool) -> Lesson:
    """The lesson with labels as what they are meant to be: floats for values, whole numbers for classes.

    Raises
    ------
    BuildError
        If a label is no whole number, and so no class.
    """
    labels = lesson.labels
    if labels is None or labels.is_floating_point() != classes:
        return lesson
    odd = labels[labels != labels.round()] if classes else labels[:0]
    if odd.numel():
        raise BuildError(
            f"holds the label {float(odd[0]):g}, which is no class", where="train", do="number the classes, or set "
            "answers=values",
        )  # fmt: skip
    return dataclasses.replace(lesson, labels=labels.long() if classes else labels.float())


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


def rows(
    answer: torch.Tensor, labels: torch.Tensor, every: bool = False, last: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [m, classes] and classes int64 [m]; those with a negative label only with ``every``.

    Classes lie along axis 1, as torch has it, else along the last axis; where both are as long, ``last`` tells (see
    :class:`~paretune.training.lesson.Lesson`). A single column (or none) is a binary logit z,
    and stands for the two logits 0 and z.

    Raises
    ------
    BuildError
        If the labels' shape fits neither, or a label is not below the number of classes.
    """
    if labels.is_floating_point():
        raise _misfit(labels, answer)
    logits = class_rows(answer, labels, last)
    truth = labels.reshape(-1).long()
    if truth.numel() and int(truth.max()) >= logits.shape[1]:
        raise BuildError(
            f"holds class {int(truth.max())}, and the model answers {logits.shape[1]} classes counted from 0",
            where="train", do="number the classes as the model does",
        )  # fmt: skip
    kept = truth >= 0
    return (logits, truth) if every or bool(kept.all()) else (logits[kept], truth[kept])


def class_rows(answer: torch.Tensor, labels: torch.Tensor, last: bool = False) -> torch.Tensor:
    """Logits float32 [m, classes], one row for each of ``labels``; see :func:`rows`."""
    count = labels.numel()
    answer = answer.float()
    if answer.numel() == count:
        flat = answer.reshape(-1)
        return torch.stack([torch.zeros_like(flat), flat], dim=1)
    for axis in (-1, 1) if last else (1, -1):
        if answer.ndim >= 2 and count == answer.numel() // answer.shape[axis] and _fits(labels, answer, axis):
            return answer.movedim(axis, -1).reshape(count, -1)
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
