"""Masks: as many zeros as asked, the least important ones, growing only; groups along the axis that sums."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paretune.training import masks, sparsity
from paretune.training.sparse_plan import Ramp

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6)
SHARES = st.floats(0, 1)


def weights(shapes: list[tuple[int, ...]], seed: int = 0, axis: int = 1) -> tuple[sparsity.Weight, ...]:
    """Values with many ties."""
    drawn = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randint(-3, 4, shape, generator=drawn).float()) for shape in shapes]
    return tuple(sparsity.Weight(f"w{place}", one, axis, one.shape[axis]) for place, one in enumerate(made))


@given(SHAPES, SHARES, st.sampled_from(["per_layer", "global", "erdos_renyi"]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_goals_are_reached_to_the_element_and_nothing_large_dies_before_something_small(shapes, share, scope, seed):
    made = weights(shapes, seed)
    before = [one.parameter.detach().abs().clone() for one in made]
    held, aims = masks.Masks(made), masks.goals(made, share, scope)
    masks.shrink(held, aims)
    sizes = [one.parameter.numel() for one in made]
    assert [sum(held.dead[place] for place in aim.places) for aim in aims] == [aim.zeros for aim in aims]
    assert abs(sum(held.dead) - share * sum(sizes)) <= (0.5 * len(sizes) if scope == "per_layer" else 0.5)
    if scope == "per_layer":
        assert all(abs(dead - share * size) <= 0.5 for dead, size in zip(held.dead, sizes, strict=True))
    for aim in aims:
        gone = torch.cat([before[place][~held.alive(place)] for place in aim.places])
        left = torch.cat([before[place][held.alive(place)] for place in aim.places])
        assert not len(gone) or not len(left) or gone.max() <= left.min()
    for place, one in enumerate(made):
        wanted = before[place].masked_fill(~held.alive(place), 0.0)
        assert torch.equal(one.parameter.detach().abs(), wanted)


@given(SHAPES, st.lists(SHARES, min_size=1, max_size=5), st.sampled_from(["per_layer", "global"]))
@settings(max_examples=40, deadline=None)
def test_what_is_dead_stays_dead_though_the_rest_changes(shapes, shares, scope):
    made = weights(shapes)
    held, aims = masks.Masks(made), masks.goals(made, 1.0, scope)
    before = [held.alive(place).clone() for place in range(len(made))]
    for share in sorted(shares):
        masks.shrink(held, aims, share)
        after = [held.alive(place).clone() for place in range(len(made))]
        assert not any(bool((new & ~old).any()) for old, new in zip(before, after, strict=True))
        assert sum(held.dead) == sum(round(share * aim.zeros) for aim in aims)
        with torch.no_grad():
            for one in made:
                one.parameter.add_(torch.randn(one.parameter.shape, generator=torch.Generator().manual_seed(5)))
        before = after


@given(SHAPES, st.floats(0, 0.999))
@settings(max_examples=100, deadline=None)
def test_erdos_renyi_shares_keep_the_total_and_the_proportion_of_densities(shapes, share):
    zeros = masks.erdos_renyi(shapes, share)
    sizes = [int(np.prod(shape)) for shape in shapes]
    assert abs(sum(zeros) - share * sum(sizes)) <= 0.5 + 1e-6
    assert all(0 <= zero <= size for zero, size in zip(zeros, sizes, strict=True))
    densities = [(size - zero) / size for zero, size in zip(zeros, sizes, strict=True)]
    scales = [density * size / sum(shape) for density, size, shape in zip(densities, sizes, shapes, strict=True)]
    free = [place for place in range(len(sizes)) if zeros[place] > 1]
    for one in free:
        for other in free:  # equal but for the rounding of two numbers of elements
            assert abs(scales[one] - scales[other]) <= 1.01 / sum(shapes[one]) + 1.01 / sum(shapes[other])


@pytest.mark.parametrize("axis", [0, 1])
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(2, 5), st.data(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_group_along_the_input_axis_keeps_its_largest(axis, lengths, m, data, seed):
    n = data.draw(st.integers(1, m - 1))
    lengths[axis] *= m
    made = weights([tuple(lengths)], seed, axis)
    before = made[0].parameter.detach().clone()
    held = masks.Masks(made)
    for kept in range(m, n - 1, -1):
        masks.shrink_groups(held, kept, m)
    after = made[0].parameter.detach()
    alive = held.alive(0).movedim(axis, -1).reshape(-1, m)
    assert (alive.sum(1) == n).all()
    old, new = (one.movedim(axis, -1).reshape(-1, m) for one in (before, after))
    assert torch.equal(new, old.masked_fill(~alive, 0.0))
    assert torch.equal(new.abs().sum(1), old.abs().sort(1, descending=True).values[:, :n].sum(1))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 50), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_the_ramp_never_falls_and_ends_at_one(begin, length, interval, total):
    ramp = Ramp(begin, min(1.0, begin + length), interval)
    shares = [ramp.share(done, total) for done in range(total + 1)]
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(share == 0 for share in shares[: round(begin * total)])
    rises = [done for done in range(total + 1) if ramp.rises(done, total)]
    assert rises == [done for done in range(total + 1) if shares[done] > ([0.0, *shares])[done]]


def test_the_ramp_is_the_cubic_curve():
    ramp = Ramp(0.2, 0.7, 10)
    assert [round(ramp.share(done, 100), 4) for done in (20, 29, 30, 45, 69, 70)] == [0, 0, 0.488, 0.784, 0.992, 1]
    assert [Ramp(0.5, 0.5, 1).share(done, 10) for done in (4, 5)] == [0, 1]


@pytest.mark.parametrize("moving", [False, True])
def test_zeros_come_as_the_ramp_rises_and_no_update_brings_them_back(moving):
    made = weights([(8, 10)])
    parameter = made[0].parameter
    held, aims, ramp = masks.Masks(made, moving), masks.goals(made, 0.8, "global"), Ramp(0.2, 0.8, 3)
    each = masks.during(held, ramp, partial(masks.shrink, held, aims))
    drawn, moved = torch.Generator().manual_seed(7), torch.zeros(8, 10)
    counts = []
    for done in range(1, 21):
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(8, 10, generator=drawn))
        moved += before * (parameter.detach() - before)
        each(done, 20)
        counts.append(held.dead[0])
        assert bool((parameter[~held.alive(0)] == 0).all())
        assert bool((parameter[held.alive(0)] != 0).all())
        if moving:
            torch.testing.assert_close(held.importance(0)[held.alive(0)], moved[held.alive(0)], rtol=1e-4, atol=1e-4)
    assert counts == [round(64 * ramp.share(done, 20)) for done in range(1, 21)]
    assert len(set(counts)) > 3, "little by little"


def test_movement_is_what_updates_add_up_to():
    made = weights([(2, 3)])
    held = masks.Masks(made, moving=True)
    parameter = made[0].parameter
    with torch.no_grad():
        parameter.copy_(torch.tensor([[1.0, -1.0, 2.0], [-2.0, 3.0, 0.5]]))
    held.get_buffer("before_0").copy_(parameter.detach())
    with torch.no_grad():
        parameter += torch.tensor([[0.5, 0.5, -0.1], [-0.1, 0.0, 0.1]])
    held.watch()
    held.watch()  # nothing moved since
    wanted = torch.tensor([[0.5, -0.5, -0.2], [0.2, 0.0, 0.05]])
    assert torch.allclose(held.importance(0), wanted)
    masks.shrink(held, masks.goals(made, 0.5, "global"))
    assert held.alive(0).tolist() == [[True, False, False], [True, False, True]]
