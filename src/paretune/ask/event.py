"""What an observer is told: one protocol, one method. The terminal, the log and a notebook are observers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from paretune.errors import ParetuneError


@dataclass(frozen=True)
class Event:
    """Something happened.

    ``kind`` is one of ``start``, ``stage``, ``progress``, ``step``, ``candidate``, ``best``, ``warning``, ``stop``,
    ``end``; ``text`` says it in words; ``data`` holds plain JSON values.
    """

    kind: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The event as one line for a person; empty where it tells of the passing moment only."""
        if self.kind in ("stage", "stop"):
            return f"· {self.text}"
        if self.kind == "warning":
            return f"! {self.text}"
        if self.kind != "candidate":
            return ""
        failed, confirmed = self.data["status"] == "failed", self.data.get("stage") == "confirmed"
        return f"{'×' if failed else '✓' if confirmed else '·'} {self.data['title']}: {self.text}"


class Observer(Protocol):
    """Receives events. It must not raise: an observer's failure is not the run's."""

    def on(self, event: Event) -> None: ...


@dataclass(frozen=True)
class Broadcast:
    """One observer that passes every event on to several; one that fails does not keep it from the others.

    Raises
    ------
    ParetuneError
        What an observer means the user to know, that its disk is full, say; anything else becomes a warning.
    """

    observers: tuple[Observer, ...]

    def on(self, event: Event) -> None:
        for observer in self.observers:
            try:
                observer.on(event)
            except ParetuneError:
                raise
            except Exception as error:  # a tracker may fail in any way: its failure is not the run's
                name = type(observer).__qualname__
                warnings.warn(f"observer {name} failed: {error!r}", RuntimeWarning, stacklevel=2)

    @classmethod
    def to(cls, observers: Iterable[Observer]) -> Broadcast:
        return cls(tuple(observers))
