"""Every error a user can meet: what is wrong, where, and what to do about it.

The command line prints them as one line and ends with ``exit_code``; a traceback is shown only with ``--debug``.
"""

from __future__ import annotations


class ParetuneError(Exception):
    """Something a user can understand and mend.

    Parameters
    ----------
    what
        What is wrong, in one sentence without a full stop.
    where
        The file, field, flag or module it was found in; may be empty.
    do
        What to do next; may be empty.
    """

    exit_code = 1
    quote: tuple[str, ...] = ()
    """Lines that show the place, for a terminal; not part of the message."""

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        # a message is one line, whatever a framework put into it
        self.what, self.where, self.do = (" ".join(part.split()) for part in (what, where, do))
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} — {self.do}" if self.do else text

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.what, self.where, self.do)


def _restore(kind: type[ParetuneError], what: str, where: str, do: str) -> ParetuneError:
    return kind(what, where=where, do=do)


class CallError(ParetuneError):
    """The call itself is wrong: a flag, a name, a combination."""

    exit_code = 2


class BudgetError(CallError):
    """A budget that does not parse or contradicts itself."""

    @classmethod
    def at(cls, text: str, position: int, what: str, do: str = "") -> BudgetError:
        """An error at ``text[position]``, with a caret under that place to be shown in a terminal."""
        error = cls(f"{what} at character {position + 1}", where=f"budget {text!r}", do=do)
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        error.quote = (shown, " " * position + "^")
        return error


class WorkloadError(CallError):
    """A workload that does not import, is not a Workload, or whose parts do not fit."""


class DataError(WorkloadError):
    """Data whose shape, dtype, labels or number does not fit."""


class PluginError(CallError):
    """An unknown source, technique or target, or one whose requirements are not installed."""


class RecipeError(CallError):
    """A recipe whose steps do not connect, or a knob outside its range."""


class ArtifactError(ParetuneError):
    """A model file, store entry or bundle that is corrupt, was tampered with, or is unsafe to open."""


class BuildError(ParetuneError):
    """A technique could not be applied to this model; a finding on the candidate, not the end of a run."""


class StoppedError(ParetuneError):
    """A step was stopped before its end, because the time was over or the user pressed Ctrl-C; it did not fail.

    What hears of it in its midst writes down how far it came, and lets it pass.
    """


class MeasureError(ParetuneError):
    """A child process crashed, hung or answered nonsense; a finding on the candidate, not the end of a run.

    ``passing`` says that it may be the moment's fault and not the candidate's (no answer in time, killed from outside,
    another process failed): it is not remembered, and a resumed run tries again. ``guilty`` is the id of the subject
    that failed, where several were measured together.
    """

    passing = False
    guilty: str | None = None


class OutputError(ParetuneError):
    """A directory that cannot be written, or a disk that is full."""
