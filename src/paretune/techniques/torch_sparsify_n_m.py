"""Set all but n of every m neighbouring weights of a torch module to zero, as sparse tensor cores take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.sparse_plan import Sparsifying


@dataclass(frozen=True)
class TorchSparsifyNM(Sparsifying):
    """N:M sparsity by magnitude (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks"), healed like others.

    Of every ``m`` neighbours along the axis over which a product sums, the ``n`` largest stay: of ``m`` inputs of each
    output of a linear, recurrent or attention layer [out, in]; of ``m`` input channels of each output channel, at each
    place of the kernel, of a convolution [out, in, *kernel]. With 2:4 that is the layout of a GPU's sparse tensor cores
    (the paper's section 3). Weights whose inputs cannot be cut into groups of ``m`` (the channels of an image, say)
    stay dense. While it heals, ``gradual`` takes one weight more of each group at a time.

    No target of this project uses sparse tensor cores: on all of them it is a smaller file once compressed, no more.
    """

    name: ClassVar[str] = "torch_sparsify_n_m"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = (
        "a GPU with sparse tensor cores is to run the model: two of four weights go, and its products run on the rest"
    )
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0

    n: int = knob(2, "weights of each group that stay", low=1, high=63)
    m: int = knob(4, "weights of a group", low=2, high=64)

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The sparse module, with the interface and structure of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If no weight can be cut into groups of ``m``, the knobs contradict each other, or healing fails (see
            :func:`paretune.training.healing.heal`). Without epochs no training data is needed.
        """
        from paretune.forms import torch as form
        from paretune.training import masks, sparsity
        from paretune.training.sparsify import sparsify

        if self.n >= self.m:
            raise BuildError(f"{self.n} of {self.m} leaves nothing to take", where=self.name, do="set n below m")
        module = form.restore(artifact)
        products = sparsity.Products.of(module, artifact, fit.train)
        found = sparsity.eligible(module, fit, keep=self.keep, spare=self.spare, products=products, where=self.name)
        weights = tuple(weight for weight in found if weight.input_axis is not None and weight.inputs % self.m == 0)
        dense = [weight.name for weight in found if weight not in weights]
        if not weights:
            raise BuildError(
                f"no weight has inputs in groups of {self.m}: {', '.join(dense[:3])} cannot be cut so", where=self.name,
                do="set another m, or use torch_sparsify_magnitude",
            )  # fmt: skip
        held = masks.Masks(weights)
        notes = [f"{self.n}:{self.m} along the input axis, {self.schedule}"]
        if dense:
            notes.append(f"without groups of {self.m} inputs, and dense: {', '.join(dense)}")

        def prune(share: float) -> None:
            masks.shrink_groups(held, self.m - round(share * (self.m - self.n)), self.m)

        return sparsify(module, artifact, fit, self, held, prune, products, *notes, name=self.name)

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()
