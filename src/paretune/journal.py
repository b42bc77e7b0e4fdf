"""The clock of a run, and what it tells its observers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from paretune.ask.event import Event, Observer
from paretune.check.verdict import Verdict
from paretune.deliver.trial import Trial


class Lines:
    """An observer that writes plain lines on stderr: what a person sees who named no observer."""

    def on(self, event: Event) -> None:
        if event.line:
            sys.stderr.write(f"{event.line}\n")
            sys.stderr.flush()


def listeners(observers: Sequence[Observer] | None) -> tuple[Observer, ...]:
    """The observers given; for None plain lines where a person is watching: a terminal, a prompt or a notebook."""
    if observers is not None:
        return tuple(observers)
    if sys.stderr is None:  # a program without a console
        return ()
    watched = sys.stderr.isatty() or hasattr(sys, "ps1") or "ipykernel" in sys.modules
    return (Lines(),) if watched else ()


@dataclass
class Journal:
    """When a run began, how long it may take, what it spent on building, its warnings and its timeline."""

    observer: Observer
    limit_s: float
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    warnings: list[str] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)
    building_s: float = 0.0
    _begun: float = field(default_factory=time.perf_counter)

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self._begun

    @property
    def left_s(self) -> float:
        return self.limit_s - self.spent_s

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """What happens inside counts as building."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.building_s += time.perf_counter() - began

    def seconds(self, measuring: float) -> dict[str, float]:
        """Where the time went so far; overhead is what was neither building nor measuring."""
        total = self.spent_s
        overhead = total - self.building_s - measuring
        parts = {"total": total, "building": self.building_s, "measuring": measuring, "overhead": overhead}
        return {name: round(value, 3) for name, value in parts.items()}

    def say(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """Tell the observers."""
        at = {"at_s": round(self.spent_s, 2), "left_s": round(self.left_s, 1)}
        self.observer.on(Event(kind, text, {**at, **(data or {})}))

    def warn(self, text: str) -> None:
        """Tell the observers, and the report."""
        self.warnings.append(text)
        self.say("warning", text)

    def tell(self, trial: Trial) -> None:
        """What became of a candidate."""
        verdict = trial.verdict
        text = trial.error or (_in_words(verdict) if verdict else trial.why or "")
        kind = "confirmed" if trial.confirmed else "failed" if trial.error else trial.role
        self.timeline.append({"at_s": round(self.spent_s, 2), "kind": kind, "id": trial.id, "text": text})
        data: dict[str, Any] = {
            "id": trial.id,
            "title": trial.candidate.title,
            "role": trial.role,
            "status": trial.status,
            "stage": kind,
            "artifact": trial.artifact.digest if trial.artifact else None,
        }
        if verdict is not None:
            data |= {
                "pace": round(verdict.pace.value, 4),
                "risk": None if verdict.risk != verdict.risk else round(verdict.risk, 6),
                "verdict": verdict.verdict,
            }
        self.say("candidate", text, data)


def _in_words(verdict: Verdict) -> str:
    pace = f"{verdict.pace.value:.2f}× as fast as the original"
    drops = ", ".join(f"{name} drop {value.value:+.2f} {verdict.units[name]}" for name, value in verdict.drops.items())
    if drops and verdict.learnt:
        drops += " (on examples that the original may have learnt by heart)"
    return f"{pace}; {drops}" if drops else pace
