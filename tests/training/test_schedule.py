"""The learning rate rises, reaches its highest once, falls, and never is zero."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from paretune.training.schedule import share


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_it_rises_to_one_then_falls_and_stays_above_zero(steps, warmup):
    rates = [share(step, steps, warmup) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[:rising]))
    assert all(a > b for a, b in itertools.pairwise(rates[rising:]))
    assert max(rates) == 1


def test_it_ends_near_zero_and_is_half_in_the_middle_of_the_fall():
    assert share(999, 1000, 0.1) < 1e-5
    assert share(550, 1000, 0.1) == 0.5
    assert share(0, 1000, 0.1) == 0.01
