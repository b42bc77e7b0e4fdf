"""The knobs of techniques that set weights to zero while they train, and when the zeros come; imports no framework."""

from __future__ import annotations

from dataclasses import dataclass

from paretune.ask.knob import knob
from paretune.errors import BuildError
from paretune.training.plan import Healing


@dataclass(frozen=True)
class Ramp:
    """How the share of the zeros that are asked for rises with the steps of a training, from 0 to 1.

    Attributes
    ----------
    begin, end
        Shares of the steps. ``begin == end``: all at once.
    interval
        Steps between two rises.
    """

    begin: float
    end: float
    interval: int

    def share(self, done: int, total: int) -> float:
        """The share after ``done`` of ``total`` steps, 1 - (1 - t)³ with t from 0 at ``begin`` to 1 at ``end``.

        Zhu & Gupta 2017, "To prune, or not to prune", equation 1, from a dense model on.
        """
        first, last = round(self.begin * total), max(round(self.end * total), int(self.end > 0))
        if done >= last:
            return 1.0
        if done <= first:
            return 0.0
        at = (done - first) // self.interval * self.interval
        return float(1 - (1 - at / (last - first)) ** 3)

    def rises(self, done: int, total: int) -> bool:
        """Whether there are to be more zeros after this step than after the one before."""
        return self.share(done, total) > (self.share(done - 1, total) if done else 0.0)


@dataclass(frozen=True)
class Sparsifying(Healing):
    """How a model's weights are set to zero, and healed; a later step that trains would fill the zeros again."""

    epochs: int = knob(
        10, "passes over the training data; 0: the zeros are set and nothing is trained", low=0, high=10_000
    )
    schedule: str = knob(
        "gradual", "zeros come as a cubic curve between begin and end, or all at once at begin",
        choices=("gradual", "one_shot"),
    )  # fmt: skip
    begin: float = knob(0.0, "share of the steps after which zeros begin to come", low=0.0, high=1.0)
    end: float = knob(0.5, "share of the steps after which all zeros are there; the rest heals", low=0.0, high=1.0)
    interval: int = knob(32, "steps of the optimizer between two prunings", low=1, high=1_000_000)
    spare: str = knob(
        "none",
        "which of the first and last weight that inputs meet stay dense",
        choices=("none", "first", "last", "both"),
    )
    keep: tuple[str, ...] = knob((), "patterns of module or parameter names that stay dense")

    def ramp(self, where: str) -> Ramp:
        """When the zeros come.

        Raises
        ------
        BuildError
            If the knobs contradict each other.
        """
        if self.schedule == "gradual" and self.begin > self.end:
            raise BuildError(f"begin={self.begin:g} lies behind end={self.end:g}", where=where, do="set end higher")
        if self.patience and self.epochs:
            raise BuildError("patience may keep an epoch before the last zeros came", where=where, do="set patience=0")
        ramp = Ramp(self.begin, self.begin if self.schedule == "one_shot" else self.end, self.interval)
        if self.average and self.epochs and ramp.end > 1 - self.average:
            raise BuildError(
                f"average={self.average:g} begins before the last zeros came", where=where,
                do=f"set it to {1 - ramp.end:g} at most",
            )  # fmt: skip
        return ramp
