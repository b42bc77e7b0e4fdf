"""Probe: a subject in a child process of its own that may be asked anything, also what kills it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from paretune.check.feed import Arrays, Feed
from paretune.check.measurement import Subject
from paretune.check.process import Child
from paretune.errors import MeasureError

PATIENCE_S = 120.0
"""How long an answer may take: a question is a few batches."""


@dataclass(frozen=True)
class Reply:
    """What came of a question: answers to every batch, or how it ended and what was said.

    ``latencies_ms`` of every inference, ``elapsed_s`` for all of them, and ``worst``, the largest difference between
    answers to the same batch.
    """

    ending: Literal["answers", "refuses", "dies"]
    answers: tuple[Arrays, ...] = ()
    words: str = ""
    latencies_ms: tuple[float, ...] = ()
    elapsed_s: float = 0.0
    worst: float = 0.0


class Probe:
    """One subject, opened for batches of ``batch`` rows; opened again after a question that ended its process."""

    def __init__(self, subject: Subject, threads: int, batch: int, scratch: Path) -> None:
        self.subject, self.threads, self.batch = subject, threads, batch
        self._scratch = Path(tempfile.mkdtemp(dir=scratch, prefix="probe-"))
        self._child: Child | None = None
        self._asked = 0

    def open(self) -> float:
        """Open the subject in a new process; returns the seconds that the runtime took to load it.

        Raises
        ------
        MeasureError
            If it cannot be opened.
        """
        self.shut()
        artifact, target = self.subject.artifact, self.subject.target
        self._child = Child(artifact, target, self.threads, self.batch, self._scratch)
        return self._child.open_s

    def ask(self, batches: Sequence[Arrays], *, layout: str = "plain", callers: int = 1, rounds: int = 1) -> Reply:
        """Put a question: every batch, ``rounds`` times in each of ``callers`` threads; arrays laid out as said.

        Raises
        ------
        MeasureError
            If the subject cannot be opened (again).
        """
        if self._child is None or not self._child.alive:
            self.open()
        assert self._child is not None
        self._asked += 1
        asked, out = (self._scratch / f"{name}-{self._asked}" for name in ("asked", "answered"))
        try:
            feed = Feed.write(batches, asked)
            told = self._child.call(
                "strain", PATIENCE_S, feed=str(feed.root), out=str(out), layout=layout, callers=callers, rounds=rounds
            )
            answers = tuple(tuple(part.copy() for part in answer) for answer in Feed(out).read())
        except MeasureError as error:
            return Reply("refuses" if self._child.alive else "dies", words=str(error))
        finally:
            for place in (asked, out):
                shutil.rmtree(place, ignore_errors=True)
        worst = float("inf") if told["worst"] is None else float(told["worst"])
        return Reply("answers", answers, "", tuple(told["latencies_ms"]), float(told["elapsed_s"]), worst)

    def demand(self, batches: Sequence[Arrays], **how: Any) -> Reply:
        """Put a plain question, which any model must answer.

        Raises
        ------
        MeasureError
            If it refuses or dies.
        """
        reply = self.ask(batches, **how)
        if reply.ending != "answers":
            raise MeasureError(f"does not answer plain rows: {reply.words}", where=self.subject.target.name)
        return reply

    def shut(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._scratch)
