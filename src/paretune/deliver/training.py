"""Training: what the steps of candidates have to tell of it, in the order of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paretune.deliver.outcome import Candidate, Outcome

SHOWN = 24
"""Curves and tables of other candidates than the one that is shown, at most: a search may train many."""


@dataclass(frozen=True)
class Told:
    """A learning curve, or a table of before and after; ``candidate`` is the title of another than the one shown."""

    entry: dict[str, Any]
    candidate: str = ""


def told(outcome: Outcome, kind: str) -> list[Told]:
    """What was recorded of this kind, each once: of the candidate shown first, then of the others in their order."""
    found: list[Told] = []
    seen: set[str] = set()
    for candidate in _ordered(outcome):
        title = "" if candidate is outcome.shown else candidate["title"]
        for entry in candidate.get("history", []):
            text = json.dumps(entry, sort_keys=True)
            if entry["kind"] == kind and text not in seen and (not title or len(found) < SHOWN):
                seen.add(text)
                found.append(Told(entry, title))
    return found


def notes(outcome: Outcome) -> list[str]:
    """What the steps of the candidate shown have to say."""
    return list((outcome.shown or {}).get("notes", []))


def _ordered(outcome: Outcome) -> Iterator[Candidate]:
    if outcome.shown is not None:
        yield outcome.shown
    yield from (one for one in outcome.candidates if one is not outcome.shown)
