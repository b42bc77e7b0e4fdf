"""Rates come from a file, the environment and the call, and a slip of the pen is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretune.ask.rates import VARIABLE, WATTS_PER_CORE, Rates
from paretune.errors import BudgetError


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "prices.toml"
    path.write_text(text)
    return path


def test_without_anything_there_is_a_stated_wattage_and_no_price() -> None:
    rates = Rates.of()
    assert (rates.watts_per_core, rates.per_hour, rates.priced) == (WATTS_PER_CORE, None, False)


def test_the_call_wins_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "7")
    assert Rates.of().watts_per_core == 7
    bare = written(tmp_path, "[machine]\nper_hour = 0.34\n")
    assert Rates.of(bare) == Rates(7, 0.34, 0.0, "")
    whole = written(tmp_path, 'currency = "EUR"\n[machine]\nper_hour = 0\nper_kwh = 0.25\nwatts_per_core = 3\n')
    assert Rates.of(whole) == Rates(3, 0.0, 0.25, "EUR")
    assert Rates.of(whole).priced, "a machine may cost nothing but its power"
    assert Rates.of(whole, 2.5).watts_per_core == 2.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("per_hour = 1", "tells no price"), ("[machine]\nper_kwh = 1", "tells no price"),
        ("[machine", "cannot be read"),
        ("[machine]\nper_hour = -1", "-1 is not an amount"), ("[machine]\nper_hour = nan", "nan is not an amount"),
        ('[machine]\nper_hour = "much"', "'much' is not an amount"), ("[machine]\nper_hour = true", "True is not"),
        ("[machine]\nper_hour = 1\nper_day = 2", "unknown key 'per_day'"), ("[machine]\nper_hour = 1\n[gpu]", "'gpu'"),
        ("currency = 3\n[machine]\nper_hour = 1", "currency 3 is no short word"),
        ("[machine]\nper_hour = 1\nwatts_per_core = 0", "0 is not an amount"),
    ],
)  # fmt: skip
def test_a_file_that_tells_no_price_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        Rates.of(written(tmp_path, text))
    assert says in str(caught.value)
    assert "prices.toml" in str(caught.value)
    with pytest.raises(BudgetError, match="cannot be read"):
        Rates.of(tmp_path / "none.toml")


@pytest.mark.parametrize("watts", ["", "many", "-3", "0", "inf"])
def test_watts_must_be_watts(watts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, watts)
    with pytest.raises(BudgetError, match=f"^{VARIABLE}"):
        Rates.of()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(BudgetError, match="watts per core: -1"):
        Rates.of(watts_per_core=-1)
