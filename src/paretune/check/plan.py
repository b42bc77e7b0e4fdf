"""Plan: how long to look, and what confirming takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How long to look: ``rounds`` blocks of about ``seconds`` and at least ``count`` inferences; ``beside``: the same
    for what is measured in the same rounds for comparison."""

    rounds: int
    seconds: float
    count: int
    beside: int = 3


SCREEN = Plan(rounds=6, seconds=0.12, count=4)
CONFIRM = Plan(rounds=16, seconds=0.3, count=25, beside=5)


def confirm_s(plan: Plan, count: int, pace_s: Mapping[int, float], heldout: int) -> float:
    """About how long confirming ``count`` finalists takes, from the baseline's seconds for a batch of each size."""
    block = [max(plan.seconds, plan.beside * s) * 2 + max(plan.seconds, plan.count * s / 3) for s in pace_s.values()]
    answer_s = heldout / max(pace_s) * pace_s[max(pace_s)]
    return count * (plan.rounds * sum(block) + answer_s / 3) + answer_s


def fitting(left_s: float, pace_s: Mapping[int, float], heldout: int) -> tuple[Plan, int]:
    """The plan and the number of finalists that fit in the time left."""
    for rounds in (16, 12, 8, 6):
        plan = dataclasses.replace(CONFIRM, rounds=rounds)
        for count in (6, 5, 4, 3):
            if confirm_s(plan, count, pace_s, heldout) < left_s:
                return plan, count
    return dataclasses.replace(CONFIRM, rounds=6, seconds=0.15, count=12, beside=3), 2
