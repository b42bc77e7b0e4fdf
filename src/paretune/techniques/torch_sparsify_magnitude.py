"""Set a torch module's least important weights to zero, wherever they are, and heal the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.sparse_plan import Sparsifying


@dataclass(frozen=True)
class TorchSparsifyMagnitude(Sparsifying):
    """Unstructured pruning by magnitude (Han, Pool, Tran & Dally 2015) or movement, healed by distillation.

    The zeros come gradually (Zhu & Gupta 2017) or at once, and stay. ``movement`` keeps the weights that training moves
    away from zero (Sanh, Wolf & Rush 2020, "Movement Pruning"): it adds up w · Δw over the updates, where the paper
    adds up w times the loss's negative gradient. So the optimizer's own arithmetic counts, weight decay among it, and
    several processes agree; and a weight that is gone does not come back.

    The result has exact zeros and nothing else changed. It is smaller once compressed. Runtimes that compute with dense
    tensors gain no speed from it.
    """

    name: ClassVar[str] = "torch_sparsify_magnitude"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = "the compressed file must shrink, or hardware skips zeros; dense runtimes gain no time"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0

    sparsity: float = knob(0.8, "share of the weights that become zero", low=0.0, high=0.999)
    scope: str = knob(
        "global", "the same share of each weight, the least important of all together, or by each weight's shape",
        choices=("per_layer", "global", "erdos_renyi"),
    )  # fmt: skip
    importance: str = knob(
        "magnitude", "what is kept: weights that are large, or that move away from zero",
        choices=("magnitude", "movement"),
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The sparse module, with the interface and structure of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no weight to make sparse, the knobs contradict each other, or healing fails (see
            :func:`paretune.training.healing.heal`). Without epochs no training data is needed.
        """
        from paretune.forms import torch as form
        from paretune.training import masks, sparsity
        from paretune.training.sparsify import sparsify

        moving = self.importance == "movement"
        if moving and (not self.epochs or not self.ramp(self.name).end):
            raise BuildError(
                "movement shows only in training, and all zeros would come before it", where=self.name,
                do="set epochs, and begin (one_shot) or end (gradual), above 0",
            )  # fmt: skip
        module = form.restore(artifact)
        products = sparsity.Products.of(module, artifact, fit.train)
        weights = sparsity.eligible(module, fit, keep=self.keep, spare=self.spare, products=products, where=self.name)
        held = masks.Masks(weights, moving)
        prune = partial(masks.shrink, held, masks.goals(weights, self.sparsity, self.scope))
        how = f"{self.importance}, {self.scope}, {self.schedule}"
        return sparsify(module, artifact, fit, self, held, prune, products, how, name=self.name)

    def untrained(self) -> Self:
        """By magnitude: movement shows only in training."""
        return dataclasses.replace(self, importance="magnitude")

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
