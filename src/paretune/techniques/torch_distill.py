"""Teach a torch module to answer as the original does: what makes a student, and heals what was cut or rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing


@dataclass(frozen=True)
class TorchDistill(Healing):
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

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The taught module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data or no student, nothing can be learnt from the labels, the teacher's answers do
            not fit the student's, or the training fails (see :func:`paretune.training.trainer.train`).
        """
        from paretune.forms import torch as form
        from paretune.training.healing import heal, sealed

        pupil = self._pupil(artifact, fit)
        module = form.restore(pupil)
        outcome = heal(module, pupil, fit, self, name=self.name)
        return sealed(module, pupil, artifact, fit, form.edits_of(pupil), f"{self.name}: {outcome.line}")

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

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
