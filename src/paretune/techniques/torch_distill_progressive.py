"""Teach a small torch module in steps, by teacher assistants between the original and the student."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.training.plan import Teaching


@dataclass(frozen=True)
class TorchDistillProgressive(Teaching):
    """Distillation by teacher assistants.

    Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant". The original teaches the first
    assistant, each assistant the next, and the last one the student. Assistants are made of the original with shares of
    its channels and blocks, and start from what is left of its weights.
    """

    name: ClassVar[str] = "torch_distill_progressive"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    use: ClassVar[str] = (
        "the student is so much smaller than the original that it cannot follow it, and there is time to train twice"
    )
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10", "torch_pruning": "torch-pruning>=1.5",
    }  # fmt: skip
    cost: ClassVar[float] = 1200.0

    student: str = knob(
        "made", "what learns: the model as it comes, the workload's student, or one made of the model",
        choices=("artifact", "given", "made"),
    )  # fmt: skip
    assistants: tuple[str, ...] = knob(
        (), "shares of the original's channels and blocks that each assistant keeps, WIDTHxDEPTH; none: one half-way"
    )
    assistant_epochs: int = knob(0, "passes over the training data for each assistant; 0: epochs", low=0, high=10_000)

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The taught student, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If no student or assistant can be made, an assistant is not between its teacher and the student in size, or
            as for :class:`~paretune.techniques.torch_distill.TorchDistill`.
        """
        from paretune.forms import torch as form
        from paretune.training.assistants import ladder, stage, taught
        from paretune.training.healing import heal, sealed
        from paretune.training.student import student_of

        learner, made = student_of(self, artifact, fit, self.name)
        steps = ladder(self.assistants, learner, fit, self.name)
        notes = list(made)
        teacher = fit.teacher
        plan = dataclasses.replace(self, epochs=self.assistant_epochs or self.epochs)
        for number, (assistant, note) in enumerate(steps):
            now = stage(fit, number, len(steps) + 1)
            teacher, line = taught(assistant, teacher, now, plan, self.name, f"assistant-{number + 1}")
            notes += [note, line]
        module = form.restore(learner)
        last = stage(fit, len(steps), len(steps) + 1)
        outcome = heal(module, learner, last, self, name=self.name, part="student", teacher=teacher)
        notes.append(f"{self.name}: {outcome.line}, taught by assistant-{len(steps)}")
        return sealed(module, learner, artifact, fit, form.edits_of(learner), *notes)

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
