"""Make the layers of a torch module narrower: whole channels and features go, and what is left heals."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.history import table
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from paretune.ask.data import Split
    from paretune.ask.target import Arrays
    from paretune.forms.torch_dependency import Found
    from paretune.forms.torch_width import Cuts, Group

PROBED = 2
"""Examples by which groups of layers are proven: two, as a model may drop an axis of one."""
KEPT = "they were asked to be kept"


@dataclass(frozen=True)
class TorchPruneChannels(Healing):
    """Structured pruning by a dependency graph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning").

    Channels of convolutions and features of linear layers, embeddings and recurrent layers go with all that hangs on
    them, until ``macs_ratio`` of the multiply-accumulates is left, at once or in cycles. After each cut batch
    normalisation is measured anew, and the module learns to answer as the original does. Every group of layers is
    proven before it is cut (see :mod:`paretune.forms.torch_dependency`); what cannot be cut stays, with a note.

    ``fit.keep`` names modules, or their parents, whose outputs keep their width.
    """

    name: ClassVar[str] = "torch_prune_channels"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = (
        "layers are wide, and the target gains from narrower ones: measure, for a few channels less gain nothing"
    )
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10", "torch_pruning": "torch-pruning>=1.5",
    }  # fmt: skip
    cost: ClassVar[float] = 900.0
    gain: ClassVar[float] = 1.5

    importance: str = knob(
        "l2", "which channels go first: those of the smallest norm (l1, l2, lamp), batch-norm scale, effect on the "
        "loss (taylor), or distance from the other filters (geometric_median)",
        choices=("l1", "l2", "bn_scale", "taylor", "lamp", "geometric_median"),
    )  # fmt: skip
    scope: str = knob(
        "per_layer", "the same share of every layer goes, or the least important channels of all",
        choices=("per_layer", "global"),
    )  # fmt: skip
    macs_ratio: float = knob(0.5, "share of the multiply-accumulates to keep, at most", low=0.01, high=1.0)
    round_to: int = knob(4, "widths are multiples of it, where the layer had as many", low=1, high=1024)
    smallest: int = knob(4, "no layer gets narrower than this", low=1, high=65_536)
    widths: tuple[str, ...] = knob(
        (), "widths chosen beforehand, as PATTERN=WIDTH for paths of modules; they alone decide then"
    )
    iterations: int = knob(1, "cycles of pruning and healing; 1: all at once", low=1, high=100)
    schedule: str = knob(
        "linear", "how the cut grows over the cycles; cubic and exponential take most in the first ones",
        choices=("linear", "cubic", "exponential"),
    )  # fmt: skip
    calibration: int = knob(
        2048, "examples by which batch normalisation is measured anew after a cut, and by which taylor judges",
        low=1, high=10_000_000,
    )  # fmt: skip
    epochs: int = knob(
        10, "passes over the training data after each cut; 0: only batch normalisation is measured anew",
        low=0, high=10_000,
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The narrower module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data, no layer can be made narrower (names one and the reason), ``macs_ratio``
            cannot be reached, ``widths`` name no layer or an impossible width, or the healing fails.
        """
        from paretune.forms import torch as form
        from paretune.forms.torch_edits import difference
        from paretune.training.healing import sealed

        course = self._course(artifact, fit)
        module, told = form.restore(artifact), []
        for cycle in range(1, self.iterations + 1):
            course.narrow(module, cycle)
            told += course.heal(module, cycle)
        before = form.restore(artifact)
        edits = (*form.edits_of(artifact), *difference(before, module))
        notes = (*course.notes(before, module), *told)
        return sealed(module, artifact, artifact, fit, edits, *notes, name=self.name)

    def _course(self, artifact: Artifact, fit: Fit) -> _Course:
        import numpy as np
        import torch

        from paretune.forms import torch as form
        from paretune.training.healing import answers_classes
        from paretune.training.learner import demand_trainable
        from paretune.training.lesson import Lessons, demand_lessons

        data = demand_lessons(fit.train, self.name)
        module = form.restore(artifact)
        if self.epochs or form.is_program(module):
            demand_trainable(module, self.name)
        if self.epochs:
            answers_classes(data, fit, self)  # what nothing can be learnt from is told before anything is cut
        kept, idle = _kept(module, fit.keep)
        fit.unmatched(idle)
        places = np.arange(artifact.fixed_batch or PROBED) % len(data)
        inputs = Lessons(data, artifact, torch.device("cpu")).at(places).inputs
        return _Course(self, artifact, fit, data, inputs, kept)

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()


