"""Numbers for people: units, sensible digits, and a dash that says why it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"
SPACE = "\u00a0"
MINUS = "−"
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Figure:
    """One shown number: its text, its interval, the number to sort by, and why it is missing when it is."""

    text: str = DASH
    span: str = ""
    sort: float | None = None
    why: str = ""

    @property
    def both(self) -> str:
        return f"{self.text} ({self.span})" if self.span else self.text


def number(value: float, digits: int = 3) -> str:
    """``value`` with this many significant digits, never in exponents, thousands set apart: 0.0123, 12.3, 12,300."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else DASH
    if abs(value) < 10 ** (digits - 1):
        value = float(f"{value:.{digits}g}")  # 9.999 rounds up into the next decade before its digits are counted
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 9)}f}".replace("-", MINUS)


def fixed(value: float, places: int) -> str:
    """``value`` with this many decimals, and no minus sign before a zero."""
    text = f"{value:,.{places}f}"
    return (text if any(digit in text for digit in "123456789") else text.removeprefix("-")).replace("-", MINUS)


def milliseconds(value: float) -> str:
    return f"{number(value)}{SPACE}ms"


def times(value: float) -> str:
    return f"{fixed(value, 2 if value < 9.95 else 1 if value < 99.5 else 0)}×"


def byte_size(value: float) -> str:
    """Decimal units, as the budget's KB, MB and GB are."""
    return _scaled(value, _BYTES, "B")


def count(value: float) -> str:
    return _scaled(value, _COUNTS, "").rstrip(SPACE)


def whole(value: float) -> str:
    return f"{value:,.0f}"


def share(value: float) -> str:
    """A share between 0 and 1 in per cent."""
    return f"{fixed(100 * value, 2)}{SPACE}%"


def points(value: float) -> str:
    return f"{fixed(value, 2)}{SPACE}pp"


def percent(value: float) -> str:
    return f"{fixed(value, 2)}{SPACE}%"


def per_second(value: float) -> str:
    return f"{number(value)}/s"


def millijoule(value: float) -> str:
    return f"{number(value)}{SPACE}mJ"


def seconds(value: float) -> str:
    """A duration: 0.8 s, 42 s, 3 min 20 s, 1 h 5 min."""
    if value < 10:
        return f"{fixed(value, 1)}{SPACE}s"
    left = round(value)
    if left < 60:
        return f"{left}{SPACE}s"
    if left < 3600:
        return f"{left // 60}{SPACE}min" + (f" {left % 60}{SPACE}s" if left % 60 else "")
    return f"{left // 3600}{SPACE}h" + (f" {left % 3600 // 60}{SPACE}min" if left % 3600 // 60 else "")


_IN_UNIT: Mapping[str, Callable[[float], str]] = {
    "pp": points,
    "%": percent,
    "ms": milliseconds,
    "B": byte_size,
    "/s": per_second,
    "mJ": millijoule,
    "×": times,
}


def in_unit(unit: str | None) -> Callable[[float], str]:
    """How a number in one of the budget's base units is written."""
    return _IN_UNIT.get(unit or "", number)


def single(value: float | None, write: Callable[[float], str], why: str = "not known") -> Figure:
    """A number without an interval."""
    return Figure(why=why) if value is None else Figure(write(value), "", float(value))


def measured(interval: Mapping[str, Any] | None, write: Callable[[float], str], why: str = "not measured") -> Figure:
    """``{value, low, high}`` as text and span; any of them may be null."""
    if interval is None or interval.get("value") is None:
        return Figure(why=why)
    return Figure(write(interval["value"]), span(interval, write), float(interval["value"]))


def span(interval: Mapping[str, Any], write: Callable[[float], str]) -> str:
    """``low … high``, the unit said once; an open end as ``from low`` or ``up to high``; "" where both are."""
    low, high = interval.get("low"), interval.get("high")
    if low == high and low in (None, interval.get("value")):
        return ""
    if low is None or high is None:
        return f"up to {write(high)}" if high is not None else f"from {write(low or 0.0)}"
    first, last = write(low), write(high)
    unit = last.lstrip("0123456789.,−")
    if unit.strip(SPACE) and first.endswith(unit):
        first = first.removesuffix(unit)
    return f"{first} … {last}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...], base: str) -> str:
    for step, unit in steps:
        if abs(value) >= 0.9995 * step:
            return f"{number(value / step)}{SPACE}{unit}"
    return f"{value:,.0f}{SPACE}{base}".replace("-", MINUS)


def cell(value: str | float | None) -> str:
    """A cell of a table whose columns are of any kind: texts as they are, whole numbers whole."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    return whole(value) if float(value).is_integer() else number(value)
