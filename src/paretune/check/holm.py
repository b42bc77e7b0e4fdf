"""Holm: several tests at once that together are wrong no more often than one alone.

Holm (1979), *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


def step_down(
    names: Iterable[str], decides: Callable[[str, float], bool], confidence: float
) -> dict[str, tuple[bool, float]]:
    """Whether each test is decided, and the confidence of the interval that says so.

    ``decides(name, level)`` tells whether the interval at the confidence ``level`` decides a test. With m tests left,
    those that 1 − α / m decides are taken out, and the rest are tried again at the level that is left to them, until
    none is decided any more: the same as going through them in the order of their p-values.
    """
    every = tuple(names)
    decided: dict[str, float] = {}
    while True:
        level = 1 - (1 - confidence) / max(1, len(every) - len(decided))
        fresh = [name for name in every if name not in decided and decides(name, level)]
        if not fresh:
            return {name: (name in decided, decided.get(name, level)) for name in every}
        decided |= dict.fromkeys(fresh, level)
