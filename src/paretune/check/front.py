"""Front: the verdicts that no other one beats on both answers and speed; and who is a finalist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paretune.check.verdict import Verdict

FINALISTS = 6
ALIKE = 1.05
"""Two measured merits closer than this factor count as alike."""


@dataclass(frozen=True)
class Front:
    """The non-dominated verdicts, from the safest answers to the best merit."""

    verdicts: tuple[Verdict, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(verdict.id for verdict in self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)


def front(verdicts: Iterable[Verdict]) -> Front:
    """The verdicts that no other one beats: answers at least as safe, and a merit that is plainly higher.

    Plainly is by more than :data:`ALIKE`. Measured merits differ from run to run by a few per cent; a front that hung
    on such differences would be another one each time. Of two merits known exactly (sizes), the safer beats its equal.
    """
    known = {verdict.id: verdict for verdict in verdicts if not math.isnan(verdict.risk + verdict.merit.value)}

    def beats(other: Verdict, mine: Verdict) -> bool:
        exact = all(verdict.merit.low == verdict.merit.high for verdict in (other, mine))
        if exact and other.merit.value >= mine.merit.value:
            return (other.risk, -other.merit.value) < (mine.risk, -mine.merit.value) and other.risk <= mine.risk
        return other.risk <= mine.risk and other.merit.value > ALIKE * mine.merit.value

    kept = [mine for mine in known.values() if not any(beats(other, mine) for other in known.values())]
    return Front(tuple(sorted(kept, key=lambda verdict: (verdict.risk, -verdict.merit.value, verdict.id))))


def non_dominated(points: Mapping[str, tuple[float, ...]]) -> set[str]:
    """The names of the points for which no other is at least as small in every coordinate and smaller in one."""

    def beaten(name: str) -> bool:
        mine = points[name]
        return any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in points.values())

    return {name for name in points if not beaten(name)}


def finalists(verdicts: Sequence[Verdict], batches: Sequence[int], most: int = FINALISTS) -> list[Verdict]:
    """Who is confirmed on held-out data, ordered beforehand from the safest answers to the fastest.

    Taken are candidates faster than the baseline that break no limit on the ranking data and are not dominated in
    (risk, merit, speed at any batch size). Those whose drop is disputed come last, and take no more than a third of the
    places from others: if one fails, none is lost by it. When there are more than ``most``, the safest, the best by
    merit and at each batch size stay, and the rest are taken evenly along the order.
    """
    able = [
        verdict
        for verdict in verdicts
        if verdict.verdict != "breaks" and verdict.improves and not math.isnan(verdict.risk)
    ]
    points = {
        verdict.id: (
            float(_is_disputed(verdict)), verdict.risk, -verdict.merit.value,
            *(-verdict.speedups[batch].value for batch in batches),
        )
        for verdict in able
    }  # fmt: skip
    kept = [verdict for verdict in able if verdict.id in non_dominated(points)]
    kept.sort(key=lambda verdict: (_is_disputed(verdict), verdict.risk, verdict.merit.value, verdict.id))
    doubtful = [verdict for verdict in kept if _is_disputed(verdict)]
    proven = kept[: len(kept) - len(doubtful)]
    room = max(most - len(proven), most // 3)
    return _few(proven, batches, most - min(len(doubtful), room)) + _few(doubtful, batches, room)


def _few(kept: list[Verdict], batches: Sequence[int], most: int) -> list[Verdict]:
    """At most so many, in their order: the first, the best, the fastest, and others evenly along the order."""
    if len(kept) <= most:
        return kept
    fastest = [max(kept, key=lambda verdict, b=batch: verdict.speedups[b].value).id for batch in batches]  # type: ignore[misc]
    # the safest first of all: whatever else fails, it most likely stands
    first = [kept[0].id, max(kept, key=lambda verdict: verdict.merit.value).id, *fastest]
    stay = set(list(dict.fromkeys(first))[:most])
    rest = [verdict.id for verdict in kept if verdict.id not in stay]
    room = most - len(stay)
    stay |= {rest[(number + 1) * len(rest) // (room + 1)] for number in range(room)}
    return [verdict for verdict in kept if verdict.id in stay]


def _is_disputed(verdict: Verdict) -> bool:
    return any(finding.disputed for finding in verdict.findings)
