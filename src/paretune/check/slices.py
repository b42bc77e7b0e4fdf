"""Slices: flips, agreement and drop for every class and every named part of the examples, and the worst of them.

An average hides a slice that broke. Each one is judged by itself, and the more there are, the more each must show:
decisions follow Holm's procedure (:mod:`paretune.check.holm`), so that all of them together are wrong no more often
than one verdict is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from paretune.check.finding import Ruling
from paretune.check.holm import step_down
from paretune.check.statistics import Estimate, drop, share
from paretune.errors import DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Slice:
    """One part of the examples.

    ``lost`` and ``won`` count the examples whose score fell and rose, ``agreement`` is the share of answers that stayed
    (None where they were not given). ``drop`` is the interval that decided ``verdict``, at ``confidence``; ``plain``
    the one of this slice alone, at the confidence that was asked.
    """

    name: str
    count: int
    lost: int
    won: int
    agreement: Estimate | None
    drop: Estimate
    plain: Estimate
    confidence: float
    verdict: Ruling

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name, "count": self.count, "lost": self.lost, "won": self.won,
            "agreement": self.agreement.describe() if self.agreement else None,
            "drop": self.drop.describe(), "plain": self.plain.describe(), "confidence": self.confidence,
            "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class SliceReport:
    """Every slice, the worst first: by the drop that is certain, then by the drop that was seen.

    ``verdict`` is ``breaks`` if any slice breaks the limit, ``meets`` if all meet it.
    """

    slices: tuple[Slice, ...]

    @property
    def verdict(self) -> Ruling:
        rulings = {one.verdict for one in self.slices}
        return "breaks" if "breaks" in rulings else "meets" if rulings == {"meets"} else "undecided"


def by_slice(
    baseline: Array,
    trial: Array,
    limit: float,
    unit: str = "pp",
    labels: Array | None = None,
    named: Mapping[str, Array] | None = None,
    changed: Array | None = None,
    confidence: float = 0.95,
) -> SliceReport:
    """Judge every class and every named slice against ``limit`` (in ``unit``, ``pp`` or ``%``).

    Parameters
    ----------
    baseline, trial
        Scores of the same examples [n], higher is better.
    labels
        Class numbers [n]: one slice for each. Other labels (floats, or more than one an example) make none.
    named
        Boolean masks [n] by name. Slices may overlap; empty ones are left out.
    changed
        Whether an example's answer differs from the original's [n], for ``agreement``.

    Raises
    ------
    DataError
        If lengths differ or a mask is not boolean.
    """
    baseline, trial = np.asarray(baseline, float), np.asarray(trial, float)
    _same_length("trial scores", trial, len(baseline))
    if changed is not None:
        changed = np.asarray(changed, bool)
        _same_length("changed answers", changed, len(baseline))
    masks = {**_classes(labels, len(baseline)), **_named(named or {}, len(baseline))}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    pairs = {name: (baseline[mask], trial[mask]) for name, mask in masks.items()}

    @cache
    def at(name: str, level: float) -> Estimate:
        return drop(*pairs[name], unit, level)

    decided = step_down(pairs, lambda name, level: _ruling(at(name, level), limit) != "undecided", confidence)
    found = []
    for name, mask in masks.items():
        ours, theirs = pairs[name]
        _, level = decided[name]
        found.append(
            Slice(
                name=name,
                count=len(ours),
                lost=int((theirs < ours).sum()),
                won=int((theirs > ours).sum()),
                agreement=None if changed is None else share(int((~changed[mask]).sum()), len(ours), confidence),
                drop=at(name, level),
                plain=at(name, confidence),
                confidence=level,
                verdict=_ruling(at(name, level), limit),
            )
        )
    return SliceReport(tuple(sorted(found, key=lambda one: (-one.drop.low, -one.drop.value, one.name))))


def _ruling(estimate: Estimate, limit: float) -> Ruling:
    if estimate.high <= limit:
        return "meets"
    return "breaks" if estimate.low > limit else "undecided"


def _classes(labels: Array | None, count: int) -> dict[str, Array]:
    labels = np.asarray(labels if labels is not None else [])
    if labels.dtype.kind not in "iub" or labels.size != count:
        return {}
    labels = labels.reshape(count)
    return {f"class {number}": labels == number for number in np.unique(labels)}


def _named(named: Mapping[str, Array], count: int) -> dict[str, Array]:
    masks = {name: np.asarray(mask) for name, mask in named.items()}
    for name, mask in masks.items():
        _same_length(f"slice {name}", mask, count)
        if mask.dtype != bool:
            raise DataError(
                f"is {mask.dtype}, not boolean", where=f"slice {name}", do="give one truth value an example"
            )
    return masks


def _same_length(what: str, values: Array, count: int) -> None:
    if values.shape != (count,):
        raise DataError(f"have shape {values.shape} for {count} examples", where=what, do="give one value an example")
