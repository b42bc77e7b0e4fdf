"""Rates: what is assumed of the machine and not measured: the watts of a busy core, the price of an hour."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import BudgetError

WATTS_PER_CORE = 5.0
"""A busy core with its share of the package where nobody says more. Thermal design power over cores is 3.75 W for an
AMD EPYC 9654 (360 W, 96 cores) and 6.25 W for an Intel Xeon Platinum 8480+ (350 W, 56 cores)."""
VARIABLE = "PARETUNE_WATTS_PER_CORE"
_KEYS = ("per_hour", "per_kwh", "watts_per_core")


@dataclass(frozen=True)
class Rates:
    """``per_hour`` is the price of the machine for an hour, ``per_kwh`` that of a kilowatt-hour on top of it."""

    watts_per_core: float = WATTS_PER_CORE
    per_hour: float | None = None
    per_kwh: float = 0.0
    currency: str = ""

    @property
    def priced(self) -> bool:
        return self.per_hour is not None

    @classmethod
    def of(cls, prices: str | Path | None = None, watts_per_core: float | None = None) -> Rates:
        """The rates of a price file, of the environment, and of the call; the call's watts win, then the file's.

        The file is TOML: ``currency`` (a word), and in ``[machine]`` ``per_hour``, and if wanted ``per_kwh`` and
        ``watts_per_core``.

        Raises
        ------
        BudgetError
            If the file cannot be read, a price is missing or is no amount, or a key is unknown.
        """
        said = os.environ.get(VARIABLE)
        rates = cls() if said is None else cls(watts_per_core=_amount(said, VARIABLE, "watts", least=0.001))
        if prices is not None:
            rates = dataclasses.replace(rates, **_priced(Path(prices)))
        if watts_per_core is not None:
            rates = dataclasses.replace(
                rates, watts_per_core=_amount(watts_per_core, "watts per core", "watts", least=0.001)
            )
        return rates

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _priced(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BudgetError(
            f"cannot be read: {error}", where=str(path), do="write a TOML file with per_hour = 0.34 under [machine]"
        ) from error
    machine = document.get("machine")
    if not isinstance(machine, dict) or "per_hour" not in machine:
        raise BudgetError("tells no price", where=str(path), do="write per_hour = 0.34 under [machine]")
    strange = [*(set(document) - {"machine", "currency"}), *(set(machine) - set(_KEYS))]
    if strange:
        known = f"currency, and in [machine] {', '.join(_KEYS)}"
        raise BudgetError(f"has an unknown key {sorted(strange)[0]!r}", where=str(path), do=f"known are {known}")
    currency = document.get("currency", "")
    if not isinstance(currency, str) or len(currency) > 12:
        raise BudgetError(f"currency {currency!r} is no short word", where=str(path), do='write currency = "EUR"')
    found: dict[str, Any] = {"currency": currency}
    for key in _KEYS:
        if key in machine:
            least = 0.001 if key == "watts_per_core" else 0.0
            found[key] = _amount(machine[key], f"{path}: {key}", "an amount", least)
    return found


def _amount(value: object, where: str, what: str, least: float) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < least:
        raise BudgetError(f"{value!r} is not {what}", where=where, do="give a number above zero")
    return number
