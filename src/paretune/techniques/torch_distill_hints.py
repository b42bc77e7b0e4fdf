"""Teach a torch module by hints: what modules inside it give is held to what modules inside the original give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.training.plan import Teaching


@dataclass(frozen=True)
class TorchDistillHints(Teaching):
    """Distillation with hints (Romero et al. 2015, "FitNets"): the squared difference of features of named modules.

    Where shapes differ the student's feature is projected: a linear map of the channels, or of the last axis of
    sequences and vectors, trained with the student and left out of the artefact. The original is listened to while it
    answers, so it answers in every step. Of a module that runs several times in a forward pass the last run counts,
    and of several outputs the first tensor.
    """

    name: ClassVar[str] = "torch_distill_hints"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    use: ClassVar[str] = (
        "a thin, deep student is to be taught, or modules that match are known: features are compared as they are"
    )
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10", "torch_pruning": "torch-pruning>=1.5",
    }  # fmt: skip
    cost: ClassVar[float] = 900.0

    pairs: tuple[str, ...] = knob(
        (), "modules that are compared, student.path=teacher.path; none: those half-way through both"
    )
    weight: float = knob(1.0, "weight of the mean squared difference of features", low=0.0, high=1e6)
    hints_first: float = knob(
        0.0, "share of the steps in which hints teach alone, as in the first stage of FitNets",
        low=0.0, high=0.9,
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The taught module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If a module of ``pairs`` does not exist, two do not fit or none are found, no student can be made, or as
            for :class:`~paretune.techniques.torch_distill.TorchDistill`.
        """
        from paretune.training.guide import guided, hint_term

        return guided(
            self, artifact, fit, self.name, lambda guidance: hint_term(guidance, self.pairs, fit.seed), self.weight,
            self.hints_first,
        )  # fmt: skip

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
