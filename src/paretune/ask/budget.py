"""Budget: what the place where the model will run allows, and how much accuracy may be lost.

The grammar, comma-separated: ``drop<=1pp``, ``drop.NAME<=2%``, ``p95@1<=5ms``, ``throughput@32>=500/s``, ``size<=5MB``,
``memory<=200MB``, ``energy<=3mJ``, ``cost<=0.01``. ``@N`` binds a limit to a batch size; without it, it holds for every
asked one. Energy is that of one call, a whole batch. Cost is that of a thousand predictions, at the cheapest asked
batch size where none is named.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from paretune.ask.rates import Rates
from paretune.errors import BudgetError

LATENCIES = ("p50", "p90", "p95", "p99")
_TIME = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3}
_UNITS: dict[str, dict[str, float]] = {
    **dict.fromkeys(LATENCIES, _TIME),
    "throughput": {"/s": 1.0},
    "size": _BYTES,
    "memory": _BYTES,
    "energy": {"uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3},
    "cost": {"": 1.0},
    "drop": {"pp": 1.0, "%": 1.0},
}
_BASE = {**dict.fromkeys(LATENCIES, "ms"), "throughput": "/s", "size": "B", "memory": "B", "energy": "mJ", "cost": ""}
_PER_BATCH = frozenset({*LATENCIES, "throughput", "memory", "energy", "cost"})
_HEAD = r"(?P<name>[A-Za-z]\w*)(?:\.(?P<score>[\w-]+))?(?:@(?P<batch>\d{1,9}))?\s*"
_OP = r"(?P<op><=|>=|≤|≥|==|=|<|>)\s*"
_LIMIT = re.compile(_HEAD + _OP + r"(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>\S*)")


@dataclass(frozen=True)
class Limit:
    """One limit. ``value`` is in base units: pp or %, ms, bytes, per second, mJ; ``score`` is None for every score."""

    name: str
    op: str
    value: float
    unit: str
    batch: int | None = None
    score: str | None = None
    text: str = ""

    def describe(self) -> dict[str, Any]:
        name = f"{self.name}.{self.score}" if self.score else self.name
        return {
            "name": name,
            "op": self.op,
            "value": self.value,
            "unit": self.unit,
            "batch": self.batch,
            "text": self.text,
        }


@dataclass(frozen=True)
class Objective:
    """What the best candidate is best at; the default is the geometric mean of the p50 speed-ups over all batches."""

    name: str = "speedup"
    batch: int | None = None

    @property
    def text(self) -> str:
        if self.name == "speedup":
            return "highest p50 speed-up (geometric mean over the batch sizes)"
        if self.name == "drop":
            return "answers closest to the original's"
        at = f" at batch {self.batch}" if self.batch is not None else ""
        return f"{'highest' if self.name == 'throughput' else 'lowest'} {self.name}{at}"


@dataclass(frozen=True)
class Budget:
    """Limits, objective and the confidence at which a limit is said to be met; ``rates`` turn CPU time into joules and
    hours into money."""

    limits: tuple[Limit, ...] = ()
    objective: Objective = Objective()
    confidence: float = 0.95
    text: str = ""
    rates: Rates = field(default_factory=Rates)

    @classmethod
    def parse(cls, text: str, minimize: str | None = None, confidence: float = 0.95) -> Budget:
        """Parse ``"p95@1<=5ms, drop<=1pp"`` and an objective such as ``p50@32``.

        Raises
        ------
        BudgetError
            Where it does not parse or contradicts itself; the message shows the place.
        """
        if not 0.5 <= confidence < 1:
            raise BudgetError(f"confidence {confidence:g} is not between 0.5 and 1", where="budget", do="use 0.95, say")
        limits: list[Limit] = []
        position = 0
        for part in text.split(","):
            if part.strip():
                limits.append(_limit(part, text, position))
            elif text.strip():
                raise BudgetError.at(text, position, "a limit is missing")
            position += len(part) + 1
        _contradictions(limits)
        return cls(tuple(limits), _objective(minimize), confidence, text.strip())

    def at(self, rates: Rates) -> Budget:
        """The same budget at these rates.

        Raises
        ------
        BudgetError
            If a limit is on cost, and the rates hold no price.
        """
        for limit in self.limits:
            if limit.name == "cost" and not rates.priced:
                raise BudgetError(
                    "a cost needs prices", where=f"budget {limit.text!r}",
                    do="give --prices FILE.toml, with per_hour = 0.34 under [machine]",
                )  # fmt: skip
        return replace(self, rates=rates)

    def batches(self, asked: Iterable[int]) -> tuple[int, ...]:
        """The asked batch sizes and those that limits or the objective name, ascending."""
        named = {limit.batch for limit in self.limits} | {self.objective.batch}
        return tuple(sorted(set(asked) | {batch for batch in named if batch is not None}))

    def asks(self, name: str) -> bool:
        """Whether a limit or the objective speaks of this quantity."""
        return self.objective.name == name or any(limit.name == name for limit in self.limits)

    def describe(self) -> dict[str, Any]:
        limits = [limit.describe() for limit in self.limits]
        rates = self.rates.describe()
        return {"text": self.text, "confidence": self.confidence, "limits": limits, "rates": rates}


def _limit(part: str, text: str, position: int) -> Limit:
    position += len(part) - len(part.lstrip())
    match = _LIMIT.fullmatch(part.strip())
    if match is None:
        raise _unread(part.strip(), text, position)

    def refuse(what: str, group: str, do: str = "") -> BudgetError:
        assert match is not None
        return BudgetError.at(text, position + match.start(group), what, do)

    name, op = match["name"], {"≤": "<=", "≥": ">=", "<": "<=", ">": ">="}.get(match["op"], match["op"])
    if name not in _UNITS:
        raise refuse(f"unknown limit {name!r}", "name", f"known are {', '.join(_UNITS)}")
    if op not in ("<=", ">="):
        raise refuse(f"{op!r} is no comparison", "op", "use <= or >=")
    if (op == ">=") != (name == "throughput"):
        raise refuse(f"{name} needs {'>=' if name == 'throughput' else '<='}", "op")
    if match["score"] and name != "drop":
        raise refuse("only drop takes the name of a score", "score")
    batch = int(match["batch"]) if match["batch"] else None
    if batch is not None and (name not in _PER_BATCH or batch < 1):
        wrong = f"{name} takes no batch size" if name not in _PER_BATCH else "a batch size is at least 1"
        raise refuse(wrong, "batch")
    units = _UNITS[name]
    if match["unit"] not in units:
        offered = ", ".join(unit for unit in units if unit)
        what = f"unknown unit {match['unit']!r}" if match["unit"] else "a unit is missing"
        raise refuse(what, "unit", f"{name} takes {offered}" if offered else f"{name} takes none")
    value = float(match["value"]) * units[match["unit"]]
    if not math.isfinite(value) or value < 0 or (value == 0 and name != "drop"):
        raise refuse(f"{name} cannot be {match['op']} {match['value']}", "value")
    unit = match["unit"] if name == "drop" else _BASE[name]
    return Limit(name, op, value, unit, batch, match["score"], part.strip())


def _unread(limit: str, text: str, position: int) -> BudgetError:
    """The error for what is no limit at all, at the place up to which it is one."""
    do = "write it like p95@1<=5ms, drop<=1pp, size<=5MB"
    for pattern, wanted in ((_HEAD + _OP, "a number"), (_HEAD, "a comparison")):
        if match := re.match(pattern, limit):
            return BudgetError.at(text, position + match.end(), f"cannot be read: {wanted} is missing", do)
    return BudgetError.at(text, position, "cannot be read", do)


def _contradictions(limits: list[Limit]) -> None:
    seen: dict[tuple[str, int | None, str | None], Limit] = {}
    for limit in limits:
        key = (limit.name, limit.batch, limit.score)
        if key in seen and (seen[key].value, seen[key].unit) != (limit.value, limit.unit):
            raise BudgetError(
                f"{seen[key].text!r} and {limit.text!r} contradict each other", where="budget", do="keep one of them"
            )
        seen[key] = limit


def _objective(minimize: str | None) -> Objective:
    if minimize is None or minimize.strip() == "speedup":
        return Objective()
    match = re.fullmatch(r"(?P<name>\w+)(?:@(?P<batch>\d{1,9}))?", minimize.strip())
    names = (*LATENCIES, "throughput", "size", "memory", "energy", "drop")
    if match is None or match["name"] not in names:
        raise BudgetError(f"{minimize!r} cannot be minimised", where="--minimize", do=f"use one of {', '.join(names)}")
    batch = int(match["batch"]) if match["batch"] else None
    if batch is not None and (batch < 1 or match["name"] not in _PER_BATCH):
        raise BudgetError(
            f"{match['name']} takes no batch size {batch}", where="--minimize", do=f"write {match['name']} alone"
        )
    return Objective(match["name"], batch)