@dataclass
class _Course:
    """One application of the technique, cycle by cycle."""

    plan: TorchPruneChannels
    artifact: Artifact
    fit: Fit
    data: Split
    inputs: tuple[torch.Tensor, ...]
    kept: frozenset[str]
    left: dict[str, str] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    whole: int = 0

    # -- cutting -----------------------------------------------------------------------------------------------------

    def narrow(self, module: nn.Module, cycle: int) -> None:
        """Cut the share of this cycle, in place, and measure batch normalisation anew."""
        from paretune.forms.torch_width import cut, merged
        from paretune.training.recalibrate import recalibrate
        from paretune.training.selection import going

        self._tell(cycle, 0.0, "looking for what hangs together")
        found = self._found(module)
        if not self.widths:
            self.widths = {group.name: group.width for group in found.groups}
            self.whole = self._macs(module)
        scores = self._scores(module, found.groups)
        groups = [group for group in found.groups if group.name in scores]
        self._demand_some(groups)
        counts = self._counts(module, groups, scores, cycle)
        cuts = merged(group.cuts(going(group, scores[group.name], counts[group.name])) for group in groups)
        self._prove(module, cuts)
        cut(module, cuts)
        recalibrate(
            module, self.artifact, self.data, self.plan.calibration, self.plan.micro_batch or self.plan.batch,
            self.fit.seed, name=self.plan.name,
        )  # fmt: skip

    def _found(self, module: nn.Module) -> Found:
        from paretune.forms import torch as form
        from paretune.forms.torch_dependency import groups

        found = groups(module, form.keywords(self.artifact), self.inputs, known=self.left, seed=self.fit.seed)
        self.left.update(found.left)
        for group in found.groups:
            if any(member.side != "in" and member.path in self.kept for member in group.members):
                self.left[group.name] = KEPT
        return dataclasses.replace(found, groups=tuple(one for one in found.groups if one.name not in self.left))

    def _scores(self, module: nn.Module, groups: Sequence[Group]) -> Mapping[str, torch.Tensor]:
        from paretune.training.importance import by_gradients, by_weights
        from paretune.training.loss import supervised

        plan = self.plan
        if plan.importance == "taylor":
            size = plan.micro_batch or plan.batch
            return by_gradients(
                module, self.artifact, self.data, groups, supervised(self.fit.loss), plan.calibration, size,
                self.fit.seed,
            )  # fmt: skip
        found = by_weights(module, groups, plan.importance)
        for group in groups:
            if group.name not in found:
                self.left[group.name] = f"there is nothing that importance={plan.importance} could look at"
        return found

    def _demand_some(self, groups: Sequence[Group]) -> None:
        if not groups:
            name, reason = next(iter(self.left.items()), ("the model", "it has no layers between others"))
            raise BuildError(
                f"no layer can be made narrower; of {name}: {reason}", where=self.plan.name,
                do="write such layers as torch.nn modules with sizes taken from their inputs, or prune blocks or heads",
            )  # fmt: skip

    def _counts(
        self, module: nn.Module, groups: Sequence[Group], scores: Mapping[str, torch.Tensor], cycle: int
    ) -> dict[str, int]:
        """How many units of each group stay after this cycle."""
        from paretune.forms.torch_width import cut, merged
        from paretune.training.selection import asked, counted, going, progress_of, reached

        plan, share = self.plan, cycle / self.plan.iterations
        if plan.widths:
            wanted = asked(groups, plan.widths, plan.name)
            return {group.name: self._between(group, wanted[group.name], share) for group in groups}

        def cost(counts: Mapping[str, int]) -> int:
            twin = copy.deepcopy(module)
            gone = (group.cuts(going(group, scores[group.name], counts[group.name])) for group in groups)
            cut(twin, merged(gone))
            return self._macs(twin)

        done = progress_of(plan.schedule, share, plan.macs_ratio)
        target = self.whole * (1 - done * (1 - plan.macs_ratio))
        return reached(
            target, cost,
            lambda ratio: counted(groups, scores, ratio, plan.scope, plan.round_to, plan.smallest), plan.name,
        )  # fmt: skip

    def _between(self, group: Group, wanted: int, share: float) -> int:
        """Units on the way from the width there was to the one that is wanted."""
        from paretune.training.selection import progress_of

        size = len(group.units[0])
        first = self.widths[group.name] // size
        done = progress_of(self.plan.schedule, share, wanted / first)
        return min(len(group.units), max(wanted, round(first - done * (first - wanted))))

    def _prove(self, module: nn.Module, cuts: Cuts) -> None:
        from paretune.forms import torch as form
        from paretune.forms.torch_dependency import Proof

        fault = Proof(module, form.keywords(self.artifact), self.inputs, self.fit.seed).fault_of(cuts)
        if fault is not None:
            raise BuildError(
                f"the narrower model would not be the same with fewer channels: {fault}", where=self.plan.name,
                do="keep some layers as they are: --keep PATTERN=fp32, or the knob widths",
            )  # fmt: skip

    def _macs(self, module: nn.Module) -> int:
        from paretune.forms import torch as form
        from paretune.forms import torch_count

        count = self.artifact.fixed_batch or 1
        arrays: Arrays = tuple(tensor[:count].numpy() for tensor in self.inputs)
        found = torch_count.macs(module, form.keywords(self.artifact), arrays)
        if found is None:
            raise BuildError("its multiply-accumulates cannot be counted", where=self.plan.name, do="give widths")
        return found

    # -- healing and telling -----------------------------------------------------------------------------------------

    def heal(self, module: nn.Module, cycle: int) -> list[str]:
        """Learn from the original, in place; a note on it."""
        from paretune.training.healing import heal

        plan = self.plan
        if not plan.epochs:
            return []
        outcome = heal(
            module, self.artifact, self.fit, plan, name=plan.name, part=f"cycle-{cycle}",
            progress=lambda share, text: self._tell(cycle, share, text),
        )  # fmt: skip
        ratio = f"{self._macs(module) / self.whole:.1%} of the multiply-accumulates"
        which = f"cycle {cycle} of {plan.iterations}, {ratio}: " if plan.iterations > 1 else ""
        return [f"{plan.name}: {which}{outcome.line}"]

    def _tell(self, cycle: int, share: float, text: str) -> None:
        total = self.plan.iterations
        named = f"cycle {cycle} of {total}: {text}" if total > 1 else text
        self.fit.progress((cycle - 1 + share) / total, named)

    def notes(self, before: nn.Module, after: nn.Module) -> list[str]:
        """What was done, in figures."""
        from paretune.forms import torch_count
        from paretune.forms.torch_dependency import ANSWERS

        name, now = self.plan.name, self._macs(after)
        changed = _changed(before, after)
        self.fit.record(table(name, "widths", ("layer", "before", "after"), changed))
        sizes = [torch_count.parameters(module) for module in (before, after)]
        found = [
            f"{name}: {self.whole:,} → {now:,} multiply-accumulates ({self.whole / now:.2f}× fewer), "
            f"{sizes[0]:,} → {sizes[1]:,} parameters",
            f"{name}: widths {_widths(changed) or 'as they were'}",
        ]
        reasons: dict[str, list[str]] = {}
        for path, reason in self.left.items():
            if reason == ANSWERS:
                continue  # goes without saying
            reasons.setdefault(reason, []).append(path)
        return found + [f"{name}: {', '.join(paths)} stay: {reason}" for reason, paths in reasons.items()]


