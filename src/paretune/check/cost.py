"""Cost: the price of a thousand predictions on a machine that does nothing else, from a user's prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paretune.ask.rates import Rates
from paretune.check.energy import Energy, Kind
from paretune.check.statistics import Estimate

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Cost:
    """``per_thousand`` predictions, and per thousand right ones where answers are right or wrong.

    ``kind`` is that of the figures it rests on: estimated where the energy in it is.
    """

    per_thousand: Estimate | None
    per_thousand_correct: Estimate | None
    kind: Kind
    currency: str

    def describe(self) -> dict[str, Any]:
        def told(found: Estimate | None) -> dict[str, float | None] | None:
            return found.describe() if found else None

        both = {"per_thousand": told(self.per_thousand), "per_thousand_correct": told(self.per_thousand_correct)}
        return {**both, "currency": self.currency, "kind": self.kind}


def cost(batch: int, throughput: Estimate, spent: Energy, right: Estimate | None, rates: Rates) -> Cost | None:
    """The cost at one batch size; None without prices.

    ``throughput`` in predictions a second, all the time: an hour in which fewer are asked costs the same. ``spent`` is
    the energy of one call. ``right`` is the share of right answers. Ends of intervals are put together at their worst.
    """
    if rates.per_hour is None:
        return None
    hour = [1e3 / 3600 * rates.per_hour / end for end in (throughput.value, throughput.high, throughput.low) if end > 0]
    if len(hour) < 3 or (rates.per_kwh and spent.joules is None):
        return Cost(None, None, "unavailable", rates.currency)
    kind: Kind = "measured"
    if rates.per_kwh and spent.joules is not None:
        kind = spent.kind
        each = 1e3 / batch * rates.per_kwh / _JOULES_PER_KWH
        joules = (spent.joules.value, spent.joules.low, spent.joules.high)
        hour = [price + each * end for price, end in zip(hour, joules, strict=True)]
    found = Estimate(*hour)
    if right is None or right.low <= 0:
        return Cost(found, None, kind, rates.currency)
    correct = Estimate(found.value / right.value, found.low / right.high, found.high / right.low)
    return Cost(found, correct, kind, rates.currency)
