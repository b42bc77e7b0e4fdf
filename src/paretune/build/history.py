"""History: what a step of a recipe did to a model, for the report: learning curves, and tables of before and after.

Plain JSON values, kept beside the step's artefact and no part of it: two trainings that end in the same parameters give
the same artefact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
"""What :func:`curve` or :func:`table` made."""
FILE = "history.json"


def curve(
    technique: str,
    title: str,
    losses: Sequence[float],
    scores: Sequence[float | None],
    rates: Sequence[float],
    kept: int,
) -> Entry:
    """A learning curve, one number an epoch.

    Parameters
    ----------
    title
        Tells the curves of one step apart; may be empty.
    scores
        On data set aside, None where nothing was.
    rates
        Learning rates at the ends of the epochs.
    kept
        The epoch, counted from 1, whose parameters were kept.
    """
    return {
        "kind": "curve", "technique": technique, "title": title,
        "losses": [_finite(one) for one in losses], "scores": [_finite(one) for one in scores],
        "rates": [_finite(one) for one in rates], "kept": kept,
    }  # fmt: skip


def table(
    technique: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]
) -> Entry:
    """A row for each layer, block or kind of one, say; the first column names it."""
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{title}: every row needs {len(columns)} cells")
    cells = [[_cell(cell) for cell in row] for row in rows]
    return {"kind": "table", "technique": technique, "title": title, "columns": list(columns), "rows": cells}


def _cell(value: Any) -> str | int | float | None:
    """A plain value: numbers of numpy and torch are no JSON."""
    plain: str | int | float | None = value.item() if hasattr(value, "item") else value
    return _finite(plain) if isinstance(plain, float) else plain


def write(entries: Sequence[Entry], place: Path) -> None:
    """Write them into a step's directory, where there are any."""
    if entries:
        (place / FILE).write_text(json.dumps(list(entries)))


def read(place: Path) -> tuple[Entry, ...]:
    """What :func:`write` wrote; nothing where there is nothing that can be read."""
    try:
        return tuple(json.loads((place / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return ()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
