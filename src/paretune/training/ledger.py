"""Ledger: where a smaller module's parameters and multiply-accumulates went, layer by layer, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from paretune.ask.target import Arrays
from paretune.build.history import Entry, table
from paretune.forms import torch_count, torch_fake_quant

COLUMNS = ("layer", "parameters before", "after", "multiply-accumulates before", "after")
Row = tuple[str, int, int, int | None, int | None]


def ledger(
    technique: str, before: nn.Module, after: nn.Module, names: tuple[str, ...] | None, arrays: Arrays
) -> Entry | None:
    """A row for each layer that got smaller or went, one for all others together, and the sum; None where no weight
    went.

    A list whose members went is one row, as the paths of its other members are others now.

    Parameters
    ----------
    names, arrays
        How the modules are called, as for :func:`paretune.forms.torch.call_flat`: the first training example. What of
        its products cannot be told from others has no number.
    """
    old, new = _parameters(before), _parameters(after)
    if type(before) is not type(after) or _weights(before) == _weights(after):
        return None
    done = [_products(module, names, arrays) for module in (before, after)]
    lists = _changed_lists(before, after)
    rows: list[Row] = []
    others, total = [0, 0, 0, 0], [0, 0, 0, 0]
    for path in dict.fromkeys(_place(one, lists) for one in (*old, *new)):
        found = [
            sum(count for one, count in counts.items() if _place(one, lists) == path)
            for counts in (old, new, done[0], done[1])
        ]
        total = [one + more for one, more in zip(total, found, strict=True)]
        if found[0] == found[1] and found[2] == found[3]:
            others = [one + more for one, more in zip(others, found, strict=True)]
        else:
            rows.append(_row(f"{path}{lists.get(path, '')}", found, done))
    rows += [_row(label, counts, done) for label, counts in (("all others", others), ("in all", total)) if any(counts)]
    return table(technique, "where parameters and multiply-accumulates went", COLUMNS, rows)


def _row(label: str, found: Sequence[int], done: Sequence[Counter[str]]) -> Row:
    known = all(done)  # a module whose products cannot be counted has none
    return label, found[0], found[1], found[2] if known else None, found[3] if known else None


def _parameters(module: nn.Module) -> Counter[str]:
    """How many each layer has, by path; shared ones at the first place, those of quantisers nowhere."""
    scales = torch_fake_quant.scales(module)
    found: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        if parameter not in scales:
            found[name.rpartition(".")[0]] += parameter.numel()
    return found


def _weights(module: nn.Module) -> int:
    """Numbers in weights of two axes or more: folding and quantising move all others."""
    scales = torch_fake_quant.scales(module)
    return sum(one.numel() for one in module.parameters() if one.ndim > 1 and one not in scales)


def _products(module: nn.Module, names: tuple[str, ...] | None, arrays: Arrays) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in torch_count.products(module, names, arrays):
        found[name.rpartition(".")[0]] += count
    return found


def _changed_lists(before: nn.Module, after: nn.Module) -> dict[str, str]:
    """The outermost lists of modules that lost members, and what is to be told of it."""
    now = dict(after.named_modules(remove_duplicate=False))
    found: dict[str, str] = {}
    for path, part in before.named_modules():
        if not isinstance(part, nn.Sequential | nn.ModuleList) or path not in now or _place(path, found) != path:
            continue
        was, left = len(part), sum(1 for _ in now[path].children())
        if was != left:
            found[path] = f" ({was} → {left} members)"
    return found


def _place(path: str, lists: dict[str, str]) -> str:
    """The list that a layer is told with, else its own path."""
    return next((one for one in lists if path == one or path.startswith(f"{one}.") or not one), path)