def _kept(module: nn.Module, patterns: Sequence[str]) -> tuple[frozenset[str], list[str]]:
    """Paths that the patterns name, with all below them; and the patterns that name nothing."""
    paths = [path for path, _ in module.named_modules() if path]
    paths += [path for path, _ in module.named_parameters()]
    named: set[str] = set()
    idle = []
    for pattern in patterns:
        hit = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not hit:
            idle.append(pattern)
        named |= {path for path in paths if any(path == one or path.startswith(f"{one}.") for one in hit)}
    return frozenset(named), idle


def _changed(before: nn.Module, after: nn.Module) -> list[tuple[str, int, int]]:
    """The layers whose outputs got narrower: path, width before, width after."""
    old = {path: _width(part) for path, part in before.named_modules()}
    now = {path: _width(part) for path, part in after.named_modules()}
    return [(path, first, last) for path, last in now.items() if last and (first := old.get(path)) and first != last]


def _widths(changed: Sequence[tuple[str, int, int]]) -> str:
    """Them by widths: ``16 → 8 conv1, conv2; 32 → 12 conv3``."""
    found: dict[tuple[int, int], list[str]] = {}
    for path, first, last in changed:
        found.setdefault((first, last), []).append(path)
    return "; ".join(f"{first} → {last} {', '.join(paths)}" for (first, last), paths in found.items())


def _width(part: nn.Module) -> int | None:
    """How many channels a layer makes, None for one that only changes them."""
    for attribute in ("out_channels", "out_features", "embedding_dim", "hidden_size"):
        found = getattr(part, attribute, None)
        if isinstance(found, int):
            return found
    return None
