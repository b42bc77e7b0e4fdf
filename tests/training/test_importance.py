"""Importance of channels, against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.forms.torch_width import Group, Member
from paretune.training.importance import by_gradients, by_weights
from paretune.training.loss import supervised


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(nets.FEATURES, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.down = nn.Linear(3, nets.CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x)))


EVERY = (0, 1, 2)
GROUP = Group(
    "up",
    3,
    (Member("up", "out", EVERY, EVERY), Member("norm", "both", EVERY, EVERY), Member("down", "in", EVERY, EVERY)),
    ((0,), (1,), (2,)),
)


def two() -> Two:
    module = Two().eval()
    with torch.no_grad():
        module.up.weight.zero_()
        module.up.weight[:, 0] = torch.tensor([3.0, 1.0, 2.0])
        module.up.weight[0, 1] = 4.0
        module.norm.weight.copy_(torch.tensor([-0.5, 2.0, 1.0]))
        module.down.weight.zero_()
        module.down.weight[0] = torch.tensor([1.0, 2.0, 2.0])
    return module


def test_norms_count_all_that_goes_with_a_channel():
    sums = torch.tensor([3 + 4 + 0.5 + 1, 1 + 2 + 2, 2 + 1 + 2.0]).double()
    squares = torch.tensor([9 + 16 + 0.25 + 1, 1 + 4 + 4, 4 + 1 + 4.0]).double()
    found = by_weights(two(), [GROUP], "l1")["up"]
    assert found.tolist() == pytest.approx((sums / sums.mean()).tolist())
    found = by_weights(two(), [GROUP], "l2")["up"]
    assert found.tolist() == pytest.approx((squares.sqrt() / squares.sqrt().mean()).tolist())
    total = 26.25 + 9 + 9
    # of equal ones the first counts as the smaller
    assert by_weights(two(), [GROUP], "lamp")["up"].tolist() == pytest.approx([1.0, 9 / total, 9 / (9 + 26.25)])


def test_batch_norm_scales_and_distances_between_filters():
    assert by_weights(two(), [GROUP], "bn_scale")["up"].tolist() == pytest.approx([0.5, 2.0, 1.0])
    apart = torch.tensor([20**0.5 + 17**0.5, 20**0.5 + 1, 17**0.5 + 1]).double()
    found = by_weights(two(), [GROUP], "geometric_median")["up"]
    assert found.tolist() == pytest.approx((apart / apart.mean()).tolist(), rel=1e-6)
    bare = Group("up", 3, GROUP.members[::2], GROUP.units)
    assert by_weights(two(), [bare], "bn_scale") == {}


def test_taylor_is_the_square_of_weight_times_gradient(tmp_path):
    module = two()
    artifact = nets.sealed(module, tmp_path)
    found = by_gradients(module, artifact, nets.split(nets.rows(32)), [GROUP], supervised(None), 32, 32, 0)["up"]
    x = torch.stack([torch.from_numpy(x) for x, _ in nets.rows(32)])
    y = torch.tensor([int(y) for _, y in nets.rows(32)])
    nn.functional.cross_entropy(module(x), y).backward()
    product = (module.up.weight * module.up.weight.grad).sum(1) + module.norm.weight * module.norm.weight.grad
    product = product + (module.down.weight * module.down.weight.grad).sum(0)
    assert found.tolist() == pytest.approx(product.square().tolist(), rel=1e-4)


def test_taylor_leaves_the_module_as_it_was_frozen_or_not(tmp_path):
    module = two()
    module.up.requires_grad_(False)
    artifact = nets.sealed(module, tmp_path)
    found = by_gradients(module, artifact, nets.split(nets.rows(32)), [GROUP], supervised(None), 16, 16, 0)["up"]
    assert float(found.sum()) > 0
    assert not module.up.weight.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
