"""How many units stay, and which."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import BuildError
from paretune.forms.torch_width import Group, units
from paretune.training.selection import allowed, counted, going, progress_of, reached


def group(name: str, width: int, size: int = 1) -> Group:
    return Group(name, width, (), tuple(tuple(range(first, first + size)) for first in range(0, width, size)))


groups = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(
    lambda widths: [group(str(place), width) for place, width in enumerate(widths)]
)


@given(groups, st.sampled_from(["per_layer", "global"]), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_a_larger_share_never_leaves_more_and_widths_are_those_allowed(made, scope, round_to, smallest, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = {one.name: torch.rand(one.width, generator=draw, dtype=torch.float64) for one in made}
    before = {one.name: one.width for one in made}
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        now = counted(made, scores, share, scope, round_to, smallest)
        assert all(now[one.name] in allowed(one, round_to, smallest) for one in made)
        assert all(now[name] <= before[name] for name in now)
        before = now
    assert counted(made, scores, 0.0, scope, round_to, smallest) == {one.name: one.width for one in made}


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 20))
def test_allowed_widths_are_multiples_not_below_the_smallest_or_the_whole(width, round_to, smallest):
    found = allowed(group("a", width), round_to, smallest)
    assert found[-1] == width
    assert list(found) == sorted(set(found))
    assert all(one % round_to == 0 and one >= smallest for one in found[:-1])


def test_the_least_important_of_all_go_with_global_scope():
    made = [group("a", 4), group("b", 4)]
    scores = {"a": torch.tensor([1.0, 2, 3, 4]).double(), "b": torch.tensor([5.0, 6, 0, 8]).double()}
    assert counted(made, scores, 0.5, "global", 1, 1) == {"a": 1, "b": 3}  # at least one stays
    assert counted(made, scores, 0.5, "per_layer", 1, 1) == {"a": 2, "b": 2}
    assert sorted(going(made[1], scores["b"], 2)) == [0, 2]
    assert going(made[1], torch.ones(4).double(), 3) == (3,)
    assert going(made[0], None, 4) == ()


@given(st.integers(1, 64), st.floats(0.05, 1.0))
def test_the_smallest_cut_that_reaches_the_target_is_found(width, ratio):
    made = [group("a", width)]

    def cost(counts: dict[str, int]) -> int:
        return 100 * counts["a"]

    def at(share: float) -> dict[str, int]:
        return counted(made, {}, share, "per_layer", 1, 1)

    target = max(100.0, ratio * 100 * width)
    found = reached(target, cost, at, "here")
    assert cost(found) <= target
    assert found["a"] == width or 100 * (found["a"] + 1) > target


def test_what_cannot_be_reached_is_told():
    with pytest.raises(BuildError, match=r"macs_ratio: cannot be reached: at the narrowest 4 .* and 3 are wanted"):
        reached(3, lambda counts: 4, lambda share: {"a": 1}, "here")


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
def test_schedules_rise_from_nothing_to_all(schedule):
    steps = [progress_of(schedule, share / 10, 0.4) for share in range(11)]
    assert steps == sorted(steps)
    assert steps[0] == pytest.approx(0)
    assert steps[-1] == pytest.approx(1)
    assert schedule == "linear" or steps[5] > 0.5


def test_an_exponential_schedule_leaves_the_same_share_in_each_cycle():
    kept = [1 - 0.75 * progress_of("exponential", share / 4, 0.25) for share in range(5)]
    assert [after / before for before, after in itertools.pairwise(kept)] == pytest.approx([0.25**0.25] * 4)


@given(st.integers(1, 30), st.lists(st.lists(st.integers(0, 29), min_size=1, max_size=4), max_size=6))
def test_units_are_a_partition_that_keeps_together_what_is_joined(width, joined):
    joined = [[place % width for place in one] for one in joined]
    found = units(width, joined)
    assert sorted(place for unit in found for place in unit) == list(range(width))
    owner = {place: number for number, unit in enumerate(found) for place in unit}
    assert all(len({owner[place] for place in one}) == 1 for one in joined)
    assert len(found) >= width - sum(len(set(one)) - 1 for one in joined)
