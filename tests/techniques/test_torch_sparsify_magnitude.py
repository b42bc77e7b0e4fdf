"""Unimportant weights are zero to the element, whatever the scope; a kill changes no bit; bad input is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.forms import torch as form
from paretune.techniques.torch_sparsify_magnitude import TorchSparsifyMagnitude
from paretune.testing import TechniqueConformance

QUICK = TorchSparsifyMagnitude(epochs=4, batch=32, learning_rate=0.02, interval=3, alpha=0.5)


class TestTorchSparsifyMagnitude(TechniqueConformance):
    technique = TorchSparsifyMagnitude


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(root: Path, live: nn.Module, **options) -> Fit:
    original = nets.sealed(live, root / "original")
    return Fit(nets.split(nets.rows(160)), None, original, 0, root / "scratch", **options)


def sparse(root: Path, live: nn.Module, technique: TorchSparsifyMagnitude = QUICK, **options) -> Artifact:
    fit = fitted(root, live, **options)
    return technique.apply(fit.teacher, fit)


def zeros(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """(zeros, elements) of every parameter."""
    named = form.restore(artifact).named_parameters()
    return {name: (int((tensor == 0).sum()), tensor.numel()) for name, tensor in named}


class Wide(nn.Module):
    """More weights than the task needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(nets.FEATURES, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def trained(seed: int = 0) -> nn.Module:
    """Solves :func:`training_nets.rows` with weights of many sizes."""
    net = nets.net(seed, Wide)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x = torch.from_numpy(np.stack([x for x, _ in nets.rows(300)]))
    y = torch.tensor([int(y) for _, y in nets.rows(300)])
    net.train()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def accuracy(artifact: Artifact) -> float:
    x = np.stack([x for x, _ in nets.rows(400, seed=99)])
    return float(np.mean(form.call(form.restore(artifact), artifact, (x,))[0].argmax(1) == x[:, :3].argmax(1)))


@pytest.mark.parametrize("scope", ["per_layer", "global", "erdos_renyi"])
@pytest.mark.parametrize(("schedule", "importance"), [("gradual", "magnitude"), ("one_shot", "movement")])
def test_the_asked_share_is_zero_to_the_element(tmp_path, scope, schedule, importance):
    asked = dataclasses.replace(QUICK, scope=scope, schedule=schedule, importance=importance, sparsity=0.7, begin=0.3)
    found = zeros(sparse(tmp_path, nets.net(), asked))
    weights = {name: found.pop(name) for name in ("layers.0.weight", "layers.4.weight")}
    assert sum(zero for zero, _ in weights.values()) == round(0.7 * (96 + 48))
    assert all(zero == 0 for name, (zero, _) in found.items() if name != "layers.1.bias")
    if scope == "per_layer":
        assert weights == {"layers.0.weight": (round(0.7 * 96), 96), "layers.4.weight": (round(0.7 * 48), 48)}


def test_healing_brings_back_what_the_zeros_took(tmp_path):
    live = trained()
    before = nets.sealed(live, tmp_path / "before")
    alone = sparse(tmp_path / "alone", live, dataclasses.replace(QUICK, sparsity=0.9, epochs=0))
    healed = sparse(tmp_path / "healed", live, dataclasses.replace(QUICK, sparsity=0.9, epochs=20))
    assert zeros(alone)["layers.0.weight"][0] + zeros(alone)["layers.3.weight"][0] == round(0.9 * 432)
    assert accuracy(before) > 0.9
    assert accuracy(alone) < accuracy(healed) - 0.05
    assert accuracy(healed) > 0.75


def test_without_epochs_what_is_left_is_untouched_and_the_least_are_gone(tmp_path):
    live = trained()
    fit = dataclasses.replace(fitted(tmp_path, live), train=None)
    after = form.restore(dataclasses.replace(QUICK, epochs=0, scope="per_layer", sparsity=0.5).apply(fit.teacher, fit))
    before = live.layers[0].weight.detach()
    edge = before.abs().flatten().sort().values[143]
    assert torch.equal(after.layers[0].weight, before.masked_fill(before.abs() <= edge, 0.0))
    assert torch.equal(after.layers[1].running_mean, live.layers[1].running_mean)
