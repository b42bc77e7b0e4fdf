"""Find the few weights of a torch module that learn by themselves what all of them learn together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing

if TYPE_CHECKING:
    from torch import nn

    from paretune.training.sparsity import Products
    from paretune.training.ticket import Ticket


@dataclass(frozen=True)
class TorchLotteryTicket(Healing):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, "The Lottery Ticket Hypothesis"; Frankle,
    Dziugaite, Roy & Carbin 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis").

    The module is trained with all its weights. Then, round by round: a share of the weights that live, the smallest
    after training, dies; the others go back to what they were at an early step; and the module is trained anew, its
    whole schedule long. ``ticket=random`` moves the dead to random places of each layer before the last training: what
    the winning ticket is to be compared with, at the same sparsity of every layer, the same early weights and the same
    order of the data.

    ``start=given`` trains on from the weights of the model that is to be made smaller; ``start=fresh`` from new first
    weights, as the papers do, which takes as many epochs as the model once took. Every training is by distillation from
    the original; ``alpha=0`` learns from the labels alone.

    Beside the model stands ``ticket.safetensors``: which weights live, a bit each, and the early values of those. It is
    part of the artefact, and of its size, but no runtime needs it; :func:`paretune.training.ticket.redeem` lays it on
    the model again.
    """

    name: ClassVar[str] = "torch_lottery_ticket"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = (
        "you want to know whether a sparse net trains from its early weights, and have time for many trainings"
    )
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 3000.0

    rounds: int = knob(4, "prunings; there is one training more than that", low=1, high=50)
    rate: float = knob(0.2, "share of the living weights that die in each round", low=0.001, high=0.99)
    rewind: float = knob(
        0.05, "share of the first training's steps after which the weights are taken that each round goes back to",
        low=0.0, high=1.0,
    )  # fmt: skip
    start: str = knob(
        "given", "the first training's first weights: the model's, or new ones", choices=("given", "fresh")
    )
    ticket: str = knob(
        "winning", "what lives in the end: the largest weights, or as many random ones of each layer",
        choices=("winning", "random"),
    )  # fmt: skip
    scope: str = knob(
        "global", "the smallest of all weights together die, or the same share of each weight",
        choices=("global", "per_layer"),
    )  # fmt: skip
    spare: str = knob(
        "none", "whether the first weight that inputs meet stays dense, or the last one",
        choices=("none", "first", "last", "both"),
    )  # fmt: skip
    keep: tuple[str, ...] = knob((), "patterns of module or parameter names that stay dense")

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The share of zeros in each training after the first."""
        shares = tuple(1 - (1 - self.rate) ** number for number in range(1, self.rounds + 1))
        # a random ticket needs how many weights of each layer live, and per layer that is known beforehand
        return shares[-1:] if self.ticket == "random" and self.scope == "per_layer" else shares

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The trained ticket, with the interface and structure of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no weight to take, a layer cannot be given new first weights, the knobs contradict each other,
            or a training fails (see :func:`paretune.training.healing.heal`).
        """
        from paretune.forms import torch as form
        from paretune.training import masks, sparsity
        from paretune.training.healing import sealed
        from paretune.training.ticket import FILE, Ticket, renew

        if self.patience and self.rewind * self.epochs > 1:
            raise BuildError(
                "patience may keep an epoch before the early weights were taken", where=self.name,
                do="set patience=0, or rewind to within the first epoch",
            )  # fmt: skip
        module = form.restore(artifact)
        products: Products = sparsity.Products.of(module, artifact, fit.train)
        weights = sparsity.eligible(module, fit, keep=self.keep, spare=self.spare, products=products, where=self.name)
        if self.start == "fresh":
            renew(module, fit.seed, self.name)
        held = Ticket(module, masks.Masks(weights))
        curves = self._rounds(module, artifact, fit, held)
        taken = held.save(fit.out)
        fit.record(sparsity.table(self.name, weights, products))
        how = (
            f"{self.name}: the {self.ticket} ticket of {self.rounds} rounds, {self.scope}, from {self.start} weights "
            f"as they were after {self.rewind:.0%} of the first training"
        )
        trained = [f"{name}: {curve}" for name, curve in zip(("all weights", *self._titles), curves, strict=True)]
        said = sparsity.told(module, artifact, weights, products)
        kept = f"{FILE}: the mask and the early weights, {taken:,} bytes of the artefact that no runtime needs"
        return sealed(module, artifact, artifact, fit, form.edits_of(artifact), how, *trained, *said, kept)

    @property
    def _titles(self) -> tuple[str, ...]:
        return tuple(f"sparsity {share:.1%}" for share in self.sparsities)

    def _rounds(self, module: nn.Module, artifact: Artifact, fit: Fit, held: Ticket) -> list[str]:
        """Train, prune, rewind, and again; the learning curve of each training in a line."""
        from paretune.training import masks
        from paretune.training.healing import heal

        trainings = len(self.sparsities) + 1
        curves = []

        def first(done: int, total: int) -> None:
            if done == round(self.rewind * total):
                held.take()

        def later(done: int, total: int) -> None:
            held.masks.hold()

        for number in range(trainings):
            outcome = heal(
                module, artifact, fit, self, name=self.name, part=f"round-{number}",
                companion=held.masks if number else held, each=later if number else first,
                progress=_slice(fit.progress, number, trainings),
            )  # fmt: skip
            curves.append(outcome.line)
            if number < trainings - 1:
                masks.shrink(held.masks, masks.goals(held.masks.weights, self.sparsities[number], self.scope))
                if self.ticket == "random" and number == trainings - 2:
                    held.shuffle(fit.seed)
                held.rewind()
        return curves

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()


def _slice(told: Callable[[float, str], None], number: int, trainings: int) -> Callable[[float, str], None]:
    """The progress of one training of several."""
    return lambda share, text: told((number + share) / trainings, f"training {number + 1} of {trainings}, {text}")
