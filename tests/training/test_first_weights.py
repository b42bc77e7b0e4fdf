"""First weights are those that a module draws for itself when it is made."""

from __future__ import annotations

import torch
from torch import nn

from paretune.training.first_weights import draw


class Zeroed(nn.Module):
    """A parent that sets its children's weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.last = nn.Linear(8, 3)
        self.place = nn.Parameter(torch.ones(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.last.weight)


def test_what_a_parent_sets_in_its_children_stays():
    module = Zeroed()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(5.0)
    left = draw(module, 0)
    assert left == {}, "the parent's own method counts for what it holds"
    assert not module.last.weight.any()
    assert not module.attention.out_proj.bias.any(), "MultiheadAttention begins without"
    assert module.attention.in_proj_weight.std() > 0.1
    assert module.last.bias.abs().max() < 1


def test_draws_are_seeded_frozen_ones_stay_and_what_cannot_be_drawn_is_told():
    def net() -> nn.Sequential:
        made = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2), nn.ParameterList([torch.ones(2)]))
        made[2].weight.requires_grad_(False).fill_(3.0)
        return made

    one, other, third = net(), net(), net()
    before = torch.random.get_rng_state()
    assert list(draw(one, 7)) == ["3"]
    draw(other, 7)
    draw(third, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[0].weight, third[0].weight)
    assert one[2].weight.eq(3.0).all()
    assert one[3][0].eq(1.0).all()
