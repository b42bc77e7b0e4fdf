"""A result with the look-ups that every part of the report needs: who is who, and what a limit's finding is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from paretune.deliver import quantity

Candidate = Mapping[str, Any]
_AT = re.compile(r"@(\d+)")


def run_at(candidate: Candidate, batch: int) -> Mapping[str, Any] | None:
    """The run of a candidate at a batch size, if there is one."""
    return next((run for run in candidate["runs"] if run["batch"] == batch), None)


def first_drop(candidate: Candidate) -> tuple[str, Mapping[str, Any]] | None:
    """The first score whose drop is known, with that drop."""
    known = ((name, drop) for name, drop in candidate["drops"].items() if drop and drop["value"] is not None)
    return next(known, None)


def ranks_on_heldout(result: Mapping[str, Any]) -> bool:
    """Whether the ranking data is a part of the held-out data, as there was no training data."""
    work = result["workload"]
    if "ranking_of" in work:
        return bool(work["ranking_of"] == "heldout")
    # before it was written down: one slice was both fitted to and ranked on
    return work.get("fit_size") is not None and work["fit_size"] == work.get("ranking_size")


@dataclass(frozen=True)
class Judged:
    """One finding beside the limit it answers. ``gap`` is how far past the limit, in its unit; negative: room left."""

    finding: Mapping[str, Any]
    limit: Mapping[str, Any] | None
    gap: float | None
    certain_gap: float | None

    @property
    def unit(self) -> str:
        return str((self.limit or {}).get("unit") or self.finding.get("unit") or "")

    @property
    def relative(self) -> float | None:
        """The gap as a share of the limit."""
        if self.gap is None or self.limit is None or not self.limit["value"]:
            return None
        return self.gap / abs(float(self.limit["value"]))


@dataclass(frozen=True)
class Outcome:
    """A validated result."""

    result: Mapping[str, Any]

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The baseline first, each candidate once."""
        baseline = self.result["baseline"]
        return [baseline, *(one for one in self.result["candidates"] if one["id"] != baseline["id"])]

    @cached_property
    def by_id(self) -> dict[str, Candidate]:
        return {one["id"]: one for one in self.candidates}

    @property
    def baseline(self) -> Candidate:
        return self.candidates[0]

    @property
    def reference(self) -> Candidate | None:
        return self._named("reference")

    @property
    def best(self) -> Candidate | None:
        return self._named("best")

    @property
    def shown(self) -> Candidate | None:
        """The best; when nothing meets, the nearest."""
        return self.best or self._named("nearest")

    @property
    def batches(self) -> Sequence[int]:
        return sorted(self.result["batches"])

    @property
    def main_batch(self) -> int:
        """The batch size the objective names, else the largest."""
        asked = self.result["objective"]["batch"]
        return asked if asked in self.batches else self.batches[-1]

    @property
    def limits(self) -> Sequence[Mapping[str, Any]]:
        limits: Sequence[Mapping[str, Any]] = self.result["budget"]["limits"]
        return limits

    @property
    def priced(self) -> bool:
        """Whether a user gave prices."""
        return (self.result["budget"].get("rates") or {}).get("per_hour") is not None

    @property
    def confidence(self) -> str:
        return f"{100 * self.result['budget']['confidence']:g}{quantity.SPACE}%"

    @cached_property
    def score_names(self) -> list[str]:
        """Every score that some candidate has, in the workload's order."""
        names = dict.fromkeys(self.result["workload"].get("scores") or ())
        for one in self.candidates:
            names.update(dict.fromkeys([*one["scores"], *one["drops"]]))
        return list(names)

    def drop_unit(self, name: str) -> str:
        """``pp`` or ``%``, as the candidates state it."""
        drops = (one["drops"].get(name) for one in self.candidates)
        return next((str(drop["unit"]) for drop in drops if drop), "pp")

    def judged(self, candidate: Candidate) -> list[Judged]:
        """The candidate's findings beside their limits; a limit without a finding gets an empty one."""
        found = [self._judge(finding) for finding in candidate["findings"]]
        answered = {one.limit["text"] for one in found if one.limit is not None}
        missing = [limit for limit in self.limits if limit["text"] not in answered]
        none = {"verdict": "not tested", "value": None, "low": None, "high": None, "text": "no measurement answers it"}
        return found + [Judged({"limit": limit["text"], **none}, limit, None, None) for limit in missing]

    def binding(self, candidate: Candidate) -> list[Judged]:
        """What keeps the candidate from meeting: broken limits first, the relatively worst first."""
        open_ones = [one for one in self.judged(candidate) if one.finding["verdict"] != "meets"]
        order = {"breaks": 0, "undecided": 1}
        return sorted(open_ones, key=lambda one: (order.get(one.finding["verdict"], 2), -(one.relative or 0)))

    def _judge(self, finding: Mapping[str, Any]) -> Judged:
        limit = self._limit_of(finding)
        if limit is None:
            return Judged(finding, None, None, None)
        at_most = limit["op"] == "<="
        worst = finding["high"] if at_most else finding["low"]

        def past(value: float | None) -> float | None:
            return None if value is None else (value - limit["value"]) * (1 if at_most else -1)

        return Judged(finding, limit, past(finding["value"]), past(worst))

    def _limit_of(self, finding: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """By its text; else without the batch size at which it was judged; else by its name."""
        text = finding["limit"].replace(" ", "")
        for key in (text, _AT.sub("", text)):
            for limit in self.limits:
                if key in (limit["text"].replace(" ", ""), limit["name"]):
                    return limit
        named = [limit for limit in self.limits if limit["name"] == re.split(r"[@<>]", text)[0]]
        return named[0] if len(named) == 1 else None

    def _named(self, key: str) -> Candidate | None:
        name = self.result[key]
        return None if name is None else self.by_id[name]
