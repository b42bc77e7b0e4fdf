"""Prune a transformer's width where it costs no shortcut: attention heads, and units of feed-forward parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.knob import knob
from paretune.build.history import table
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing

if TYPE_CHECKING:
    import torch

    from paretune.forms.torch_edits import Edit
    from paretune.forms.torch_hidden import Hidden


@dataclass(frozen=True)
class TorchPruneHeads(Healing):
    """Take out the heads and the feed-forward units on which the loss hangs least; then distil from the original.

    Both are found by disturbing the model (see :mod:`paretune.forms.torch_hidden`), whatever its modules are called:
    ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer``, attention of linear layers for queries, keys and
    values, and any two linear layers with nothing but elementwise functions between them, an MLP's too. (Michel, Levy &
    Neubig 2019, "Are Sixteen Heads Really Better than One?"; McCarley, Chakravarti & Sil 2019, "Structured Pruning of a
    BERT-based Question Answering Model".)
    """

    name: ClassVar[str] = "torch_prune_heads"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = (
        "a transformer must be faster and its heads and feed-forward layers are wider than its task needs"
    )
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0
    gain: ClassVar[float] = 1.3

    epochs: int = knob(10, "passes over the training data", low=0, high=10_000)
    heads_ratio: float = knob(
        0.3333, "share of the attention heads that goes; one stays everywhere", low=0.0, high=0.99
    )
    feedforward_ratio: float = knob(0.4, "share of the feed-forward units that goes", low=0.0, high=0.99)
    round_to: int = knob(
        8, "feed-forward widths are rounded to a multiple of it, where they are larger", low=1, high=1024
    )
    importance: str = knob(
        "taylor", "how heads and units are ranked: first-order Taylor of the loss, or the norm of their weights",
        choices=("taylor", "weight"),
    )  # fmt: skip
    scope: str = knob(
        "layer", "the same share of every layer, or the least important of all layers", choices=("layer", "global")
    )
    sample: int = knob(512, "training examples on which importance is measured", low=8, high=65_536)
    recalibration: int = knob(
        2048, "training examples on which batch normalisation is measured anew after the cut; 0: it stays as it is",
        low=0, high=1_000_000,
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The narrower module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data, nothing can be taken out (names the attention whose ``forward`` counts on the
            number of heads), or healing fails (see :func:`paretune.training.healing.heal`).
        """
        from paretune.forms import torch as form
        from paretune.forms.torch_edits import difference
        from paretune.forms.torch_hidden import narrow
        from paretune.forms.torch_run import twin
        from paretune.training.healing import answers_classes, sealed
        from paretune.training.lesson import demand_lessons

        data = demand_lessons(fit.train, self.name)
        if self.epochs:
            answers_classes(data, fit, self)  # what nothing can be learnt from is told before ranking
        module = form.restore(artifact)
        if form.is_program(module):
            raise BuildError(
                "the model is an exported program, whose widths are fixed", where=self.name,
                do="give the nn.Module that it was exported from",
            )  # fmt: skip
        opened = self._unpacked(module)
        before = twin(module)
        kept, unable = self._chosen(module, artifact, data, fit)
        for hidden, units in kept.items():
            narrow(module, hidden, units)
        rows = [(one.into, one.count, len(units), "heads" if one.size > 1 else "units") for one, units in kept.items()]
        fit.record(table(self.name, "widths", ("before layer", "before", "after", "of"), rows))
        notes = [_told(kept, unable, before, module), *self._healed(module, artifact, fit, data)]
        edits = (*form.edits_of(artifact), *opened, *difference(before, module))
        return sealed(
            module, artifact, artifact, fit, edits, *(f"{self.name}: {note}" for note in notes), name=self.name
        )

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()

    def _unpacked(self, module: torch.nn.Module) -> tuple[Edit, ...]:
        """torch's own attention replaced by layers, in place, where heads shall go."""
        from paretune.forms.torch_attention import Unpack, is_openable

        paths = tuple(path for path, part in module.named_modules() if is_openable(part) and path)
        if not paths or not self.heads_ratio:
            return ()
        edit = Unpack(paths)
        edit.apply(module)
        return (edit,)

    def _chosen(
        self, module: torch.nn.Module, artifact: Artifact, data: Split, fit: Fit
    ) -> tuple[dict[Hidden, list[int]], tuple[str, ...]]:
        """The units that stay, and the attention whose heads must."""
        from paretune.forms.torch_fake_quant import quantisers
        from paretune.forms.torch_hidden import found
        from paretune.forms.torch_run import runner

        if next(quantisers(module), None) is not None:
            raise BuildError(
                "the model is quantised, and heads are found among plain linear layers", where=self.name,
                do="put this step before torch_qat",
            )  # fmt: skip

        fit.progress(0.0, "looking for heads and feed-forward parts")
        able, unable = found(module, runner(artifact, data))
        heads = [one for one in able if one.size > 1 and self.heads_ratio]
        units = [one for one in able if one.size == 1 and self.feedforward_ratio]
        if not heads and not units:
            stuck = f"; {unable[0]} counts on the number of its heads" if unable else ""
            raise BuildError(
                f"found no heads or feed-forward parts that can be taken out{stuck}", where=self.name,
                do="prune channels or blocks; or, where there is attention, let its forward take sizes from the layers "
                "or from an attribute",
            )  # fmt: skip
        fit.progress(0.02, f"ranking by {self.importance}")
        scores = self._scores(module, artifact, data, fit, [*heads, *units])
        kept = self._kept(heads, scores, self.heads_ratio, 1) | self._kept(
            units, scores, self.feedforward_ratio, self.round_to
        )
        return kept, unable

    def _scores(
        self, module: torch.nn.Module, artifact: Artifact, data: Split, fit: Fit, groups: Sequence[Hidden]
    ) -> dict[Hidden, list[float]]:
        from paretune.training.taylor import first_order

        if self.importance == "weight":
            return {one: _norms(module, one) for one in groups}
        sizes = {one.into: one.size for one in groups}
        scored = first_order(module, artifact, data.take(self.sample, fit.seed), fit, sizes, self.name)
        return {one: scored[one.into].tolist() for one in groups}

    def _kept(
        self, groups: Sequence[Hidden], scores: Mapping[Hidden, list[float]], ratio: float, multiple: int
    ) -> dict[Hidden, list[int]]:
        """The most important units of each group, in their old order."""
        shares = dict.fromkeys(groups, ratio)
        if self.scope == "global":
            # scores of different layers are compared as shares of their layer's norm
            norms = {one: sum(score**2 for score in scores[one]) ** 0.5 or 1.0 for one in groups}
            ranked = sorted(
                (scores[one][unit] / norms[one], place, unit)
                for place, one in enumerate(groups)
                for unit in range(one.count)
            )
            gone = [place for _, place, _ in ranked[: round(ratio * len(ranked))]]
            shares = {one: gone.count(place) / one.count for place, one in enumerate(groups)}
        kept = {}
        for one in groups:
            step = multiple if one.count > multiple else 1
            ideal, able = one.count * (1 - shares[one]), (*range(step, one.count, step), one.count)
            many = min(able, key=lambda count, ideal=ideal: (abs(count - ideal), -count))  # type: ignore[misc]
            best = sorted((-score, unit) for unit, score in enumerate(scores[one]))[:many]
            kept[one] = sorted(unit for _, unit in best)
        return kept

    def _healed(self, module: torch.nn.Module, artifact: Artifact, fit: Fit, data: Split) -> list[str]:
        """Teach it in place; how far its answers are from the original's, before and after."""
        from paretune.training.distance import Distance
        from paretune.training.healing import heal
        from paretune.training.recalibrate import recalibrate

        distance = Distance(artifact, data.take(self.sample, fit.seed), fit, self)

        def away() -> str:
            return f"{distance(copy.deepcopy(module).to(distance.device)):.3g} {distance.unit}"

        told = [f"{away()} after the cut"]
        if self.recalibration and recalibrate(
            module, artifact, data, self.recalibration, self.micro_batch or self.batch, fit.seed, name=self.name
        ):
            told.append(f"{away()} with batch normalisation measured anew")
        if self.epochs:
            outcome = heal(module, artifact, fit, self, name=self.name)
            told.append(f"{away()} after healing ({outcome.line})")
        return [f"away from the original: {', '.join(told)}"]


