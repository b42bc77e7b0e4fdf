"""Distillation: a student learns to answer as its teacher does. Any technique that trains may heal by it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.own_step import OwnStep
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training import random_state
from paretune.training.augmentation import Augmentation
from paretune.training.device import arithmetic, channels_innermost, repeatable
from paretune.training.learner import answer_of
from paretune.training.lesson import Lesson, Lessons
from paretune.training.loss import (
    Call,
    Examine,
    Step,
    balance,
    class_rows,
    examined,
    hard,
    meant,
    prepared,
    stepped,
)

REMEMBERED_BYTES = 1 << 30
"""A teacher's answers to all examples, in all views, are kept where they are smaller than this: it gives each once."""
ANSWERED_AT_ONCE = 64

Progress = Callable[[float, str], None]


class Teacher:
    """The model that is imitated: in eval mode, without gradients.

    Parameters
    ----------
    artifact
        Of form ``torch``.
    split
        The examples that lessons are made of: their places index it.
    device
        Where it answers.
    remember
        Whether to answer every example once and keep the answers, where they fit into memory.
    augmentation
        What lessons go through: without one every example is answered beforehand, as it is given; with one each of its
        views when its first lesson comes, if views come again.
    consensus
        Weight of the mean of its answers to all views of an example in what it answers to one of them (Radosavovic et
        al. 2018, "Data Distillation: Towards Omni-Supervised Learning", section 3.2: it is right more often); where
        images are blended, of its answers to a blend and its mirror image.
    precision
        The arithmetic in which it answers: ``fp32`` is its own, ``bf16`` or ``fp16`` is autocast's. What it answers is
        float32 in any case.
    channels_last
        Whether its images and filters have their channels innermost.
    at_once
        How many examples it answers at once, where it answers all of them beforehand, at most; 0: as many as usual.
    name
        The technique's name, for errors.

    Raises
    ------
    BuildError
        If it is of another form, its answers hold what is not finite, or ``consensus`` is asked for where views do not
        come again, their answers do not fit into memory, or a view moves what an answer is about.
    """

    def __init__(
        self,
        artifact: Artifact,
        split: Split,
        device: torch.device,
        progress: Progress = lambda fraction, text: None,
        remember: bool = True,
        augmentation: Augmentation | None = None,
        consensus: float = 0.0,
        precision: str = "fp32",
        channels_last: bool = False,
        at_once: int = 0,
        name: str = "teacher",
    ) -> None:
        if artifact.form != "torch":
            raise BuildError(
                f"the original is of form {artifact.form}, and only a torch module can teach", where="teacher",
                do="give the nn.Module that it was made from as the workload's model",
            )  # fmt: skip
        self.artifact = artifact
        self._model = form.restore(artifact).requires_grad_(False)
        # the graph of an exported program names the device that it was made for
        self._device, self._home = torch.device("cpu") if form.is_program(self._model) else device, device
        innermost = channels_last and not form.is_program(self._model)
        if innermost:  # a graph was made for the strides that it was exported with
            channels_innermost(self._model)
        self._model.to(self._device)
        self._precision, self._at_once = precision, min(at_once or ANSWERED_AT_ONCE, ANSWERED_AT_ONCE)
        self._names, self._fixed = form.keywords(artifact), artifact.fixed_batch
        self._lessons = Lessons(split, _of_any_batch(artifact), self._device, innermost)
        self._augmentation, self._progress = augmentation, progress
        views = augmentation.views if augmentation else 1
        self._remembers = remember and views > 0 and _is_small(artifact, views * len(split))
        self._known: dict[int, torch.Tensor] = {}
        self._consensus = consensus
        if consensus:
            self._demand_consensus(views, f"{name}.consensus")
        if not augmentation and self._remembers:
            self._known[0] = self._all(0)

    @property
    def note(self) -> str:
        """What is to be known of how it answers, in words."""
        if self._augmentation and self._augmentation.views and not self._remembers:
            return (
                f"its answers to {self._augmentation.views} views do not fit into memory, and were asked in every step"
            )
        return ""

    def __call__(self, lesson: Lesson) -> torch.Tensor:
        """Its answers to a lesson, as losses look at them: the only tensor, ``logits``, or the first."""
        if self._remembers and self._augmentation and lesson.view and lesson.view not in self._known:
            self._learn(lesson.view)
        if lesson.view in self._known:
            known = self._known[lesson.view]
            return known[lesson.places.to(known.device)]
        return self._agreed(lesson).to(lesson.inputs[0].device)

    def _demand_consensus(self, views: int, where: str) -> None:
        blends = bool(self._augmentation and self._augmentation.blends)
        if not blends and (not self._augmentation or views < 2):
            raise BuildError(
                "there is a consensus only where views of the data come again", where=where,
                do="set augment, and views to 2 or more",
            )  # fmt: skip
        shape = looked_at(self.artifact).shape
        if len(shape) > 2:
            axes = ", ".join(str(axis) for axis in shape)
            raise BuildError(
                f"the original answers in shape [{axes}], which moves as an image does, and has no mean",
                where=where, do="use consensus=0",
            )  # fmt: skip
        if not blends and not self._remembers:
            raise BuildError(
                f"the original's answers to {views} views do not fit into memory, and a consensus needs them all",
                where=where, do="set fewer views, or consensus=0",
            )  # fmt: skip

    def _learn(self, view: int) -> None:
        """Answer all examples in a view, or for a consensus in every view."""
        assert self._augmentation is not None
        if not self._consensus or self._augmentation.blends:
            self._known[view] = self._all(view)
            return
        answers = {one: self._all(one) for one in range(1, self._augmentation.views + 1)}
        mean = torch.stack(tuple(answers.values())).mean(dim=0)
        self._known = {one: torch.lerp(answer, mean, self._consensus) for one, answer in answers.items()}

    def _agreed(self, lesson: Lesson) -> torch.Tensor:
        """Its answers to a lesson: to blends, drawn to the mean of those to them and to their mirror images."""
        answer = self._answer(lesson)
        if not (self._consensus and self._augmentation and self._augmentation.blends):
            return answer
        return torch.lerp(answer, self._answer(self._augmentation.mirrored(lesson)), self._consensus / 2)

    def _answer(self, lesson: Lesson) -> torch.Tensor:
        self._model.to(self._device)
        inputs = tuple(tensor.to(self._device) for tensor in lesson.inputs)
        parts = [inputs] if self._fixed is None else _filled(inputs, self._fixed)
        with torch.no_grad(), arithmetic(self._precision, self._device):
            told = [form.call_flat(self._model, self._names, part) for part in parts]
        names = told[0][0]
        place = names.index("logits") if "logits" in names else 0
        answer = torch.cat([tensors[place].float() for _, tensors, _ in told])[: len(lesson)]
        if not bool(answer.isfinite().all()):
            at = int(lesson.places[int((~answer.isfinite()).reshape(len(lesson), -1).any(dim=1).int().argmax())])
            half = self._precision == "fp16"
            raise BuildError(
                "the original answers a training example with numbers that are not finite",
                where=f"train[{self._lessons.split.indices[at]}]",
                do="set teacher_precision=bf16" if half else "leave the example out, or mend the model",
            )
        return answer

    def _all(self, view: int) -> torch.Tensor:
        """Its answers to every example in a view, which it is then not asked again: it leaves the device."""
        # in one order and in batches of one size, so that a resumed training learns from the same bits
        count, found = len(self._lessons), []
        with repeatable(self._device), random_state.seeded(0, self._device):
            for start in range(0, count, self._at_once):
                self._progress(start / count, f"asking the original{f', view {view}' if view else ''}")
                lesson = self._lessons.at(np.arange(start, min(start + self._at_once, count)))
                if self._augmentation:
                    lesson = self._augmentation.of(lesson, view, self._lessons.at)
                found.append(self._agreed(lesson))
        self._model.cpu()
        return torch.cat(found).to(self._home)


