"""Crew: the processes that make one step together, each on a device of its own."""

from __future__ import annotations

from typing import Protocol


class Crew(Protocol):
    """What they need to know of each other; every process calls the same methods in the same order."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes for all."""
        ...

    def agree(self, yes: bool) -> bool:
        """What the first one says."""
        ...

    def alike(self, key: str) -> bool:
        """Whether all say the same; ``key`` is hexadecimal."""
        ...

    def wait(self) -> None:
        """Until all are here."""
        ...
