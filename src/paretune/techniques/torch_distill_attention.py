"""Teach a torch module to look where the original looks: attention transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.training.plan import Teaching


@dataclass(frozen=True)
class TorchDistillAttention(Teaching):
    """Distillation with a term that holds the student's attention to the original's.

    Of convolutional nets the spatial maps at the ends of their stages (Zagoruyko & Komodakis 2017, "Paying More
    Attention to Attention"); of transformers the self-attention maps and value relations of their last layers (Wang et
    al. 2020, "MiniLM"), also where a fused kernel computes them. The original is listened to while it answers, so it
    answers in every step. Of a module that runs several times in a forward pass the last run counts, and of several
    outputs the first tensor.
    """

    name: ClassVar[str] = "torch_distill_attention"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "distil"
    use: ClassVar[str] = "plain distillation of a convolutional net or a transformer leaves a gap, and time is left"
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10", "torch_pruning": "torch-pruning>=1.5",
    }  # fmt: skip
    cost: ClassVar[float] = 900.0

    maps: str = knob(
        "auto", "what is compared; auto: attention maps and value relations where modules attend, else spatial maps",
        choices=("auto", "spatial", "attention", "relations"),
    )  # fmt: skip
    pairs: tuple[str, ...] = knob(
        (), "modules that are compared, student.path=teacher.path; none: the last that attend, or the ends of stages"
    )
    weight: float = knob(1.0, "weight of the term, the mean over pairs; spatial maps count ×1000", low=0.0, high=1e6)

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The taught module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If a module of ``pairs`` does not exist, two do not fit or none are found, no student can be made, or as
            for :class:`~paretune.techniques.torch_distill.TorchDistill`.
        """
        from paretune.training.guide import attention_term, guided

        return guided(
            self, artifact, fit, self.name, lambda guidance: attention_term(guidance, self.pairs, self.maps),
            self.weight,
        )  # fmt: skip

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
