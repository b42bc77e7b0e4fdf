"""Importance is what the loss loses by a unit, to first order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.taylor import first_order


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(nets.FEATURES, 8), nn.Linear(8, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


def scored(module: nn.Module, root, items: list, size: int = 1, loss=None) -> torch.Tensor:
    artifact = nets.sealed(module, root / "net")
    sample = nets.split(items)
    fit = Fit(sample, loss, artifact, 0, root / "scratch")
    return first_order(module, artifact, sample, fit, {"down": size}, "here")["down"]


def test_it_is_the_mean_of_absolute_products_of_input_and_gradient(tmp_path):
    module, items = nets.net(0, Net), nets.rows(50)
    found = scored(module, tmp_path, items)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.down._forward_pre_hooks
    wanted = torch.zeros(8, dtype=torch.float64)
    for x, label in items:
        hidden = torch.tanh(module.up(torch.from_numpy(x))).detach().requires_grad_()
        nn.functional.cross_entropy(module.down(hidden)[None], torch.tensor([label])).backward()
        wanted += (hidden * hidden.grad).double().abs().detach() / len(items)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", [2, 4])
def test_the_columns_of_a_unit_are_taken_together(tmp_path, size):
    module, items = nets.net(0, Net), nets.rows(1)
    alone, together = scored(module, tmp_path / "a", items), scored(module, tmp_path / "b", items, size)
    assert together.shape == (8 // size,)
    assert bool((together <= alone.reshape(-1, size).sum(1) + 1e-9).all())  # signs cancel within a unit


def test_a_unit_that_nothing_hangs_on_has_none_also_where_all_is_frozen(tmp_path):
    module = nets.net(0, Net).requires_grad_(False)
    module.down.weight[:, 3] = 0
    found = scored(module, tmp_path, nets.rows(40))
    assert found[3] == 0
    assert bool((found[[0, 1, 2, 4, 5, 6, 7]] > 0).all())


def test_a_loss_of_ones_own_counts(tmp_path):
    module, items = nets.net(0, Net), [(x, np.float32(x[0])) for x, _ in nets.rows(40)]
    with torch.no_grad():
        module.down.weight[0, 1:] = 0  # the first answer hangs on the first unit alone
    found = scored(module, tmp_path, items, loss=lambda outputs, labels: ((outputs[:, 0] - labels) ** 2).mean())
    assert found[0] > 0
    assert not found[1:].any()


def test_a_gradient_that_is_not_finite_is_told(tmp_path):
    def broken(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs * torch.inf).mean()

    with pytest.raises(BuildError, match="the gradient at down is not finite — use importance=weight"):
        scored(nets.net(0, Net), tmp_path, nets.rows(20), loss=broken)


class Turned(Net):
    """Two positions of each example, which lie along the first axis or the second."""

    axis = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.up(x))
        return self.down(torch.stack([hidden, -0.5 * hidden], self.axis)).square().mean(self.axis)


class Straight(Turned):
    axis = 1


def test_positions_are_summed_wherever_the_examples_lie(tmp_path):
    found = [
        scored(nets.net(0, kind), tmp_path / kind.__name__, nets.rows(7), 2) for kind in (Turned, Straight)
    ]  # fmt: skip
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-9)
    assert bool((found[0] > 0).all())
