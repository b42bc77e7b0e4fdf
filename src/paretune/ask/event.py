"""What an observer is told: one protocol, one method. The terminal, the log and a notebook are observers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Event:
    """Something happened.

    ``kind`` is one of ``start``, ``stage``, ``progress``, ``step``, ``candidate``, ``best``, ``warning``, ``stop``,
    ``end``; ``text`` says it in words; ``data`` holds plain JSON values.
    """

    kind: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Receives events. It must not raise: an observer's failure is not the run's."""

    def on(self, event: Event) -> None: ...


@dataclass(frozen=True)
class Broadcast:
    """One observer that passes every event on to several."""

    observers: tuple[Observer, ...]

    def on(self, event: Event) -> None:
        for observer in self.observers:
            observer.on(event)

    @classmethod
    def to(cls, observers: Iterable[Observer]) -> Broadcast:
        return cls(tuple(observers))
