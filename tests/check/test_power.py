"""What can be proven: by formula, checked against all outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.check.power import chance_to_prove, examples_needed, half_width, provable_limit

QUICK = settings(max_examples=30, deadline=None)
RATES = st.floats(0, 0.3)
COUNTS = st.integers(30, 20_000)


@pytest.mark.parametrize(("count", "widths"), [(5000, (0.48, 0.55, 0.62, 0.68)), (10_000, (0.34, 0.39, 0.44, 0.48))])
def test_half_widths_at_3_to_6_per_cent_of_flips(count: int, widths: tuple[float, ...]) -> None:
    found = [half_width(count, rate) for rate in (0.03, 0.04, 0.05, 0.06)]
    assert found == pytest.approx(widths, abs=0.011)


@pytest.mark.parametrize(("rate", "all_", "half"), [(0.03, 0.98, 0.61), (0.045, 0.91, 0.40), (0.06, 0.82, 0.29)])
def test_chances_to_prove_one_point_at_a_true_drop_of_0_3(rate: float, all_: float, half: float) -> None:
    assert chance_to_prove(1, 10_000, rate) == pytest.approx(all_, abs=0.015)
    # half the examples, and the first of five by Holm
    assert chance_to_prove(1, 5000, rate, confidence=0.99) == pytest.approx(half, abs=0.03)


def test_without_flips_one_point_takes_381_examples() -> None:
    assert examples_needed(1, 0.0) == 381
    assert chance_to_prove(1, 381, 0.0) == 1
    assert chance_to_prove(1, 380, 0.0) == 0


@pytest.mark.parametrize("count", [200, 1000, 10_000])
@pytest.mark.parametrize("rate", [0.005, 0.03, 0.1])
def test_the_formula_is_what_all_outcomes_say(count: int, rate: float) -> None:
    limit = provable_limit(count, rate)
    # with few flips, outcomes come in coarse steps
    assert chance_to_prove(limit, count, rate) == pytest.approx(0.8, abs=0.05 if count * rate < 10 else 0.015)


@given(COUNTS, RATES, RATES, st.floats(0.5, 0.95))
@QUICK
def test_more_flips_prove_less(count: int, one: float, other: float, power: float) -> None:
    few, many = sorted((one, other))
    assert provable_limit(count, few, 0.0, power) <= provable_limit(count, many, 0.0, power) + 1e-9
    assert half_width(count, few) <= half_width(count, many) + 1e-9


@given(COUNTS, COUNTS, RATES)
@QUICK
def test_more_examples_prove_more(one: int, other: int, rate: float) -> None:
    few, many = sorted((one, other))
    assert provable_limit(many, rate) <= provable_limit(few, rate) + 1e-9


@given(COUNTS, RATES, st.floats(0.5, 0.95), st.floats(0.5, 0.95), st.floats(0.6, 0.99))
@QUICK
def test_surer_proof_takes_a_wider_limit(count: int, rate: float, one: float, other: float, level: float) -> None:
    low, high = sorted((one, other))
    assert provable_limit(count, rate, 0.3, low) <= provable_limit(count, rate, 0.3, high) + 1e-9
    assert provable_limit(count, rate, confidence=level) <= provable_limit(count, rate, confidence=0.995) + 1e-9


@given(st.floats(0.5, 5), st.floats(0.001, 0.2))
@QUICK
def test_the_number_needed_is_the_smallest(limit: float, rate: float) -> None:
    count = examples_needed(limit, rate)
    assert count is not None
    assert provable_limit(count, rate) <= limit < provable_limit(count - 1, rate)


def test_a_drop_beyond_the_limit_is_never_proven() -> None:
    assert examples_needed(0.2, 0.05, true_drop=0.3) is None
    assert chance_to_prove(1, 10_000, 0.05, true_drop=2) < 1e-3


@given(st.integers(50, 2000), st.floats(0.001, 0.2), st.floats(0.3, 5), st.floats(0.3, 5))
@QUICK
def test_a_wider_limit_is_proven_more_often(count: int, rate: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert chance_to_prove(low, count, rate) <= chance_to_prove(high, count, rate) + 1e-9
