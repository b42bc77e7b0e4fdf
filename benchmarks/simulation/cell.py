"""Cell: how often the intervals of one setting held the truth; tables of cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

LEAST, MOST = 0.94, 0.97
ERROR = 0.01
"""A cell fails when the number of intervals that hold the truth is less likely than this at the bound itself."""


@dataclass(frozen=True)
class Cell:
    """One setting: where it stands in its table, how many intervals of how many hold the truth.

    ``capped``: there is so much to see that covering more than 97 % would be too wide. ``unstated`` runs gave no
    interval, ``unbounded`` ones one without an end on one side.
    """

    row: str
    column: str
    held: int
    runs: int
    capped: bool = False
    unstated: int = 0
    unbounded: int = 0

    @property
    def fails(self) -> str:
        if self.runs and stats.binom.cdf(self.held, self.runs, LEAST) < ERROR:
            return "low"
        if self.runs and self.capped and stats.binom.sf(self.held - 1, self.runs, MOST) < ERROR:
            return "wide"
        return ""

    @property
    def text(self) -> str:
        if not self.runs:
            return "–"
        shown = f"{100 * self.held / self.runs:.1f}"
        if self.unbounded >= 0.01 * self.runs:
            shown += f" ({100 * self.unbounded / self.runs:.0f} open)"
        return f"**{shown} {self.fails}**" if self.fails else shown


def table(cells: Iterable[Cell], corner: str) -> str:
    """Cells as a markdown table, in the order in which rows and columns first appear."""
    cells = list(cells)
    rows, columns = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("row", "column"))
    by_place = {(cell.row, cell.column): cell.text for cell in cells}
    return plain([corner, *columns], [[row, *(by_place.get((row, column), "") for column in columns)] for row in rows])


def plain(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, all but the first column to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(cells: Sequence[Cell]) -> str:
    """How many cells there are, the ends of what they cover, and how many fail."""
    stated = [cell for cell in cells if cell.runs]
    shares = [100 * cell.held / cell.runs for cell in stated]
    failing = sum(bool(cell.fails) for cell in stated)
    runs = sorted({cell.runs + cell.unstated for cell in stated})
    each = f"{runs[0]:,}" if len(runs) == 1 else f"{runs[0]:,} to {runs[-1]:,}"
    return (
        f"{len(stated)} cells of {each} runs: {min(shares):.1f} to {max(shares):.1f} % covered, "
        f"{'none fails' if not failing else f'**{failing} fail**'}."
    )