def _of_any_batch(artifact: Artifact) -> Artifact:
    """The artefact as if its batch axis were free: what it is asked is put into batches of its own size."""
    if artifact.fixed_batch is None:
        return artifact
    inputs = tuple(dataclasses.replace(spec, shape=("batch", *spec.shape[1:])) for spec in artifact.inputs)
    return dataclasses.replace(artifact, inputs=inputs)


def _filled(inputs: tuple[torch.Tensor, ...], size: int) -> list[tuple[torch.Tensor, ...]]:
    """The inputs in parts of ``size``, the last one filled up with its first example."""
    count = len(inputs[0])
    places = [torch.arange(start, start + size) for start in range(0, count, size)]
    places[-1] = torch.where(places[-1] < count, places[-1], places[-1][0])
    return [tuple(tensor[part.to(tensor.device)] for tensor in inputs) for part in places]


def distilling(
    teacher: Teacher, loss: Callable[..., Any] | None, alpha: float, temperature: float, classes: bool
) -> Step:
    """The step of distillation: ``alpha`` times the soft loss plus ``1 - alpha`` times the loss against the labels.

    For classes the soft loss is that of :func:`soft`, otherwise the mean squared difference of the answers. With
    ``alpha`` 1 no labels are needed; those that fit still say which positions are no more than padding.
    """
    own = prepared(loss)

    def step(call: Call, lesson: Lesson) -> torch.Tensor:
        outputs = call(*lesson.inputs)
        answer, wanted = answer_of(outputs), teacher(lesson)
        if answer.shape != wanted.shape:
            raise BuildError(
                f"the student answers in shape {list(answer.shape[1:])} and the teacher in {list(wanted.shape[1:])}",
                where="teacher", do="give a student with the outputs of the original",
            )  # fmt: skip
        if classes:
            labels = positions(answer, lesson)
            share = 1.0 if labels is None else balance(lesson, lambda labels: labels >= 0)
            taught = imitation(answer, wanted, labels, temperature, lesson.classes_last) * share
        else:
            taught = functional.mse_loss(answer.float(), wanted)
        if alpha == 1:
            return taught
        if isinstance(own, OwnStep):
            return alpha * taught + (1 - alpha) * stepped(own, call, lesson)
        return alpha * taught + (1 - alpha) * hard(own, outputs, lesson if own is not None else meant(lesson, classes))

    return step


