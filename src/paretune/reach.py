"""Reach: what share of its work a model may keep for an asked latency, found by timing it on the target.

What a kernel takes depends on shapes and not on what was learnt: so a recipe is tried untrained, with several shares
and widths in several multiples, and only what was chosen is trained. Multiply-accumulates alone do not tell: kernels
reward some widths and idle at others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.ask.artifact import Artifact
from paretune.ask.budget import LATENCIES, Budget, Limit
from paretune.ask.knob import knobs_of
from paretune.build.candidate import Builder, Candidate
from paretune.build.history import Entry, table
from paretune.build.passing import is_passing
from paretune.build.recipe import Recipe
from paretune.build.technique import Technique
from paretune.errors import BudgetError, BuildError, MeasureError, RecipeError

SHARE, MULTIPLE = "macs_ratio", "round_to"
"""The knobs that are chosen, of the step that has the first."""
CHOOSING = ("remove", "widths")
"""Knobs that choose what goes themselves."""
LEAST = 0.05
"""Share of the multiply-accumulates below which nothing is tried."""
HALVINGS, MORE_HALVINGS = 5, 2
"""How often the range of shares is halved, and with each other multiple."""
MULTIPLES = (4, 8, 16, 32)
EXAMPLES = 256
"""Of the training data, for what is tried."""
SHORTENED = ("epochs", "assistant_epochs", "iterations", "rounds")
"""Knobs of training that are at their lowest for what is tried."""

Build = Callable[[Recipe], Artifact]
"""Makes the artefact of a recipe."""
Timed = Callable[[Candidate, Artifact], Mapping[int, float]]
"""The asked percentile in ms, by batch size."""


def asked(candidate: Candidate) -> tuple[Limit, int]:
    """The latency that a candidate is to reach, and the place of the step that is to reach it.

    Raises
    ------
    RecipeError
        If it asks for anything but one latency, or not exactly one step has a share to choose.
    """
    try:
        limits = Budget.parse(candidate.reach).limits
    except BudgetError:
        limits = ()
    if len(limits) != 1 or limits[0].name not in LATENCIES:
        raise RecipeError(
            f"{candidate.reach!r} is not one latency", where="reach",
            do="write it like p50@1<=2ms; a drop is for --budget",
        )  # fmt: skip
    places = [place for place, step in enumerate(candidate.recipe.steps) if SHARE in knobs_of(step)]
    if len(places) != 1:
        able = "torch_prune_channels or torch_prune_blocks"
        raise RecipeError(
            f"{'no step' if not places else 'more than one step'} of {candidate.recipe.title or 'the recipe'} has "
            f"{SHARE}, which is what is chosen for a latency", where="reach",
            do="keep one of them, or drop reach" if places else f"use {able}, or drop reach",
        )  # fmt: skip
    step = candidate.recipe.steps[places[0]]
    for knob in CHOOSING:
        if getattr(step, knob, ()):
            raise RecipeError(
                f"{knob} chooses what goes, and nothing is left to choose for a latency", where=f"{step.name}.{knob}",
                do=f"drop {knob} or reach",
            )  # fmt: skip
    return limits[0], places[0]


def reached(
    candidate: Candidate,
    build: Build,
    timed: Timed,
    told: Callable[[str], None] = lambda text: None,
    record: Callable[[Entry], None] = lambda entry: None,
) -> Candidate:
    """The candidate with the knobs that keep most of the work at the asked latency.

    Parameters
    ----------
    build
        Makes the artefact of a recipe: that of a :func:`dry` builder.
    timed
        Times what was built on the candidate's target.
    told
        Hears what was found, line by line; it may raise to stop.
    record
        Takes the table of what was tried, whatever came of it.

    Raises
    ------
    BuildError, MeasureError
        If the latency is reached with all of the work, or not with the least that can be built; if nothing pruned can
        be built or timed, or that fails for want of memory, say, of which nothing follows.
    RecipeError
        As for :func:`asked`.
    """
    limit, place = asked(candidate)
    search = Search(candidate, limit, place, build, timed, told)
    try:
        chosen = search.run()
    finally:
        record(search.entry())
    step = dataclasses.replace(candidate.recipe.steps[place], **chosen.knobs)  # type: ignore[type-var]
    steps = (*candidate.recipe.steps[:place], step, *candidate.recipe.steps[place + 1 :])
    return Candidate(Recipe(steps), candidate.target)


def dry(builder: Builder) -> Builder:
    """A builder that learns from few examples: enough to build, for nothing is trained."""
    train = builder.fit.train
    few = None if train is None else train.take(EXAMPLES, builder.fit.seed)
    return dataclasses.replace(builder, fit=dataclasses.replace(builder.fit, train=few))


@dataclass(frozen=True)
class Try:
    """One share and multiple, what is left with them and how long that takes; no times where ``error`` says why."""

    knobs: Mapping[str, Any]
    macs: int | None
    ms: Mapping[int, float]
    holds: bool
    error: BuildError | MeasureError | None = None

    @property
    def why(self) -> str:
        verb = "measured" if isinstance(self.error, MeasureError) else "built"
        return f"cannot be {verb}: {self.error.what}" if self.error else ""


@dataclass
class Search:
    """Halves the range of shares on a logarithmic scale, first with the step's own multiple, then with others."""

    candidate: Candidate
    limit: Limit
    place: int
    build: Build
    timed: Timed
    told: Callable[[str], None]
    tries: list[Try] = field(default_factory=list)
    known: dict[str, Mapping[int, float]] = field(default_factory=dict)  # by the artefact's digest

    def run(self) -> Try:
        whole = self._time(None, {})
        if whole.holds:
            raise BuildError(
                f"{self._latency(whole)} without {self._step.name}: nothing has to go for {self.limit.text}",
                where="reach", do="ask for less, or leave the step out",
            )  # fmt: skip
        own = getattr(self._step, MULTIPLE, None)
        best = self._halve(own, LEAST, 1.0, HALVINGS)
        if best is None:
            pruned = [one for one in self.tries if one.knobs]
            if not any(one.ms for one in pruned):
                error = next(one.error for one in reversed(pruned) if one.error)
                raise type(error)(f"nothing for {self.limit.text}: {error.what}", where=error.where, do=error.do)
            fastest = min((one for one in pruned if one.ms), key=lambda one: max(one.ms.values()))
            less = next((one.why for one in pruned if one.why), "")
            raise BuildError(
                f"{self.limit.text} is out of reach: with {self._kept(fastest)} it is {self._latency(fastest)}"
                + (f", and with less it {less}" if less else ""),
                where="reach",
                do="ask for more time, or let another step make it faster" + (", or lower round_to" if own else ""),
            )  # fmt: skip
        for multiple in MULTIPLES if own is not None else ():
            if multiple != own:
                best = self._rewarded(multiple, best)
        self.told(f"{self._step.name} keeps {self._kept(best)} for {self.limit.text}: {self._latency(best)}")
        return best

    def entry(self) -> Entry:
        """Everything that was tried, in order."""
        batches = sorted({batch for one in self.tries for batch in one.ms})
        names = sorted({name for one in self.tries for name in one.knobs})
        rows = [
            (
                str(number), *(one.knobs.get(name) for name in names), one.macs,
                *(None if batch not in one.ms else round(one.ms[batch], 4) for batch in batches),
                "yes" if one.holds else one.why or "no",
            )
            for number, one in enumerate(self.tries)
        ]  # fmt: skip
        times = (f"{self.limit.name} at batch {batch}, ms" for batch in batches)
        return table(self._step.name, f"reach {self.limit.text}", ("try", *names, "macs", *times, "reached"), rows)

    # -- what it is made of --------------------------------------------------------------------------------------

    @property
    def _step(self) -> Technique:
        return self.candidate.recipe.steps[self.place]

    def _halve(self, multiple: int | None, low: float, high: float, times: int) -> Try | None:
        """The try with the largest share in a range that is fast enough: the lower end is tried first."""
        best = None
        first = self._share(low, multiple)
        if first.holds:
            best = first
        elif first.ms:
            return None  # the least work is too much
        for _ in range(times):
            share = math.sqrt(low * high)
            found = self._share(share, multiple)
            if found.holds:
                best = found
            if found.holds or (best is None and not found.ms):  # where so little cannot be left, more may
                low = share
            else:
                high = share
        return best

    def _rewarded(self, multiple: int, best: Try) -> Try:
        """The better of the best so far and what another multiple keeps at the same latency."""
        share = float(best.knobs[SHARE])
        found = self._halve(multiple, share, min(1.0, 1.5 * share), MORE_HALVINGS)
        return found if found is not None and (found.macs or 0) > (best.macs or 0) else best

    def _share(self, share: float, multiple: int | None) -> Try:
        knobs: dict[str, Any] = {SHARE: round(share, 3)}
        if multiple is not None:
            knobs[MULTIPLE] = multiple
        known = next((one for one in self.tries if one.knobs == knobs), None)
        return self._time(self.place, knobs) if known is None else known

    def _time(self, place: int | None, knobs: Mapping[str, Any]) -> Try:
        """Build and time the recipe with these knobs, or without the step at all."""
        steps = []
        for number, step in enumerate(self.candidate.recipe.steps):
            if number == self.place and place is None:
                continue
            steps.append(_untrained(step, knobs if number == self.place else {}))
        recipe = Recipe(tuple(steps))
        macs = None
        try:
            artifact = self.build(recipe)
            macs = artifact.macs
            if artifact.digest not in self.known:
                self.known[artifact.digest] = dict(self.timed(Candidate(recipe, self.candidate.target), artifact))
        except (BuildError, MeasureError) as error:
            if is_passing(error) or (isinstance(error, MeasureError) and error.passing):
                raise  # the moment's fault, of which nothing follows
            found = Try(knobs, macs, {}, False, error)
        else:
            ms = self.known[artifact.digest]
            found = Try(knobs, macs, ms, max(ms.values()) <= self.limit.value)
        self.tries.append(found)
        self.told(f"reach: {self._kept(found)}: {self._latency(found) if found.ms else found.why}")
        return found

    def _kept(self, one: Try) -> str:
        if not one.knobs:
            return "all of the multiply-accumulates"
        multiple = one.knobs.get(MULTIPLE)
        widths = "" if multiple is None else f", widths in multiples of {multiple}"
        return f"{100 * one.knobs[SHARE]:.3g} % of the multiply-accumulates{widths}"

    def _latency(self, one: Try) -> str:
        return ", ".join(f"{self.limit.name}@{batch} {ms:.3g} ms" for batch, ms in sorted(one.ms.items()))


def _untrained(step: Technique, chosen: Mapping[str, Any]) -> Technique:
    """A step with the knobs that are chosen, and as little training as it can do with."""
    knobs, changed = knobs_of(step), dict(chosen)
    step = getattr(step, "untrained", lambda: step)()
    if not step.light():
        changed |= {name: int(knobs[name].low or 0) for name in SHORTENED if name in knobs}
        if "compile" in knobs:
            changed["compile"] = False
    return dataclasses.replace(step, **changed)  # type: ignore[type-var]
