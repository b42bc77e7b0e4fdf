"""Teach a torch module to answer as the original does: what makes a student, and heals what was cut or rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Plan


@dataclass(frozen=True)
class TorchDistill(Plan):
    """Distillation (Hinton et al. 2015) from the original model; the squared difference where labels are floats.

    ``student=artifact`` trains the module as the steps before left it: pruned, say. ``student=given`` trains the
    workload's ``student`` in its place, which then goes on through the recipe. The original answers every training
    example once, where its answers fit into memory. Examples are seen as the workload gives them: without augmentation.
    """

    name: ClassVar[str] = "torch_distill"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0

    student: str = knob(
        "artifact", "what learns: the model as it comes, or the workload's student", choices=("artifact", "given")
    )
    alpha: float = knob(0.8, "weight of the teacher's answers; the labels have the rest", low=0.0, high=1.0)
    temperature: float = knob(4.0, "by which logits are divided before they are compared", low=0.1, high=100.0)
    answers: str = knob(
        "auto", "what the model answers; auto: classes where labels are whole numbers, values where they are floats",
        choices=("auto", "classes", "values"),
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The taught module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data or no student, nothing can be learnt from the labels, the teacher's answers do
            not fit the student's, or the training fails (see :func:`paretune.training.trainer.train`).
        """
        from paretune.forms import torch as form
        from paretune.training.device import home
        from paretune.training.distillation import Teacher, as_taught, distilling
        from paretune.training.learner import demand_trainable
        from paretune.training.lesson import demand_lessons
        from paretune.training.trainer import Keeping, train

        pupil = self._pupil(artifact, fit)
        module = form.restore(pupil)
        demand_trainable(module, self.name)
        data = demand_lessons(fit.train, self.name)
        classes = self._classes(data, fit)
        fit.progress(0.0, "asking the original")
        teacher = Teacher(fit.teacher, data, home(), lambda share, text: fit.progress(0.05 * share, text))
        outcome = train(
            module, pupil, data, distilling(teacher, fit.loss, self.alpha, self.temperature, classes), self, fit.seed,
            score=as_taught(teacher, classes),
            keeping=None if fit.checkpoints is None else Keeping(fit.checkpoints),
            progress=lambda share, text: fit.progress(0.05 + 0.95 * share, text),
            name=self.name,
        )  # fmt: skip
        form.save(module, fit.out)
        facts = {key: getattr(pupil, key) for key in ("precision", "parameters", "macs", "base", "origin")}
        interface = {key: getattr(artifact, key) for key in ("keyword_inputs", "output_kind")}
        notes = (*artifact.notes, f"{self.name}: {outcome.line}")
        return Artifact.seal("torch", fit.out, artifact.inputs, artifact.outputs, **interface, **facts, notes=notes)

    def _pupil(self, artifact: Artifact, fit: Fit) -> Artifact:
        """What is to learn, called by the names that its own ``forward`` has."""
        if self.student == "artifact":
            return artifact
        if fit.student is None:
            raise BuildError(
                "the workload has no student", where=f"{self.name}.student",
                do="give Workload(student=…) a smaller module, or use student=artifact",
            )  # fmt: skip
        if artifact.digest != fit.teacher.digest:
            raise BuildError(
                "a student given by the workload cannot take the place of a model that was changed before",
                where=f"{self.name}.student", do="make this the first step, or use student=artifact",
            )  # fmt: skip
        return dataclasses.replace(fit.student, base="student")

    def _classes(self, data: Split, fit: Fit) -> bool:
        """Whether the answers are classes; what the labels must be for that is checked where labels count."""
        from paretune.training.lesson import demand_classes

        labels = next(data.head(1).batches(1)).labels
        if labels is None and (self.alpha < 1 or self.answers == "auto"):
            raise BuildError(
                "has no labels", where=data.name, do="give labels, or set alpha=1 and answers to classes or values"
            )
        if labels is not None and fit.loss is None:
            demand_classes(data)
        if self.answers == "auto":
            return labels is not None and labels.dtype.kind in "iub"
        return self.answers == "classes"

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