def positions(answer: torch.Tensor, lesson: Lesson) -> torch.Tensor | None:
    """Labels, if they are classes and one for each position of the answers; None where they mean something else."""
    try:
        labels = meant(lesson, classes=True).labels
        if labels is None:
            return None
        class_rows(answer, labels)
    except BuildError:
        return None
    return labels


def imitation(
    answer: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor | None, temperature: float, last: bool = False
) -> torch.Tensor:
    """:func:`soft` over every position that has a class; those with a negative label (padding, say) are left out.

    The labels say along which axis classes lie; without them it is axis 1, as torch has it.

    Raises
    ------
    BuildError
        If there are none that fit, and answers have three axes: classes lie along the last of a language model's.
    """
    if labels is None or labels.is_floating_point():
        if wanted.ndim == 3:
            raise BuildError(
                f"without labels that fit, nothing tells where classes lie in answers of shape {list(wanted.shape)}",
                where="train", do="give one label for each position, or set answers=values",
            )  # fmt: skip
        labels = torch.zeros_like(wanted.movedim(1, -1)[..., 0] if wanted.ndim > 1 else wanted, dtype=torch.int64)
    student, teacher = class_rows(answer, labels, last), class_rows(wanted, labels, last)
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
        answer = answer_of(call(*lesson.inputs))
        if lesson.labels is not None:
            with contextlib.suppress(BuildError):  # labels that only the user's loss understands, or that are not used
                return examined(answer, meant(lesson, classes))
        wanted = teacher(lesson)
        if not classes:
            labels = wanted
        elif wanted.numel() == len(lesson):
            labels = (wanted.reshape(-1) > 0).long()
        else:
            labels = wanted.argmax(dim=1)
        return examined(answer, dataclasses.replace(lesson, labels=labels))

    return score


def looked_at(artifact: Artifact) -> TensorSpec:
    """The output that losses look at."""
    names = [spec.name for spec in artifact.outputs]
    return artifact.outputs[names.index("logits") if "logits" in names else 0]


def _is_small(artifact: Artifact, examples: int) -> bool:
    """Whether all answers may be kept: every axis but the batch is fixed, for padding changes from batch to batch."""
    spec = looked_at(artifact)
    fixed = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    return len(fixed) == len(spec.shape) - 1 and 4 * examples * int(np.prod(fixed)) <= REMEMBERED_BYTES
