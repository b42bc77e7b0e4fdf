"""Train a torch module on the workload's labels, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.training.plan import Plan


@dataclass(frozen=True)
class TorchFinetune(Plan):
    """Supervised training by the workload's loss: cross-entropy for classes, the squared error for floats, or its own.

    ``student=artifact`` trains the module as the steps before left it. ``student=given`` trains the workload's
    ``student`` in its place, from whatever parameters it has, fresh ones too: what distillation is compared with.
    """

    name: ClassVar[str] = "torch_finetune"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    use: ClassVar[str] = "the labels are good and no teacher is wanted: what distillation is to be compared with"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0

    student: str = knob(
        "artifact", "what learns: the model as it comes, or the workload's student", choices=("artifact", "given")
    )

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The trained module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data or no student, nothing can be learnt from the labels, or the training fails
            (see :func:`paretune.training.trainer.train`).
        """
        from paretune.forms import torch as form
        from paretune.training.healing import sealed, tutored
        from paretune.training.pupil import pupil

        learner = pupil(self.student, artifact, fit, self.name)
        module = form.restore(learner)
        outcome = tutored(module, learner, fit, self, name=self.name)
        return sealed(module, learner, artifact, fit, form.edits_of(learner), f"{self.name}: {outcome.line}")

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
