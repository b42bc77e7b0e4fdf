"""Selection: how many units of each group of layers stay, and which."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import torch

from paretune.errors import BuildError
from paretune.forms.torch_width import Group

Counts = dict[str, int]
"""Of each group, by name, how many of its units stay."""
HALVINGS = 14
"""Of the range in which the share that goes is looked for."""


def allowed(group: Group, round_to: int, smallest: int) -> tuple[int, ...]:
    """Numbers of units that may stay, rising: those of a width that is a multiple of ``round_to``, and all."""
    size = len(group.units[0])
    return (
        *(k for k in range(1, len(group.units)) if k * size >= smallest and k * size % round_to == 0),
        len(group.units),
    )


def of_units(group: Group, scores: torch.Tensor) -> torch.Tensor:
    """The mean score of each unit's channels, [units]."""
    return torch.stack([scores[list(unit)].mean() for unit in group.units])


def counted(
    groups: Sequence[Group], scores: Mapping[str, torch.Tensor], share: float, scope: str, round_to: int, smallest: int
) -> Counts:
    """What stays when a share of the units goes, lowest scores first: of every group, or (``global``) of all together.

    The nearest width of those allowed is taken. A larger share never leaves more of any group.
    """
    if scope == "global":
        every = torch.cat([of_units(group, scores[group.name]) for group in groups])
        owner = torch.cat([torch.full((len(group.units),), place) for place, group in enumerate(groups)])
        staying = every.argsort(stable=True)[round(share * len(every)) :]
        wanted = torch.bincount(owner[staying], minlength=len(groups)).double().tolist()
    else:
        wanted = [len(group.units) * (1 - share) for group in groups]
    return {
        group.name: min(allowed(group, round_to, smallest), key=lambda k, ideal=ideal: (abs(k - ideal), k))  # type: ignore[misc]
        for group, ideal in zip(groups, wanted, strict=True)
    }


def reached(target: float, cost: Callable[[Counts], int], counts_at: Callable[[float], Counts], where: str) -> Counts:
    """The counts at the smallest share at which they cost no more than ``target``, found by halving.

    Raises
    ------
    BuildError
        If even the largest share costs more.
    """
    known: dict[tuple[tuple[str, int], ...], int] = {}

    def costs(counts: Counts) -> int:
        key = tuple(counts.items())
        if key not in known:
            known[key] = cost(counts)
        return known[key]

    if costs(counts_at(0.0)) <= target:
        return counts_at(0.0)
    low, high, best = 0.0, 1.0, counts_at(1.0)
    if costs(best) > target:
        raise BuildError(
            f"cannot be reached: at the narrowest {costs(best):,} multiply-accumulates stay, and {target:,.0f} are "
            "wanted", where=f"{where}.macs_ratio",
            do="ask for more, lower smallest or round_to, or prune blocks too (the notes name the layers that stay)",
        )  # fmt: skip
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        counts = counts_at(middle)
        if costs(counts) <= target:
            high, best = middle, counts
        else:
            low = middle
    return best


def asked(groups: Sequence[Group], widths: Sequence[str], where: str) -> Counts:
    """What stays by ``PATTERN=WIDTH``; groups that no pattern names keep everything.

    Raises
    ------
    BuildError
        If one is not of that shape, names no group, or names a width that a group cannot have.
    """
    found: Counts = {}
    for text in widths:
        pattern, _, number = text.rpartition("=")
        if not pattern or not number.strip().isdecimal():
            raise BuildError(f"{text!r} is not PATTERN=WIDTH", where=f"{where}.widths", do='write "layer1.*.conv1=8"')
        named = [group for group in groups if any(fnmatch.fnmatchcase(path, pattern) for path in group.makers)]
        if not named:
            some = ", ".join(group.name for group in groups[:5])
            raise BuildError(
                f"{pattern!r} names no layer that can be made narrower", where=f"{where}.widths",
                do=f"there are {some}{' …' if len(groups) > 5 else ''}",
            )  # fmt: skip
        for group in named:
            count = _count(group, int(number), where)
            if found.setdefault(group.name, count) != count:
                raise BuildError(
                    f"{text!r}: another width was given for a layer of the same group ({', '.join(group.makers)})",
                    where=f"{where}.widths", do="give them one width",
                )  # fmt: skip
    return {group.name: found.get(group.name, len(group.units)) for group in groups}


def _count(group: Group, width: int, where: str) -> int:
    size = len(group.units[0])
    if not 0 < width <= group.width or width % size:
        multiple = f", a multiple of {size}" if size > 1 else ""
        raise BuildError(
            f"{width} is no width for {group.name}", where=f"{where}.widths", do=f"give 1 to {group.width}{multiple}"
        )
    return width // size


def going(group: Group, scores: torch.Tensor | None, staying: int) -> tuple[int, ...]:
    """The units that go, least important first; of equal ones, or without scores, the last."""
    if staying >= len(group.units):
        return ()
    worth = torch.zeros(len(group.units), dtype=torch.float64) if scores is None else of_units(group, scores)
    order = worth.flip(0).argsort(stable=True)[: len(group.units) - staying]
    return tuple((len(group.units) - 1 - order).tolist())


def progress_of(schedule: str, share: float, ratio: float) -> float:
    """How much of the cut is done at a share of the cycles, 0 … 1; ``ratio`` is what stays in the end.

    ``cubic`` is the schedule of Zhu & Gupta 2017, "To prune, or not to prune"; ``exponential`` leaves the same share of
    what there is in every cycle.
    """
    if schedule == "cubic":
        return float(1 - (1 - share) ** 3)
    if schedule == "exponential" and 0 < ratio < 1:
        return float((1 - ratio**share) / (1 - ratio))
    return share
