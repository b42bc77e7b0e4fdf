"""Batch normalisation gathers the statistics of its inputs anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.data import Split
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.recalibrate import measuring, recalibrate


class Normed(nn.Module):
    """The first batch normalisation sees the data themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(nets.FEATURES, momentum=0.3)
        self.middle = nn.Linear(nets.FEATURES, 5)
        self.drop = nn.Dropout(0.5)
        self.last = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.drop(self.middle(self.first(x)))))


def far(count: int, seed: int = 0) -> list:
    """Rows that are far from mean 0 and variance 1."""
    return [(3 * x + np.arange(nets.FEATURES, dtype=np.float32), y) for x, y in nets.rows(count, seed)]


def test_statistics_are_the_datas_own(tmp_path):
    module = nets.net(0, Normed)
    artifact = nets.sealed(module, tmp_path)
    before = {name: value.clone() for name, value in module.named_parameters()}
    rows = np.stack([x for x, _ in far(96)])
    assert recalibrate(module, artifact, nets.split(far(96)), 10_000, 32, 0) == 96
    np.testing.assert_allclose(module.first.running_mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    # the mean of the variances of three batches is no more than near the variance of all
    np.testing.assert_allclose(module.first.running_var, rows.var(0), rtol=0.1)
    hidden = module.middle(module.first(torch.from_numpy(rows))).detach()
    np.testing.assert_allclose(module.last.running_mean, hidden.mean(0), rtol=1e-2, atol=0.05)  # nothing was dropped
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert (module.first.momentum, module.last.momentum) == (0.3, 0.1)
    assert not any(part.training for part in module.modules())
    assert form.fingerprint(module) == form.fingerprint(nets.net(0, Normed))


def test_same_seed_same_bits_and_another_seed_other_examples(tmp_path):
    found = []
    for seed in (1, 1, 2):
        module = nets.net(0, Normed)
        artifact = nets.sealed(module, tmp_path / str(len(found)))
        assert recalibrate(module, artifact, nets.split(far(200)), 64, 32, seed) == 64
        found.append(module.last.running_var.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_fewer_examples_than_a_batch_are_all_looked_at(tmp_path):
    module = nets.net(0, Normed)
    assert recalibrate(module, nets.sealed(module, tmp_path), nets.split(far(10)), 4, 32, 0) == 10
    np.testing.assert_allclose(module.first.running_mean, np.stack([x for x, _ in far(10)]).mean(0), rtol=1e-4)


def test_what_keeps_no_statistics_is_left_alone(tmp_path):
    module = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert recalibrate(module, nets.sealed(module, tmp_path), nets.split(far(50)), 50, 10, 0) == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_frozen_and_shared_normalisations_are_measured_too(tmp_path):
    norm = nn.BatchNorm1d(nets.FEATURES).requires_grad_(False)
    module = nn.Sequential(norm, norm, nn.Linear(nets.FEATURES, nets.CLASSES)).eval()
    recalibrate(module, nets.sealed(module, tmp_path), nets.split(far(64)), 64, 32, 0)
    assert len(list(measuring(module))) == 1
    rows = np.stack([x for x, _ in far(64)])
    # half of its batches are the data, half what it made of them itself
    np.testing.assert_allclose(norm.running_mean, rows.mean(0) / 2, atol=0.1)
    assert not norm.weight.requires_grad


def test_failures_are_told_in_a_line(tmp_path):
    module = nets.net(0, Normed)
    artifact = nets.sealed(module, tmp_path)
    with pytest.raises(BuildError, match="needs training data"):
        recalibrate(module, artifact, Split(nets.split(far(1)).examples, ()), 50, 10, 0)
    with pytest.raises(BuildError, match="fails where batch normalisation measures: ValueError: Expected more than 1"):
        recalibrate(module, artifact, nets.split(far(1)), 50, 10, 0)
    assert (module.training, module.first.training, module.first.momentum) == (False, False, 0.3)
    endless = [(np.full(nets.FEATURES, 3e38, np.float32), y) for _, y in far(20)]
    with pytest.raises(BuildError, match="inputs of first are not finite"):
        recalibrate(module, artifact, nets.split(endless), 50, 10, 0)


def test_a_model_without_finite_inputs_below_is_named_by_its_path(tmp_path):
    module = nets.net(0, Normed)
    with torch.no_grad():
        module.middle.weight[0] = float("inf")
    with pytest.raises(BuildError, match="inputs of last are not finite"):
        recalibrate(module, nets.sealed(module, tmp_path), nets.split(far(20)), 50, 10, 0)


def test_a_branch_that_no_example_takes_keeps_its_statistics(tmp_path):
    class Forked(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.BatchNorm1d(5)
            self.unused.running_mean.fill_(7.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer = super().forward(x)
            return self.unused(answer) if len(x) == 0 else answer

    module = nets.net(0, Forked)
    recalibrate(module, nets.sealed(module, tmp_path), nets.split(far(64)), 64, 32, 0)
    assert torch.equal(module.unused.running_mean, torch.full((5,), 7.0))
    assert float(module.first.running_mean[1]) != 0
