"""Scenarios on token numbers, strings and rows of a table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.check.scenario import Scenario, shipped
from paretune.check.view import UNKNOWN

TOKENS, TEXT, ROW = ([one for one in shipped() if one.fits == kind] for kind in ("tokens", "text", "row"))


def named(among: list[Scenario], name: str) -> Scenario:
    return next(one for one in among if one.name == name)


@pytest.mark.parametrize("one", TOKENS, ids=lambda one: one.name)
@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_changed_text_is_a_text(one: Scenario, length: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(2, 900, length)
    before = ids.copy()
    found, again = (one.change(ids, one.rng(seed, 0)) for _ in range(2))
    assert (found == again).all()
    assert (ids == before).all()
    assert found.ndim == 1
    assert len(found) >= 1
    assert set(found) <= {*ids, UNKNOWN}


def test_token_scenarios_do_what_they_say() -> None:
    ids = np.arange(10, 110)
    rng = np.random.default_rng
    assert (named(TOKENS, "unknown_words@3").change(ids, rng(0)) == UNKNOWN).mean() == pytest.approx(0.2, abs=0.1)
    assert list(named(TOKENS, "cut_short@3").change(ids, rng(0))) == list(ids[:50])
    swapped = named(TOKENS, "swapped_words@5").change(ids, rng(0))
    assert sorted(swapped) == list(ids)
    assert (swapped != ids).mean() > 0.2
    dropped = named(TOKENS, "dropped_words@5").change(ids, rng(0))
    assert 40 < len(dropped) < 70
    assert (np.diff(dropped) > 0).all(), "the order stays"
    repeated = named(TOKENS, "repeated_words@2").change(ids, rng(0))
    assert len(repeated) > 100
    assert set(repeated) == set(ids)


def test_a_stronger_scenario_changes_more_words_and_those_of_the_weaker_one() -> None:
    ids = np.arange(10, 110)
    lost = [
        set(np.flatnonzero(named(TOKENS, f"unknown_words@{severity}").change(ids, np.random.default_rng(0)) == UNKNOWN))
        for severity in range(1, 6)
    ]
    assert all(weak < strong for weak, strong in pairwise(lost))


@pytest.mark.parametrize("one", TEXT, ids=lambda one: one.name)
@settings(max_examples=15, deadline=None)
@given(text=st.text(max_size=60), seed=st.integers(0, 99))
def test_any_string_gives_a_string(one: Scenario, text: str, seed: int) -> None:
    found, again = (one.change(text, one.rng(seed, 0)) for _ in range(2))
    assert found == again
    assert isinstance(found, str)


def test_text_scenarios_do_what_they_say() -> None:
    text = "The quick brown fox, they say, jumps over the lazy dog."
    change = {one.name: one.change(text, one.rng(0, 0)) for one in TEXT}
    assert change["upper_case"] == text.upper()
    assert change["lower_case"] == text.lower()
    assert change["no_punctuation"] == "The quick brown fox they say jumps over the lazy dog"
    assert change["truncated@3"] == "The quick brown fox, they say,"[: len(change["truncated@3"])]
    assert change["wide_spaces"].split() == text.split()
    assert change["mixed_case@3"].lower() == text.lower()
    assert change["mixed_case@3"] != text
    assert change["typos@5"] != text
    assert abs(len(change["typos@5"]) - len(text)) < 15
    words = zip(change["nonsense_words@5"].split(), text.split(), strict=True)
    assert all(sorted(one) == sorted(other) for one, other in words)


@pytest.mark.parametrize("one", ROW, ids=lambda one: one.name)
def test_a_row_stays_a_row(one: Scenario) -> None:
    row = np.random.default_rng(0).normal(size=40)
    before = row.copy()
    found, again = (one.change(row, one.rng(0, 0)) for _ in range(2))
    assert np.array_equal(found, again, equal_nan=True)
    assert (row == before).all()
    assert found.shape == row.shape
    assert one.change(row[:1], one.rng(0, 0)).shape == (1,)


def test_row_scenarios_do_what_they_say() -> None:
    row = np.random.default_rng(0).normal(size=1000)
    change = {one.name: one.change(row, one.rng(0, 0)) for one in ROW}
    assert np.isnan(change["missing_values@4"]).mean() == pytest.approx(0.35, abs=0.05)
    assert change["scaled_values@4"] == pytest.approx(2 * row)
    assert np.abs(change["shifted_values@3"] - row) == pytest.approx(np.full(1000, 0.5))
    assert (change["noisy_values@4"] - row).std() == pytest.approx(0.4, rel=0.1)
    assert (np.abs(change["out_of_range@3"]) == 10).mean() == pytest.approx(0.1, abs=0.03)
