"""Technique: one way to make a model smaller or faster, or to carry it to another form.

A technique *is* its configuration: a frozen dataclass whose fields are its knobs. A new one is one file under
``techniques/`` and one entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.history import Entry

KINDS = ("convert", "fold", "prune", "distil", "precision")
ONCE = ("fold", "precision")
"""Kinds of which a recipe holds one step at most: arithmetic is chosen once, and a folded graph is folded."""


@dataclass(frozen=True)
class Fit:
    """What a technique may learn from. Never held-out data.

    Attributes
    ----------
    train
        Training examples, without the slice on which the search ranks; None when the workload has none to give.
    loss
        The workload's loss or its own step (:class:`~paretune.ask.own_step.OwnStep`), or None for the default
        (cross-entropy for class labels, MSE for floats).
    teacher
        The original model.
    keep
        Patterns (``fnmatch``) of node or module names that must stay in float.
    seed
        Seeds every random choice of the technique.
    progress
        Called with (fraction done 0 … 1, what is being done).
    scratch
        An empty directory. The technique writes its artefact's files into ``scratch / "out"`` and seals it there.
    record
        Called with what the report shows of the step: a learning curve, a table of before and after
        (:mod:`paretune.build.history`).
    student
        The module that the user wants to be taught in the original's place; None where there is none.
    checkpoints
        A directory, maybe not made yet, that outlives a kill and is this step's alone: what a technique that takes long
        keeps there it finds again when the run is resumed. None: nothing need be kept.
    unmatched
        A technique that heeds ``keep`` calls it once with those patterns, maybe none, that name nothing in the model.
    """

    train: Split | None
    loss: Callable[..., Any] | None
    teacher: Artifact
    seed: int
    scratch: Path
    keep: tuple[str, ...] = ()
    progress: Callable[[float, str], None] = lambda fraction, what: None
    unmatched: Callable[[Sequence[str]], None] = lambda patterns: None
    record: Callable[[Entry], None] = lambda entry: None
    student: Artifact | None = None
    checkpoints: Path | None = None

    @property
    def out(self) -> Path:
        """The directory for the result; made on first use."""
        out = self.scratch / "out"
        out.mkdir(parents=True, exist_ok=True)
        return out


class Technique(Protocol):
    """A frozen dataclass whose fields are its knobs, with their ranges.

    ``takes`` and ``gives`` are forms; ``kind`` is one of :data:`KINDS` and gives a step its place in the search's
    recipes (of those in :data:`ONCE` no recipe holds two); ``use`` ends the sentence "use it when …"; ``needs`` maps
    each module it imports to the requirement that installs it; ``cost`` is the rough number of seconds it takes on a
    small model, and ``gain`` (1 where there is none) how many times faster it often makes one: both only for the
    order of trying. One that cannot do without training as its knobs stand may have a method ``untrained()``: itself
    with others, that make a model of the same shapes and kinds without; a latency is reached for with that.
    """

    name: ClassVar[str]
    takes: ClassVar[frozenset[str]]
    gives: ClassVar[str]
    kind: ClassVar[str]
    use: ClassVar[str]
    needs: ClassVar[Mapping[str, str]]
    cost: ClassVar[float]

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The new artefact, sealed in ``fit.out``. Pure: same artefact, knobs, data and seed → same digest.

        Raises
        ------
        BuildError
            If the model cannot be treated; names the operator or module, and what to do.
        """
        ...

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """The knob settings worth trying in a search without training, most promising first; empty for techniques
        that train."""
        ...
