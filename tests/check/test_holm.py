"""Holm's procedure by intervals is Holm's procedure by p-values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.check.holm import step_down

P_VALUES = st.lists(st.floats(0, 0.2), max_size=8)


def by_order(p_values: list[float], confidence: float) -> set[int]:
    """Holm (1979): from the smallest p-value up, until one is above what is left of the error."""
    rejected: set[int] = set()
    for place in sorted(range(len(p_values)), key=p_values.__getitem__):
        level = 1 - (1 - confidence) / (len(p_values) - len(rejected))
        if p_values[place] > 1 - level:
            break
        rejected.add(place)
    return rejected


@given(P_VALUES, st.sampled_from([0.8, 0.9, 0.95]))
def test_the_same_are_decided_as_in_the_order_of_p_values(p_values: list[float], confidence: float) -> None:
    named = {str(place): value for place, value in enumerate(p_values)}
    found = step_down(named, lambda name, level: named[name] <= 1 - level, confidence)
    assert list(found) == list(named)
    assert {int(name) for name, (decided, _) in found.items() if decided} == by_order(p_values, confidence)


def test_each_has_the_confidence_at_which_it_was_decided() -> None:
    p_values = {"clear": 0.001, "next": 0.03, "open": 0.5}
    found = step_down(p_values, lambda name, level: p_values[name] <= 1 - level, 0.9)
    assert {name: decided for name, (decided, _) in found.items()} == {"clear": True, "next": True, "open": False}
    assert [level for _, level in found.values()] == pytest.approx([1 - 0.1 / 3, 1 - 0.1 / 3, 0.9])
    assert step_down({}, lambda name, level: True, 0.95) == {}
