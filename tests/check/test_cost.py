"""Cost is arithmetic on throughput, energy and prices, with its worst ends put together."""

from __future__ import annotations

import pytest

from paretune.ask.rates import Rates
from paretune.check.cost import cost
from paretune.check.energy import Energy
from paretune.check.statistics import Estimate

FAST = Estimate(500.0, 400.0, 1000.0)
JOULES = Energy("estimated", Estimate(0.08, 0.04, 0.16), "")
HOURLY = Rates(per_hour=0.36, currency="EUR")


def test_an_hour_is_shared_by_what_is_answered_in_it() -> None:
    found = cost(8, FAST, JOULES, None, HOURLY)
    assert found is not None
    assert found.per_thousand is not None
    assert found.per_thousand.describe() == pytest.approx({"value": 2e-4, "low": 1e-4, "high": 2.5e-4})
    assert (found.per_thousand_correct, found.kind, found.currency) == (None, "measured", "EUR")


def test_power_is_paid_for_by_the_example() -> None:
    found = cost(8, FAST, JOULES, Estimate(0.8, 0.5, 1.0), Rates(per_hour=0.36, per_kwh=36.0))
    assert found is not None
    assert found.per_thousand is not None
    assert found.per_thousand_correct is not None
    assert found.per_thousand.describe() == pytest.approx({"value": 3e-4, "low": 1.5e-4, "high": 4.5e-4})
    assert found.per_thousand_correct.describe() == pytest.approx({"value": 3.75e-4, "low": 1.5e-4, "high": 9e-4})
    assert found.kind == "estimated"
    told = found.describe()
    assert told["per_thousand"] == found.per_thousand.describe()
    assert told["kind"] == "estimated"


def test_what_is_not_known_is_not_made_up() -> None:
    assert cost(1, FAST, JOULES, None, Rates()) is None, "no prices"
    dark = Energy("unavailable", None, "")
    found = cost(1, FAST, dark, None, Rates(per_hour=1.0, per_kwh=0.25))
    assert found is not None
    assert (found.per_thousand, found.kind) == (None, "unavailable")
    assert found.describe()["per_thousand"] is None
    bare = cost(1, FAST, dark, None, HOURLY)
    assert bare is not None
    assert bare.per_thousand is not None, "nobody pays for power: its energy does not matter"
    none_right = cost(1, FAST, JOULES, Estimate(0.0, 0.0, 0.1), HOURLY)
    assert none_right is not None
    assert none_right.per_thousand_correct is None
