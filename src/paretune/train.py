"""Train: the steps of recipes that train, made beforehand without measuring, on one device or on several at once.

``optimize`` with the same workload, recipes, seed and store takes them from there. So a model can be trained where
there is a GPU, and measured where it will run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.ask.artifact import Artifact
from paretune.ask.data import check_inputs
from paretune.ask.event import Broadcast, Event, Observer
from paretune.ask.workload import Workload, partition
from paretune.build.candidate import Builder, Candidate, read_recipes
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.errors import BuildError, CallError, RecipeError
from paretune.journal import listeners
from paretune.original import read, read_student


@dataclass(frozen=True)
class Trained:
    """What came of the steps of one recipe, up to the last that trains.

    Attributes
    ----------
    artifact
        The trained model, in the store; None where a step failed.
    seconds
        What making the steps took, if only once for many recipes.
    error
        Why a step failed, or nothing.
    """

    title: str
    artifact: Artifact | None
    seconds: float
    error: str = ""

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        made = self.artifact
        return {
            "title": self.title, "error": self.error or None, "seconds": round(self.seconds, 3),
            "parameters": made and made.parameters, "macs": made and made.macs, "digest": made and made.digest,
            "path": made and str(made.root), "notes": list(made.notes) if made else [],
        }  # fmt: skip


def train(
    workload: Workload,
    recipes: Path | str | Sequence[Candidate],
    *,
    store: Path | str,
    keep: Sequence[str] = (),
    heldout_limit: int | None = None,
    seed: int = 0,
    observers: Sequence[Observer] | None = None,
) -> tuple[Trained, ...]:
    """Make the steps of recipes that train, and keep them in a store.

    Started by ``accelerate launch`` (or ``torchrun``) as several processes, all train together, each with its share of
    every batch, and the first one writes; all must see the same store. A training that is broken off goes on from its
    last checkpoint, a minute old at most, when the same call is made again.

    Parameters
    ----------
    recipes
        As for ``optimize``: a file, or a list of candidates. Steps after the last one that trains are left to
        ``optimize``, and so are recipes without training.
    store
        Where they are kept; give it to ``optimize`` too.
    keep, heldout_limit, seed
        As for ``optimize``, which finds the steps only if they are the same.
    observers
        Receive every event; as for ``optimize``.

    Returns
    -------
    tuple[Trained, ...]
        One for each distinct recipe.

    Raises
    ------
    ParetuneError
        With what is wrong, where, and what to do. A step that fails is no error (see :attr:`Trained.error`), but where
        one of several processes fails alone, all end.
    """
    from paretune.training.processes import joined

    fixed = read_recipes(Path(recipes)) if isinstance(recipes, Path | str) else recipes
    wanted = _trainings(fixed)
    with joined() as crew:
        watch = Broadcast(listeners(observers) if crew is None or crew.first else ())
        stored = Store(Path(store))
        if crew is None or crew.first:
            stored.sweep()
        data = partition(workload, seed, heldout_limit)
        original, _ = read(workload.model, data.fit, stored)
        check_inputs(data.fit, original)
        for recipe in wanted:
            recipe.gives(original.form)
        for warning in data.warnings:
            watch.on(Event("warning", warning))
        student = read_student(workload, original, data.fit, stored)
        fit = Fit(data.fit, workload.minimised, original, seed, stored.root, tuple(keep), student=student)
        builder = Builder(stored, original, fit, watch, crew=crew)
        return tuple(_trained(builder, recipe) for recipe in wanted)


def _trainings(candidates: Sequence[Candidate]) -> list[Recipe]:
    """The distinct recipes, each up to its last step that trains."""
    found: dict[str, Recipe] = {}
    for candidate in candidates:
        places = [place for place, step in enumerate(candidate.recipe.steps) if not step.light()]
        if places and candidate.reach:
            raise RecipeError(
                "what is pruned for a latency is chosen by timing it on its target", where=candidate.title,
                do="leave reach to optimize, or give the knobs that it chose",
            )  # fmt: skip
        if places:
            recipe = Recipe(candidate.recipe.steps[: places[-1] + 1])
            found.setdefault(recipe.title, recipe)
    if not found:
        raise CallError("no recipe has a step that trains", where="recipes", do="`paretune techniques` lists them")
    return list(found.values())


def _trained(builder: Builder, recipe: Recipe) -> Trained:
    try:
        artifact, seconds = builder.built(recipe)
    except BuildError as error:
        return Trained(recipe.title, None, 0.0, str(error))
    return Trained(recipe.title, artifact, seconds)
