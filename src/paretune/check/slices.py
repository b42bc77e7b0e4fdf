"""Slices: flips, agreement and drop for every class and every named part of the examples, and the worst of them.

An average hides a slice that broke. Each one is judged by itself, and the more there are, the more each must show:
decisions follow Holm (1979), *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of
Statistics 6, so that all of them together are wrong no more often than one verdict is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paretune.check.statistics import Estimate, drop, share
from paretune.errors import DataError

Array = np.ndarray[Any, Any]
Ruling = Literal["meets", "breaks", "undecided"]


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
    def worst(self) -> Slice | None:
        return self.slices[0] if self.slices else None

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
    decided = _holm(pairs, limit, unit, confidence)
    found = []
    for name, mask in masks.items():
        ours, theirs = pairs[name]
        estimate, level = decided[name]
        found.append(
            Slice(
                name=name,
                count=len(ours),
                lost=int((theirs < ours).sum()),
                won=int((theirs > ours).sum()),
                agreement=None if changed is None else share(int((~changed[mask]).sum()), len(ours), confidence),
                drop=estimate,
                plain=drop(ours, theirs, unit, confidence),
                confidence=level,
                verdict=_ruling(estimate, limit),
            )
        )
    return SliceReport(tuple(sorted(found, key=lambda one: (-one.drop.low, -one.drop.value, one.name))))


def _holm(
    pairs: Mapping[str, tuple[Array, Array]], limit: float, unit: str, confidence: float
) -> dict[str, tuple[Estimate, float]]:
    """The deciding interval of every slice and its confidence.

    With m slices left, those whose interval at 1 − α / m leaves the limit out are decided; then again with the rest,
    until none is.
    """
    decided: dict[str, tuple[Estimate, float]] = {}
    left = list(pairs)
    while left:
        level = 1 - (1 - confidence) / len(left)
        found = {name: drop(*pairs[name], unit, level) for name in left}
        clear = [name for name in left if _ruling(found[name], limit) != "undecided"]
        decided |= {name: (found[name], level) for name in clear or left}
        left = [name for name in left if name not in clear] if clear else []
    return decided


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
