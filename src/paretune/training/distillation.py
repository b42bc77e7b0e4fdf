"""Distillation: a student learns to answer as its teacher does. Any technique that trains may heal by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.learner import answer_of
from paretune.training.lesson import Lesson, Lessons
from paretune.training.loss import Call, Examine, Step, class_rows, examine, hard

REMEMBERED_BYTES = 1 << 30
"""A teacher's answers to all examples are kept where they are smaller than this: it then answers each example once."""
ANSWERED_AT_ONCE = 64

Progress = Callable[[float, str], None]


class Teacher:
    """The model that is imitated: in eval mode, without gradients, always in its own precision.

    Parameters
    ----------
    artifact
        Of form ``torch``.
    split
        The examples that lessons are made of: their places index it.
    device
        Where it answers.
    remember
        Whether to answer every example beforehand and keep the answers, where they fit into memory: of use where
        lessons come as they are given, without augmentation.

    Raises
    ------
    BuildError
        If it is of another form, or its answers hold what is not finite.
    """

    def __init__(
        self,
        artifact: Artifact,
        split: Split,
        device: torch.device,
        progress: Progress = lambda fraction, text: None,
        remember: bool = True,
    ) -> None:
        if artifact.form != "torch":
            raise BuildError(
                f"the original is of form {artifact.form}, and only a torch module can teach", where="teacher",
                do="give the nn.Module that it was made from as the workload's model",
            )  # fmt: skip
        self._model = form.restore(artifact).requires_grad_(False).to(device)
        self._names = form.keywords(artifact)
        self._lessons = Lessons(split, artifact, device)
        self._known = self._all(progress) if remember and _is_small(artifact, len(split)) else None

    def __call__(self, lesson: Lesson) -> torch.Tensor:
        """Its answers to a lesson, as losses look at them: the only tensor, ``logits``, or the first."""
        if self._known is not None and lesson.as_given:
            return self._known[lesson.places.to(self._known.device)]
        return self._answer(lesson)

    def _answer(self, lesson: Lesson) -> torch.Tensor:
        with torch.no_grad():
            names, tensors, _ = form.call_flat(self._model, self._names, lesson.inputs)
        answer = tensors[names.index("logits") if "logits" in names else 0].float()
        if not bool(answer.isfinite().all()):
            place = int(lesson.places[int((~answer.isfinite()).reshape(len(lesson), -1).any(dim=1).int().argmax())])
            raise BuildError(
                "the original answers a training example with numbers that are not finite",
                where=f"train[{self._lessons.split.indices[place]}]", do="leave the example out, or mend the model",
            )  # fmt: skip
        return answer

    def _all(self, progress: Progress) -> torch.Tensor:
        # in one order and in batches of one size, so that a resumed training learns from the same bits
        count, found = len(self._lessons), []
        for start in range(0, count, ANSWERED_AT_ONCE):
            progress(start / count, "asking the original")
            found.append(self._answer(self._lessons.at(np.arange(start, min(start + ANSWERED_AT_ONCE, count)))))
        return torch.cat(found)


def distilling(
    teacher: Teacher, loss: Callable[..., Any] | None, alpha: float, temperature: float, classes: bool
) -> Step:
    """The step of distillation: ``alpha`` times the soft loss plus ``1 - alpha`` times the loss against the labels.

    For classes the soft loss is that of :func:`soft`, otherwise the mean squared difference of the answers. With
    ``alpha`` 1 no labels are needed.
    """

    def step(call: Call, lesson: Lesson) -> torch.Tensor:
        outputs = call(*lesson.inputs)
        answer, wanted = answer_of(outputs), teacher(lesson)
        if answer.shape != wanted.shape:
            raise BuildError(
                f"the student answers in shape {list(answer.shape[1:])} and the teacher in {list(wanted.shape[1:])}",
                where="teacher", do="give a student with the outputs of the original",
            )  # fmt: skip
        if classes:
            taught = imitation(answer, wanted, lesson.labels, temperature)
        else:
            taught = functional.mse_loss(answer.float(), wanted)
        return taught if alpha == 1 else alpha * taught + (1 - alpha) * hard(loss, outputs, lesson)

    return step


def imitation(
    answer: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """:func:`soft` over every position that has a class; those with a negative label (padding, say) are left out.

    The labels say along which axis classes lie; without them it is axis 1.
    """
    if labels is None or labels.is_floating_point():
        labels = torch.zeros_like(wanted.movedim(1, -1)[..., 0] if wanted.ndim > 1 else wanted, dtype=torch.int64)
    student, teacher = class_rows(answer, labels), class_rows(wanted, labels)
    kept = labels.reshape(-1) >= 0
    if not bool(kept.all()):
        student, teacher = student[kept], teacher[kept]
    return soft(student, teacher, temperature) if len(student) else answer.float().sum() * 0


def soft(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over rows of logits float32 [m, classes].

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: T² keeps the gradients' size
    as the temperature changes.
    """
    ours = functional.log_softmax(student / temperature, dim=1)
    theirs = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def as_taught(teacher: Teacher, classes: bool) -> Examine:
    """The score of an epoch: against the labels where there are some, else how well the teacher is imitated.

    Agreement with its classes, or minus the mean squared difference.
    """

    def score(call: Call, lesson: Lesson) -> torch.Tensor:
        if lesson.labels is not None:
            return examine(call, lesson)
        wanted = teacher(lesson)
        if not classes:
            labels = wanted
        elif wanted.numel() == len(lesson):
            labels = (wanted.reshape(-1) > 0).long()
        else:
            labels = wanted.argmax(dim=1)
        return examine(call, dataclasses.replace(lesson, labels=labels))

    return score


def _is_small(artifact: Artifact, examples: int) -> bool:
    """Whether all answers may be kept: every axis but the batch is fixed, for padding changes from batch to batch."""
    names = [spec.name for spec in artifact.outputs]
    spec = artifact.outputs[names.index("logits") if "logits" in names else 0]
    fixed = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    return len(fixed) == len(spec.shape) - 1 and 4 * examples * int(np.prod(fixed)) <= REMEMBERED_BYTES
