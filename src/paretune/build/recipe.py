"""Recipe: techniques in order, legal when their forms connect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.ask import plugin
from paretune.ask.knob import knobs_of, make, values_of
from paretune.build.technique import KINDS, ONCE, Technique
from paretune.errors import RecipeError


@dataclass(frozen=True)
class Recipe:
    """An ordered tuple of techniques; the empty one leaves the model as it is."""

    steps: tuple[Technique, ...] = ()

    def gives(self, form: str) -> str:
        """The form that comes out when ``form`` goes in.

        Raises
        ------
        RecipeError
            If a step does not take what the one before it gives, or a kind of step that is done once stands twice.
        """
        kinds: set[str] = set()
        for step in self.steps:
            if form not in step.takes:
                raise RecipeError(
                    f"{step.name} takes {' or '.join(sorted(step.takes))}, not {form}", where=self.title,
                    do="put a conversion before it, or leave it out",
                )  # fmt: skip
            if step.kind not in KINDS:
                raise RecipeError(f"is of unknown kind {step.kind!r}", where=step.name, do=f"use one of {KINDS}")
            if step.kind in kinds and step.kind in ONCE:
                raise RecipeError(f"{step.name} is a second {step.kind} step", where=self.title, do="keep one of them")
            kinds.add(step.kind)
            form = step.gives
        return form

    @property
    def trains(self) -> bool:
        """Whether a step trains the model: one that a search would not try by itself, and not for no epochs."""
        return any(not step.light() and getattr(step, "epochs", 1) > 0 for step in self.steps)

    @property
    def title(self) -> str:
        """The steps in words, with the knobs that are not at their defaults."""
        return " → ".join(titled(step.name, step) for step in self.steps)

    def describe(self) -> list[dict[str, Any]]:
        """The steps with their knobs, as plain JSON values."""
        return [{"technique": step.name, "knobs": _plain(values_of(step))} for step in self.steps]

    @classmethod
    def of(cls, described: Sequence[Mapping[str, Any]]) -> Recipe:
        """The recipe that :meth:`describe` described.

        Raises
        ------
        RecipeError, PluginError
            If it is not of that shape, or names a technique or knob that does not exist.
        """
        steps = []
        for entry in described:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("technique"), str):
                raise RecipeError(
                    f"{json.dumps(entry, default=str)[:80]} is no step",
                    where="recipe",
                    do='write {"technique": NAME, …}',
                )
            demand_keys(entry, ("technique", "knobs"), "recipe")
            kind = plugin.load("techniques", entry["technique"])
            plugin.require(kind, entry["technique"])
            steps.append(make(kind, entry.get("knobs", {}), entry["technique"]))
        return cls(tuple(steps))


def demand_keys(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that nothing reads: a slip there would leave a knob at its default.

    Raises
    ------
    RecipeError
        If there is one.
    """
    odd = [key for key in entry if key not in known]
    if odd:
        raise RecipeError(f"{odd[0]!r} says nothing here", where=where, do=f"write {' and '.join(known)}")


def titled(name: str, owner: Any) -> str:
    """A technique's or target's name with the knobs that are not at their defaults."""
    values = _plain(values_of(owner))
    defaults = {name: knob.default for name, knob in knobs_of(owner).items()}
    changed = [f"{knob}={value}" for knob, value in values.items() if getattr(owner, knob) != defaults[knob]]
    return f"{name}({', '.join(changed)})" if changed else name


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
