"""Teach a torch module to answer as the original does: what makes a student, and heals what was cut or rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.training.plan import Teaching


@dataclass(frozen=True)
class TorchDistill(Teaching):
    """Distillation (Hinton et al. 2015) from the original model; the squared difference where labels are floats.

    ``student=artifact`` trains the module as the steps before left it: pruned, say. ``student=given`` trains the
    workload's ``student`` in its place, which then goes on through the recipe. ``student=made`` makes one of the model,
    with ``width`` of the channels and ``depth`` of the blocks. The original answers every training
    example once, where its answers fit into memory; with ``augment`` it answers the changed images in every step, with
    ``views`` too each of them once, and with ``consensus`` the mean of its answers to all views of an image is taught.
    """

    name: ClassVar[str] = "torch_distill"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    use: ClassVar[str] = "a step before cut or rounded the model, or a smaller student is at hand"
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10", "torch_pruning": "torch-pruning>=1.5",
    }  # fmt: skip
    cost: ClassVar[float] = 600.0

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
        from paretune.training.student import student_of

        learner, made = student_of(self, artifact, fit, self.name)
        module = form.restore(learner)
        outcome = heal(module, learner, fit, self, name=self.name)
        return sealed(module, learner, artifact, fit, form.edits_of(learner), *made, f"{self.name}: {outcome.line}")

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
