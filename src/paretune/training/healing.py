"""Healing: a module that was made smaller, or made up anew, learns from the original; then it is sealed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.code import fingerprint_of
from paretune.ask.data import Split
from paretune.ask.own_step import OwnStep
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_count
from paretune.forms.torch_edits import Edit
from paretune.training import random_state
from paretune.training.augmentation import Augmentation
from paretune.training.device import home
from paretune.training.distillation import Teacher, as_taught, distilling, looked_at
from paretune.training.learner import demand_trainable
from paretune.training.ledger import ledger
from paretune.training.lesson import Lessons, demand_classes, demand_lessons
from paretune.training.loss import Step, examining, supervised
from paretune.training.outcome import Outcome
from paretune.training.plan import Healing, Plan
from paretune.training.trainer import Each, Keeping, train

ASKING = 0.05
"""Share of the progress that the original's answers take."""


def heal(
    module: torch.nn.Module,
    artifact: Artifact,
    fit: Fit,
    plan: Healing,
    *,
    name: str,
    part: str = "",
    companion: torch.nn.Module | None = None,
    each: Each = lambda done, total: None,
    around: Callable[[Step], Step] = lambda step: step,
    teacher: Artifact | Teacher | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Outcome:
    """Train ``module`` in place, by distillation from the original; only ``fit.train`` is looked at.

    Parameters
    ----------
    artifact
        Whose inputs the module takes.
    name
        The technique's name, for errors.
    part
        Tells the trainings of one technique apart: each has checkpoints of its own.
    companion, each
        As for :func:`paretune.training.trainer.train`.
    around
        Makes another step of the step of distillation: one that adds a term, say.
    teacher
        Who teaches in the original's place; a :class:`Teacher` is asked as it is.
    progress
        In the place of ``fit.progress``.

    Raises
    ------
    BuildError
        If there is no training data, nothing can be learnt from the labels, the teacher's answers do not fit the
        module's, or the training fails (see :func:`paretune.training.trainer.train`).
    """
    demand_trainable(module, name)
    data = demand_lessons(fit.train, name)
    classes = answers_classes(data, fit, plan)
    told = fit.progress if progress is None else progress
    reached = [0.0]

    def tell(share: float, text: str) -> None:
        reached[0] = share
        told(share, text)

    def asking(share: float, text: str) -> None:
        told(max(reached[0], ASKING * share), text)

    tell(0.0, "asking the original")
    wise = (
        teacher
        if isinstance(teacher, Teacher)
        else Teacher(
            teacher or fit.teacher, data, home(), asking,
            augmentation=Augmentation.planned(plan, fit.seed, len(data)),
            consensus=plan.consensus, precision=plan.teacher_precision, channels_last=plan.channels_last,
            at_once=plan.micro_batch, name=name,
        )
    )  # fmt: skip
    step = around(distilling(wise, fit.loss, plan.alpha, plan.temperature, classes))
    outcome = train(
        module, artifact, data, step, plan, fit.seed, score=as_taught(wise, classes), companion=companion, each=each,
        keeping=None if fit.checkpoints is None else Keeping(fit.checkpoints / part if part else fit.checkpoints),
        progress=lambda share, text: tell(ASKING + (1 - ASKING) * share, text),
        name=name, about=(*_about(fit), wise.artifact.digest),
    )  # fmt: skip
    fit.record(outcome.entry(name, part))
    notes = [note for note in (_unheard(wise.artifact), wise.note) if note]
    return dataclasses.replace(outcome, note="; ".join(notes))


def tutored(module: torch.nn.Module, artifact: Artifact, fit: Fit, plan: Plan, *, name: str) -> Outcome:
    """Train ``module`` in place on the labels of ``fit.train``, by the workload's loss.

    Raises
    ------
    BuildError
        If there is no training data, nothing can be learnt from the labels, or the training fails (see
        :func:`paretune.training.trainer.train`).
    """
    demand_trainable(module, name)
    data = demand_lessons(fit.train, name)
    if fit.loss is None:
        demand_classes(data)
    outcome = train(
        module, artifact, data, supervised(fit.loss), plan, fit.seed, score=examining(fit.loss),
        progress=fit.progress, name=name, about=_about(fit),
        keeping=None if fit.checkpoints is None else Keeping(fit.checkpoints),
    )  # fmt: skip
    fit.record(outcome.entry(name))
    return outcome


def answers_classes(data: Split, fit: Fit, plan: Healing) -> bool:
    """Whether the answers are classes; what the labels must be for that is checked where labels count."""
    classes = means_classes(data, fit, plan)
    if classes and plan.alpha < 1 and fit.loss is None:
        demand_classes(data)
    return classes


def means_classes(data: Split, fit: Fit, plan: Healing) -> bool:
    """Whether the answers are classes, by the plan's word or the labels' kind; a few examples are enough to tell."""
    labels = next(data.head(1).batches(1)).labels
    needed = plan.alpha < 1 and not isinstance(fit.loss, OwnStep)
    if labels is None and (needed or plan.answers == "auto"):
        raise BuildError(
            "has no labels", where=data.name, do="give labels, or set alpha=1 and answers to classes or values"
        )
    classes = plan.answers == "classes"
    if plan.answers == "auto":
        classes = labels is not None and labels.dtype.kind in "iub"
    return classes


def _about(fit: Fit) -> tuple[str, ...]:
    return () if fit.loss is None else (fingerprint_of(fit.loss),)


def _unheard(teacher: Artifact) -> str:
    """Which outputs are not taught, in words; nothing where there is only one."""
    told = looked_at(teacher).name
    left = ", ".join(spec.name for spec in teacher.outputs if spec.name != told)
    return f"of the outputs only {told} is compared with the original's, not {left}" if left else ""


def sealed(
    module: torch.nn.Module,
    base: Artifact,
    interface: Artifact,
    fit: Fit,
    edits: Sequence[Edit],
    *notes: str,
    name: str = "",
) -> Artifact:
    """Write the module into ``fit.out`` and seal it, its parameters and multiply-accumulates counted anew.

    Parameters
    ----------
    base
        The artefact that the module was restored from: it tells whose live module the edits and parameters belong to.
    interface
        The artefact whose inputs, outputs and convention of calls the result keeps.
    edits
        All of them, those of ``base`` first.
    notes
        Added to those of ``interface``.
    name
        The technique's name, where the module may be smaller than ``base``: the report is told where the rest went.
    """
    form.save(module.eval().cpu(), fit.out, edits)
    arrays = None if fit.train is None else tuple(tensor.numpy() for tensor in _first(base, fit.train))
    made = Artifact.seal(
        "torch", fit.out, interface.inputs, interface.outputs,
        keyword_inputs=interface.keyword_inputs, output_kind=interface.output_kind,
        precision=torch_count.precision(module), parameters=torch_count.parameters(module),
        macs=base.macs if arrays is None else torch_count.macs(module, form.keywords(base), arrays),
        base=base.base, origin=base.origin, notes=(*interface.notes, *notes),
    )  # fmt: skip
    if fit.train is not None:
        _demand_restored(module, made, base, fit.train)
    if name and arrays is not None:
        entry = ledger(name, form.restore(base), module, form.keywords(base), arrays)
        if entry is not None:
            fit.record(entry)
    return made


def _first(artifact: Artifact, data: Split) -> tuple[torch.Tensor, ...]:
    """The first example, in the order of the artefact's inputs."""
    return Lessons(data.head(1), artifact, torch.device("cpu")).at(np.arange(1)).inputs


def _demand_restored(module: torch.nn.Module, made: Artifact, base: Artifact, data: Split) -> None:
    """Refuse an artefact that does not answer as the module that it was saved from."""
    cpu, tensors = torch.device("cpu"), _first(base, data)
    answers = []
    for one in (module, form.restore(made)):
        with torch.no_grad(), form.plain_attention(), random_state.seeded(0, cpu):
            answers.append(form.call_flat(one, form.keywords(base), tensors)[1])
    wanted, found = answers
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.is_floating_point() and bool(ours.isnan().any()):
            raise BuildError(
                "what was made answers a training example with NaN", where=type(module).__qualname__,
                do="lower learning_rate, or look for weights that are not finite",
            )  # fmt: skip
        # memory in another order sums in another order; what is infinite must be so in both
        finite = ours[ours.isfinite()] if ours.is_floating_point() else ours[:0]
        slack = 1e-3 * max(1.0, float(finite.abs().max())) if finite.numel() else 0.0
        if ours.shape != theirs.shape or not torch.allclose(theirs, ours, rtol=0.0, atol=slack, equal_nan=True):
            raise BuildError(
                "what was saved does not answer as the module that it was saved from", where=type(module).__qualname__,
                do="keep what forward depends on in plain attributes, parameters or buffers of the modules",
            )  # fmt: skip
