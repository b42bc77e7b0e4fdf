"""Outcome: what became of a training, with its learning curve."""

from __future__ import annotations

from dataclasses import dataclass

from paretune.build import history


@dataclass(frozen=True)
class Epoch:
    """One pass: the mean loss of its steps, the validation score at its end (or None), the rate of its last step."""

    loss: float
    score: float | None
    rate: float


@dataclass(frozen=True)
class Outcome:
    """What became of a training.

    Attributes
    ----------
    epochs
        The learning curve, one entry for every pass that was made.
    kept
        The epoch (counted from 1) whose parameters the module has now.
    resumed
        The step at which a checkpoint was taken up; 0: from the beginning.
    note
        What else is to be known of it, in words.
    """

    epochs: tuple[Epoch, ...]
    kept: int
    resumed: int
    note: str = ""

    @property
    def line(self) -> str:
        """The curve in a line for a person."""
        first, last = self.epochs[0], self.epochs[self.kept - 1]
        scored = "" if last.score is None else f", validation score {last.score:.4g}"
        many = f"{len(self.epochs)} epochs" if len(self.epochs) > 1 else "1 epoch"
        best = "" if self.kept == len(self.epochs) else f", best after {self.kept}"
        noted = f"; {self.note}" if self.note else ""
        losses = f"{first.loss:.4g} → {last.loss:.4g}" if len(self.epochs) > 1 else f"{last.loss:.4g} on the way"
        return f"{many}{best}: loss {losses}{scored}{noted}"

    def entry(self, technique: str, title: str = "") -> history.Entry:
        """The curve for the report."""
        losses, scores, rates = zip(*((one.loss, one.score, one.rate) for one in self.epochs), strict=True)
        return history.curve(technique, title, losses, scores, rates, self.kept)


def progress_line(epoch: int, epochs: int, loss: float, score: float | None, left_s: float) -> str:
    """Where a training is, for a person."""
    scored = "" if score is None else f", score {score:.4g}"
    minutes, seconds = divmod(round(left_s), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return f"epoch {epoch} of {epochs}, loss {loss:.4g}{scored}, {left} left"
