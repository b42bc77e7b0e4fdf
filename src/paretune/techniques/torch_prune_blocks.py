"""Prune a torch module's depth: whole residual blocks or encoder layers go, the rest learns to do without."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.data import feeds
from paretune.ask.knob import knob
from paretune.build.history import Entry, table
from paretune.build.passing import is_passing
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing

if TYPE_CHECKING:
    import torch

    from paretune.forms.torch_blocks import Block

RANKING = 0.3
"""Share of a cycle's progress that choosing its blocks takes, where there is training to follow."""


@dataclass(frozen=True)
class TorchPruneBlocks(Healing):
    """Leave out the blocks whose absence changes the answers least; then distil from the original.

    A block is a member of a ``Sequential`` or ``ModuleList``, at any depth, that answers in the shape of its first
    input. Blocks are ranked by what the answers lose for each multiply-accumulate saved: the Kullback–Leibler
    divergence of the classes' probabilities from the original's, or the mean squared difference of values, on examples
    drawn from the training data. (That a deep residual net loses little by one block: Veit, Wilber & Belongie 2016,
    "Residual Networks Behave Like Ensembles of Relatively Shallow Networks".) With ``iterations`` blocks go a few at a
    time, and what is left is healed and ranked anew in between.
    """

    name: ClassVar[str] = "torch_prune_blocks"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "prune"
    use: ClassVar[str] = "the model is deep and latency is what counts: kernels stay as wide as they are"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0
    gain: ClassVar[float] = 1.8

    epochs: int = knob(10, "passes over the training data, in all cycles together", low=0, high=10_000)
    macs_ratio: float = knob(0.5, "share of the multiply-accumulates that is kept, at most", low=0.01, high=1.0)
    remove: tuple[str, ...] = knob((), "paths of the modules to leave out, in the place of choosing by macs_ratio")
    ranking: str = knob(
        "greedy", "each block without those that went before it; or each alone, once in a cycle",
        choices=("greedy", "single"),
    )  # fmt: skip
    most: float = knob(
        1.0, "largest share of a container's members (a stage of the net) that is chosen to go", low=0.0, high=1.0
    )  # fmt: skip
    sample: int = knob(256, "training examples on which blocks are ranked", low=8, high=65_536)
    iterations: int = knob(1, "cycles of cutting and healing, each with an equal share of the cut", low=1, high=100)
    last_share: float = knob(0.5, "share of the epochs that the last of several cycles has", low=0.0, high=1.0)
    recalibration: int = knob(
        2048, "training examples on which batch normalisation is measured anew after a cut; 0: it stays as it is",
        low=0, high=1_000_000,
    )  # fmt: skip

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The shallower module, with the interface of the artefact; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data, no block can be left out, ``macs_ratio`` cannot be reached, a path of
            ``remove`` is wrong, or healing fails (see :func:`paretune.training.healing.heal`).
        """
        from paretune.forms import torch as form
        from paretune.forms.torch_blocks import edits
        from paretune.training.healing import sealed

        pruning = Pruning(self, artifact, fit)
        module = pruning.run()
        left_out = {block.path for block in pruning.gone}
        rows = [(block.path, 1, int(block.path not in left_out)) for block in pruning.pool]
        fit.record(table(self.name, "blocks", ("block", "before", "after"), rows))
        cut = (*form.edits_of(artifact), *edits(pruning.gone))
        lines = (f"{self.name}: {line}" for line in pruning.lines)
        return sealed(module, artifact, artifact, fit, cut, *lines, name=self.name)

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()

    def shares(self) -> tuple[int, ...]:
        """The epochs of each cycle: their sum is ``epochs``."""
        if self.iterations == 1:
            return (self.epochs,)
        last = max(min(1, self.epochs), round(self.epochs * self.last_share))
        each, rest = divmod(self.epochs - last, self.iterations - 1)
        return (*(each + (cycle < rest) for cycle in range(self.iterations - 1)), last)


@dataclass
class Pruning:
    """A pruning under way. ``whole`` keeps every block and shares its tensors with what is left, so that paths stay."""

    plan: TorchPruneBlocks
    artifact: Artifact
    fit: Fit
    gone: list[Block] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    spare: int = 0  # epochs of cycles that had nothing to heal
    fresh: bool = False  # whether blocks went since the last healing
    entries: list[Entry] = field(default_factory=list)  # what the report was told of finished cycles

    def __post_init__(self) -> None:
        from paretune.forms import torch as form
        from paretune.training.checkpoint import purpose
        from paretune.training.distance import Distance
        from paretune.training.healing import answers_classes
        from paretune.training.lesson import demand_lessons

        self.name, record = self.plan.name, self.fit.record

        def remember(entry: Entry) -> None:
            self.entries.append(entry)
            record(entry)

        self.fit = dataclasses.replace(self.fit, record=remember)
        self.data = demand_lessons(self.fit.train, self.name)
        self.whole = form.restore(self.artifact)
        if form.is_program(self.whole):
            raise BuildError(
                "the model is an exported program, which has no blocks to leave out", where=self.name,
                do="give the nn.Module that it was exported from",
            )  # fmt: skip
        if self.plan.epochs:
            answers_classes(self.data, self.fit, self.plan)  # what nothing can be learnt from is told before ranking
        sample = self.data.take(self.plan.sample, self.fit.seed)
        self.distance = Distance(self.artifact, sample, self.fit, self.plan)
        self.purpose = purpose([
            self.name, dataclasses.asdict(self.plan), self.fit.seed, self.artifact.digest, self.fit.teacher.digest,
            sample.digest,
        ])  # fmt: skip
        self.pool = self._pool()  # before anything is trained, so that a resumed pruning finds the same

    def run(self) -> torch.nn.Module:
        """All cycles, from the newest checkpoint on; what is left. What was done stands in ``lines``."""
        from paretune.forms.torch_blocks import cut

        begun = self._resume()
        for cycle, epochs in enumerate(self.plan.shares()):
            if begun <= 2 * cycle:
                self._leave_out(cycle)
                self._keep(2 * cycle + 1)
            if begun <= 2 * cycle + 1:
                self._heal(cycle, epochs)
                self._keep(2 * cycle + 2)
        left = cut(self.whole, self.gone)
        self.lines.insert(0, self._summary(left))
        return left

    # -- which blocks ------------------------------------------------------------------------------------------

    def _pool(self) -> tuple[Block, ...]:
        """Every block that may go, in the way that changes the answers less."""
        from paretune.forms import torch_blocks
        from paretune.forms.torch_run import runner

        run = runner(self.artifact, self.data)
        if self.plan.remove:
            ways = torch_blocks.named(self.whole, self.plan.remove, run, f"{self.name}.remove")
        else:
            ways = torch_blocks.candidates(self.whole, run)
        probe = self._probe()
        return tuple(
            min(both, key=lambda one: self._away(probe, (one,))) if len(both) > 1 else both[0] for both in ways
        )

    def _probe(self) -> torch.nn.Module:
        """A copy of ``whole`` where answers are compared."""
        return copy.deepcopy(self.whole).to(self.distance.device)

    def _away(self, probe: torch.nn.Module, blocks: Sequence[Block]) -> float:
        """How far the answers without these blocks are from the original's; infinite where there are none."""
        from paretune.forms.torch_blocks import cut

        try:
            return self.distance(cut(probe, blocks))
        except Exception as error:  # whatever the user's forward raises where parts are missing
            if is_passing(error):
                raise  # a lack of memory says nothing of the model
            return math.inf

    def _macs(self, blocks: Sequence[Block]) -> int | None:
        """Multiply-accumulates for one example without these blocks."""
        from paretune.forms import torch as form
        from paretune.forms import torch_count
        from paretune.forms.torch_blocks import cut

        one = next(feeds(self.data.head(1), self.artifact, 1))
        return torch_count.macs(cut(self.whole, blocks), form.keywords(self.artifact), one)

    def _leave_out(self, cycle: int) -> None:
        """Add the blocks of this cycle to ``gone``."""
        before, many = len(self.gone), self.plan.iterations
        if self.plan.remove:
            self.gone += self.pool[before : len(self.pool) * (cycle + 1) // many]
        elif self.plan.macs_ratio < 1:
            self._choose(cycle, 1 - (1 - self.plan.macs_ratio) * (cycle + 1) / many)
        self.fresh = self.fresh or len(self.gone) > before

    def _choose(self, cycle: int, ratio: float) -> None:
        """Leave out one block after the other, the cheapest first, until at most ``ratio`` of the work is left."""
        from paretune.forms.torch_blocks import cut

        total = self._macs(())
        if total is None:
            raise BuildError(
                "the model's multiply-accumulates cannot be counted", where=self.name, do="name the blocks by remove"
            )
        saved = {one: total - (self._macs((one,)) or total) for one in self.pool}
        saved = {one: count for one, count in saved.items() if count > 0}
        left, probe = self._macs(self.gone) or total, self._probe()
        here = self.distance(cut(probe, self.gone))
        away: dict[Block, float] = {}
        while left > ratio * total:
            share = (1 - left / total) / (1 - ratio)
            self._tell(cycle, RANKING * share, f"ranking blocks, {len(self.gone)} left out")
            if self.plan.ranking == "greedy" or not away:
                away = {one: self._away(probe, (*self.gone, one)) for one in saved if one not in self.gone}
                self._list(away)
            able = [one for one in saved if one not in self.gone and away[one] < math.inf and self._may_lose(one)]
            if not able:
                raise self._stuck(left / total)
            best = min(able, key=lambda one: (away[one] - here) / saved[one])
            count = self._macs((*self.gone, best))
            if count is None:  # this one and those before it cannot go together
                del saved[best]
                continue
            here = away[best] if self.plan.ranking == "greedy" else here
            self.gone.append(best)
            left = count

    def _may_lose(self, block: Block) -> bool:
        """Whether its container has not given up its share yet."""
        home = block.path.rpartition(".")[0]
        members = sum(1 for _ in self.whole.get_submodule(home).children())
        lost = sum(one.path.rpartition(".")[0] == home for one in self.gone)
        return lost + 1 <= self.plan.most * members + 1e-9

    def _stuck(self, left: float) -> BuildError:
        if not self.pool:
            return BuildError(
                "no member of a Sequential or ModuleList that has weights answers in the shape of its first input",
                where=self.name, do="name modules by remove, or prune channels",
            )  # fmt: skip
        more = ", raise most" if self.plan.most < 1 else ""
        return BuildError(
            f"without all of the {len(self.gone)} blocks that can go, {left:.1%} of the multiply-accumulates are left",
            where=f"{self.name}.macs_ratio", do=f"ask for a larger share{more}, or prune channels too",
        )  # fmt: skip

    # -- healing -----------------------------------------------------------------------------------------------

    def _heal(self, cycle: int, epochs: int) -> None:
        """Teach what is left to answer as the original does; ``whole`` learns with it."""
        import torch

        from paretune.forms.torch_blocks import cut
        from paretune.training.healing import heal
        from paretune.training.recalibrate import recalibrate

        self.spare += epochs
        if not (self.fresh or cycle + 1 == self.plan.iterations):
            return
        small, seed = cut(self.whole, self.gone), self.fit.seed
        shared = dict(_tensors(small))
        told = [f"{self._after(small)} after the cut"]
        if self.plan.recalibration and recalibrate(
            small,
            self.artifact,
            self.data,
            self.plan.recalibration,
            self.plan.micro_batch or self.plan.batch,
            seed,
            name=self.name,
        ):
            told.append(f"{self._after(small)} with batch normalisation measured anew")
        if self.spare:
            outcome = heal(
                small, self.artifact, self.fit, dataclasses.replace(self.plan, epochs=self.spare), name=self.name,
                part=f"cycle-{cycle + 1}",
                progress=lambda share, text: self._tell(cycle, RANKING + (1 - RANKING) * share, text),
            )  # fmt: skip
            told.append(f"{self._after(small)} after healing ({outcome.line})")
        with torch.no_grad():
            for name, tensor in _tensors(small):
                shared[name].copy_(tensor)  # a device may have made other tensors of them
        self.spare, self.fresh = 0, False
        numbered = f"cycle {cycle + 1} of {self.plan.iterations}, " if self.plan.iterations > 1 else ""
        self.lines.append(f"{numbered}{len(self.gone)} blocks left out, away from the original: {', '.join(told)}")

    def _after(self, small: torch.nn.Module) -> str:
        away = self.distance(copy.deepcopy(small).to(self.distance.device))
        return f"{away:.3g} {self.distance.unit}"

    # -- words and checkpoints ---------------------------------------------------------------------------------

    def _tell(self, cycle: int, share: float, text: str) -> None:
        many = self.plan.iterations
        self.fit.progress((cycle + share) / many, text if many == 1 else f"cycle {cycle + 1} of {many}: {text}")

    def _list(self, away: Mapping[Block, float]) -> None:
        """Note what every block costs alone, once."""
        if not self.lines:
            each = ", ".join(f"{one.path} {away[one]:.3g}" for one in sorted(away, key=lambda one: away[one]))
            self.lines.append(f"left out alone, {self.distance.unit} from the original: {each}")

    def _summary(self, left: torch.nn.Module) -> str:
        from paretune.forms import torch_count

        names = ", ".join(block.path for block in self.gone) or "nothing"
        told = [f"{len(self.gone)} of {len(self.pool)} blocks left out: {names}"]
        told.append(f"parameters {torch_count.parameters(self.whole):,} → {torch_count.parameters(left):,}")
        total, rest = self._macs(()), self._macs(self.gone)
        if total is not None and rest is not None:
            told.append(f"multiply-accumulates {total:,} → {rest:,} ({rest / total:.1%})")
        return "; ".join(told)

    def _keep(self, step: int) -> None:
        from paretune.training.checkpoint import Checkpoint, Checkpoints
        from paretune.training.processes import is_first

        if self.fit.checkpoints is None or not is_first():
            return

        facts = {
            "gone": [dataclasses.asdict(block) for block in self.gone], "lines": self.lines, "spare": self.spare,
            "fresh": self.fresh, "entries": self.entries, "purpose": self.purpose,
        }  # fmt: skip
        folder = self.fit.checkpoints / "cycles"
        Checkpoints(folder).save(Checkpoint(step, {"model": dict(_tensors(self.whole))}, facts))

    def _resume(self) -> int:
        """Take up the newest checkpoint; how many halves of cycles were done: choosing is one, healing the other."""
        if self.fit.checkpoints is None:
            return 0
        import torch

        from paretune.forms.torch_blocks import Block
        from paretune.training.checkpoint import Checkpoints

        held = Checkpoints(self.fit.checkpoints / "cycles").of(self.purpose)
        if held is None:
            return 0
        with torch.no_grad():
            for name, tensor in _tensors(self.whole):
                tensor.copy_(held.tensors["model"][name])
        self.gone = [Block(**block) for block in held.facts["gone"]]
        self.lines, self.spare, self.fresh = held.facts["lines"], held.facts["spare"], held.facts["fresh"]
        for entry in held.facts["entries"]:
            self.fit.record(entry)
        return held.step


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and all buffers, each once."""
    yield from module.named_parameters()
    yield from module.named_buffers()