def _norms(module: torch.nn.Module, hidden: Hidden) -> list[float]:
    """The L2 norm of all weights that make a unit or take it in (Han et al. 2015 prune single weights by it)."""
    from paretune.forms.torch_hidden import layer

    squares = layer(module, hidden.into).weight.detach().double().square().sum(dim=0)
    for path in hidden.sources:
        squares = squares + layer(module, path).weight.detach().double().square().sum(dim=1)
    norms: list[float] = squares.reshape(hidden.count, hidden.size).sum(dim=1).sqrt().tolist()
    return norms


def _told(
    kept: Mapping[Hidden, Sequence[int]], unable: Sequence[str], before: torch.nn.Module, after: torch.nn.Module
) -> str:
    from paretune.forms import torch_count

    told = []
    for word, groups in (
        ("heads", [one for one in kept if one.size > 1]),
        ("feed-forward units", [one for one in kept if one.size == 1]),
    ):
        if groups:
            each = ", ".join(f"{one.into} {one.count} → {len(kept[one])}" for one in groups)
            total, left = sum(one.count for one in groups), sum(len(kept[one]) for one in groups)
            told.append(f"{word} {total:,} → {left:,} ({each})")
    told += [f"all heads before {path} stay, as forward counts on their number" for path in unable]
    return "; ".join([*told, f"parameters {torch_count.parameters(before):,} → {torch_count.parameters(after):,}"])
