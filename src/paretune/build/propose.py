"""Which recipe next: ask and tell on plain numbers.

The light search walks every legal chain of techniques that need no training to every asked target: first each chain
with its most promising knobs, the cheap ones before the dear ones, then the other knobs of the chains that proved fast.
A technique that trains takes part, with its default knobs, where it is asked for by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from paretune.ask.target import Target
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.build.technique import KINDS, Technique

MEASURING_S = 8.0
"""About what measuring a candidate takes, beside what building it does: cheap is not the same as worth trying first."""
HOPELESS = 3.0
"""Knobs of a chain are not explored once it proved this many times slower than the best so far."""


@dataclass(frozen=True)
class Proposal:
    """A candidate, how far its knobs are from the most promising ones, and its rough cost in seconds."""

    candidate: Candidate
    tier: int
    cost: float

    @property
    def gain(self) -> float:
        """How many times faster its steps often make a model, by their own word."""
        return math.prod(getattr(step, "gain", 1.0) for step in self.candidate.recipe.steps)

    @property
    def family(self) -> tuple[str, ...]:
        """What it shares with candidates that differ only in knobs."""
        return (*(step.name for step in self.candidate.recipe.steps), self.candidate.target.name)


def light(
    form: str,
    techniques: Mapping[str, type[Technique]],
    targets: Mapping[str, type[Target]],
    throughput: bool = False,
    named: Collection[str] = (),
) -> list[Proposal]:
    """Every candidate of the light search for a model of this form, with the techniques that train of those ``named``.

    At most one choice of a candidate (a technique's knobs or a target's settings) is not the most promising one.
    """
    found = []
    for chain in _chains(form, techniques, named):
        end = chain[-1].gives if chain else form
        for target in targets.values():
            if end in target.accepts:
                found += list(_variants(chain, target, throughput))
    return found


def conversion(form: str, techniques: Mapping[str, type[Technique]], target: type[Target]) -> Candidate | None:
    """The shortest chain of conversions alone to a target, with default knobs; None when there is none."""
    best: tuple[type[Technique], ...] | None = None
    for chain in _chains(form, techniques):
        plain = all(step.kind == "convert" for step in chain)
        if (
            plain
            and (chain[-1].gives if chain else form) in target.accepts
            and (best is None or len(chain) < len(best))
        ):
            best = chain
    if best is None:
        return None
    return Candidate(Recipe(tuple(step.light()[0] for step in best)), target.light(False)[0])


def presets(kind: type[Technique]) -> tuple[Technique, ...]:
    """The knob settings worth trying: those that it proposes, or its defaults where it trains."""
    return kind.light() or (kind(),)


def _chains(
    form: str, techniques: Mapping[str, type[Technique]], named: Collection[str] = ()
) -> Iterator[tuple[type[Technique], ...]]:
    usable = (kind for kind in techniques.values() if kind.light() or kind.name in named)
    kinds = sorted(usable, key=lambda kind: (kind.cost, kind.name))
    folds = {
        form: [kind for kind in kinds if kind.kind == "fold" and form in kind.takes and kind.gives == form]
        for form in _forms(kinds)
    }

    def extend(
        chain: tuple[type[Technique], ...], form: str, seen: frozenset[str]
    ) -> Iterator[tuple[type[Technique], ...]]:
        yield chain
        used = {step.kind for step in chain}
        for kind in kinds:
            if form not in kind.takes or kind.kind == "fold":
                continue
            if kind.kind == "convert" and kind.gives not in seen:
                yield from extend((*chain, kind), kind.gives, seen | {kind.gives})
            elif kind.kind != "convert" and kind.kind not in used and kind.gives == form:
                # a runtime folds a float graph by itself; what is quantised must be folded before
                before = folds.get(form) if kind.kind == "precision" and "fold" not in used else None
                for fold in before or (None,):
                    yield from extend((*chain, *(() if fold is None else (fold,)), kind), form, seen)

    yield from extend((), form, frozenset({form}))


def _forms(kinds: Iterable[type[Technique]]) -> set[str]:
    return {form for kind in kinds for form in (*kind.takes, kind.gives)}


def _variants(chain: tuple[type[Technique], ...], target: type[Target], throughput: bool) -> Iterator[Proposal]:
    choices_of = [presets(step) for step in chain]
    settings = target.light(throughput)
    cost = sum(step.cost for step in chain) + target.cost
    default = tuple(choices[0] for choices in choices_of)
    yield Proposal(Candidate(Recipe(default), settings[0]), 0, cost)
    for position, choices in enumerate(choices_of):
        for tier, choice in enumerate(choices[1:], 1):
            steps = (*default[:position], choice, *default[position + 1 :])
            yield Proposal(Candidate(Recipe(steps), settings[0]), tier, cost)
    for tier, setting in enumerate(settings[1:], 1):
        yield Proposal(Candidate(Recipe(default), setting), tier, cost)


@dataclass
class Queue:
    """Hands out proposals, most promising first, and drops those that measurements made hopeless."""

    proposals: list[Proposal]
    speeds: dict[tuple[str, ...], float] = field(default_factory=dict)
    dropped: list[tuple[Proposal, str]] = field(default_factory=list)

    def ask(self) -> Proposal | None:
        """The next proposal, or None when there are no more."""
        self._drop_hopeless()
        if not self.proposals:
            return None
        best = min(self.proposals, key=self._rank)
        self.proposals.remove(best)
        return best

    def tell(self, proposal: Proposal, speed: float | None) -> None:
        """``speed``: the objective as a ratio, higher is better; None when it failed."""
        if speed is not None and speed > 0:
            self.speeds[proposal.family] = max(speed, self.speeds.get(proposal.family, 0.0))

    def _rank(self, proposal: Proposal) -> tuple[float, float, float, int, str]:
        if proposal.tier:
            worth = -self.speeds.get(proposal.family, 0.0)
        else:
            worth = (proposal.cost + MEASURING_S) / proposal.gain
        places = sum(KINDS.index(step.kind) for step in proposal.candidate.recipe.steps)
        return float(proposal.tier > 0), worth, proposal.tier, places, proposal.candidate.id

    def _drop_hopeless(self) -> None:
        best = max(self.speeds.values(), default=0.0)
        for proposal in list(self.proposals):
            speed = self.speeds.get(proposal.family)
            if proposal.tier and speed is not None and speed * HOPELESS < best:
                self.proposals.remove(proposal)
                chain = " → ".join(proposal.family)
                why = f"not tried: {chain} had proved {best / speed:.1f}× slower than the best so far"
                self.dropped.append((proposal, why))
