"""Plan: how long to look, and what confirming takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How long to look.

    ``rounds`` blocks of about ``seconds`` and at least ``count`` inferences; ``beside``: the least count for what is
    measured in the same rounds for comparison. All of it ``sessions`` times, each with processes opened anew: where a
    process happened to lie in memory, and how fast the machine happened to run, differ from one to the next.
    """

    rounds: int
    seconds: float
    count: int
    beside: int = 3
    sessions: int = 1

    def describe_session(self) -> dict[str, float]:
        """What determines one session, as plain JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "sessions"}


SCREEN = Plan(rounds=6, seconds=0.12, count=4)
CONFIRM = Plan(rounds=4, seconds=0.12, count=50, beside=4, sessions=6)
COMPARE = Plan(rounds=10, seconds=0.1, count=3, sessions=60)
HURRIED = Plan(rounds=2, seconds=0.1, count=8, sessions=3)
SHORTER = ((6, 4, 50), (6, 4, 20), (6, 3, 20), (5, 3, 20), (4, 3, 20))
"""Sessions, rounds and inferences in a block, from what confirming takes where there is time to where there is little.
A p99 takes a thousand samples and more, if it is to hold while sessions differ."""


def confirm_s(plan: Plan, count: int, pace_s: Mapping[int, float], heldout: int, open_s: float) -> float:
    """About how long confirming ``count`` finalists takes.

    ``pace_s``: the baseline's seconds for a batch of each size; ``open_s``: what opening one process takes.
    """
    beside = [max(plan.seconds, plan.beside * pace) for pace in pace_s.values()]
    finalist = [max(plan.seconds, plan.count * pace / 3) for pace in pace_s.values()]
    rounds = (plan.rounds + 1) * (2 * sum(beside) + count * sum(finalist))
    answer_s = heldout / max(pace_s) * pace_s[max(pace_s)]
    return plan.sessions * (rounds + len(pace_s) * (2 + count) * open_s) + answer_s * (1 + count / 3) + count * open_s


def fitting(left_s: float, pace_s: Mapping[int, float], heldout: int, open_s: float) -> tuple[Plan, int]:
    """The plan and the number of finalists that fit in the time left."""
    for sessions, rounds, inferences in SHORTER:
        plan = dataclasses.replace(CONFIRM, sessions=sessions, rounds=rounds, count=inferences)
        for count in (6, 5, 4, 3):
            if confirm_s(plan, count, pace_s, heldout, open_s) < left_s:
                return plan, count
    return HURRIED, 2
