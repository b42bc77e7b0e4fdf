"""What confirming takes is foreseen, and less is looked at where there is less time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.check.plan import CONFIRM, HURRIED, confirm_s, fitting
from paretune.check.statistics import CLUSTERS

PACE = {1: 0.004, 32: 0.05}


def test_with_time_all_is_looked_at() -> None:
    plan, most = fitting(3600, PACE, 10_000, 1.0)
    assert (plan, most) == (CONFIRM, 6)


@given(st.floats(1, 2000), st.floats(1, 2000), st.floats(0.05, 10), st.floats(1e-4, 1))
@settings(max_examples=60, deadline=None)
def test_less_time_never_means_more(one: float, other: float, open_s: float, pace: float) -> None:
    pace_s = {1: pace, 8: 4 * pace}
    (short, few), (long, many) = (fitting(left, pace_s, 1000, open_s) for left in sorted((one, other)))
    assert short.sessions * short.rounds * short.count <= long.sessions * long.rounds * long.count
    assert short != long or few <= many
    if short != HURRIED:
        assert confirm_s(short, few, pace_s, 1000, open_s) < min(one, other)


def test_even_in_a_hurry_there_are_sessions_to_compare() -> None:
    plan, most = fitting(1.0, PACE, 10_000, 1.0)
    assert (plan, most) == (HURRIED, 2)
    assert plan.sessions >= CLUSTERS


def test_the_number_of_sessions_does_not_change_what_a_session_is() -> None:
    assert "sessions" not in CONFIRM.describe_session()
    assert CONFIRM.describe_session()["rounds"] == CONFIRM.rounds
