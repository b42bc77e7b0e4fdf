"""Students made of a model are smaller, run, and open again from plain edits."""

from __future__ import annotations

import dataclasses
import re

import feature_nets as nets
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.plan import Teaching
from paretune.training.student import Size, made, student_of


def fitted(artifact: Artifact, root, text: bool = False, **options) -> Fit:
    items = nets.sentences() if text else nets.images()
    return Fit(Split.whole(items, None, "train"), None, artifact, 0, root / "scratch", **options)


def smaller(module: nn.Module, size: Size, root, weights: str = "kept", text: bool = False):
    artifact = nets.sealed(module, root / "model", text)
    return artifact, *made(artifact, size, weights, fitted(artifact, root, text), "test", "student")


def test_blocks_are_left_out_evenly(tmp_path):
    live = nets.made(nets.Stages, blocks=4)
    before, after, note = smaller(live, Size(1.0, 0.5), tmp_path)
    net = form.restore(after)
    assert (len(net.first), len(net.second)) == (2, 2)
    assert torch.equal(net.first[0].conv.weight, live.first[0 if "first.0" not in note else 1].conv.weight)
    assert after.parameters == sum(parameter.numel() for parameter in net.parameters()) < before.parameters
    assert "4 blocks left out: first." in note
    assert f"parameters {before.parameters} → {after.parameters}" in note
    opened = dataclasses.replace(Artifact.open(after.root), origin=live)
    x = torch.ones(1, *nets.SHAPE)
    assert torch.equal(form.restore(opened)(x), net(x))


def test_channels_are_taken_away(tmp_path):
    live = nets.made(nets.Stages, width=8)
    _, after, note = smaller(live, Size(0.5, 1.0), tmp_path)
    net = form.restore(after)
    assert net.first[0].conv.weight.shape == (4, 4, 3, 3)
    assert (net.second[1].norm.num_features, net.linear.in_features, net.linear.out_features) == (8, 8, nets.CLASSES)
    assert after.macs < 0.4 * before_macs(live)
    assert re.search("2 groups of layers narrowed: stem 8 → 4, down 16 → 8; ", note)


def before_macs(module: nn.Module) -> int:
    from paretune.forms import torch_count

    return torch_count.macs(module, None, (np.zeros((1, *nets.SHAPE), np.float32),))


def test_width_and_depth_of_a_transformer(tmp_path):
    live = nets.made(nets.Encoder, width=16, heads=2, layers=4)
    before, after, _ = smaller(live, Size(0.5, 0.5), tmp_path, text=True)
    net = form.restore(after)
    assert len(net.layers) == 2
    assert after.parameters < before.parameters
    words = torch.from_numpy(np.stack([words for words, _ in nets.sentences(5)]))
    assert net(words).shape == (5, nets.CLASSES)


def test_weights_drawn_anew_are_seeded(tmp_path):
    live = nets.made(nets.Stages, seed=5)
    found = [form.restore(smaller(live, Size(1.0, 0.5), tmp_path / str(run), "fresh")[1]) for run in range(2)]
    kept = form.restore(smaller(live, Size(1.0, 0.5), tmp_path / "kept")[1])
    assert torch.equal(found[0].first[0].conv.weight, found[1].first[0].conv.weight)
    assert not torch.equal(found[0].first[0].conv.weight, kept.first[0].conv.weight)
    assert found[0].second[0].norm.running_mean.abs().sum() == 0


def test_parameters_that_cannot_be_drawn_anew_are_told(tmp_path):
    class Scaled(nets.Stages):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * super().forward(x)

    note = smaller(nets.made(Scaled), Size(1.0, 0.5), tmp_path, "fresh")[2]
    assert "kept all the same, for want of reset_parameters: the model;" in note


def test_frozen_parameters_are_not_drawn_anew(tmp_path):
    live = nets.made(nets.Stages)
    live.stem.requires_grad_(False)
    net = form.restore(smaller(live, Size(1.0, 0.5), tmp_path, "fresh")[1])
    assert torch.equal(net.stem.weight, live.stem.weight)
    assert not torch.equal(net.down.weight, live.down.weight)


def test_what_stays_wide_is_told(tmp_path):
    class Hard(nets.Stages):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.down.weight.shape[0] == 8
            return super().forward(x)

    _, _, note = smaller(nets.made(Hard), Size(0.5, 0.5), tmp_path / "some")
    assert "1 group of layers narrowed: stem 4 → 2; not narrowed: down: the model fails when they are narrower" in note
    with pytest.raises(BuildError, match=r"of the model: stem has 4 channels, of which none goes at 0\.95"):
        smaller(nets.made(nets.Stages), Size(0.95, 1.0), tmp_path / "none")


def test_groups_that_the_model_does_not_run_without_stay(tmp_path):
    class Padded(nn.Module):
        """A shortcut that pads channels by a number of its own, and a view with a size written in."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 4, 3, padding=1)
            self.inner, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
            self.linear = nn.Linear(8 * 64, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = self.outer(self.inner(x).relu()) + functional.pad(x, (0, 0, 0, 0, 2, 2))
            return self.linear(x.view(-1, 512))

    _, after, note = smaller(nets.made(Padded), Size(0.5, 1.0), tmp_path)
    net = form.restore(after)
    assert (net.inner.out_channels, net.outer.out_channels, net.stem.out_channels) == (3, 8, 4)
    assert "1 group of layers narrowed: inner 6 → 3" in note


def test_shared_weights_stay_shared(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.inner = nn.Linear(8, 8), nn.Linear(8, 12)
            self.again, self.leave = nn.Linear(12, 8), nn.Linear(8, 8)
            self.leave.weight = self.enter.weight
            self.linear = nn.Linear(64 * 2, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.again(self.inner(self.enter(x).relu()).relu())
            return self.linear(self.leave(x).flatten(1))

    _, after, _ = smaller(nets.made(Tied), Size(0.5, 1.0), tmp_path)
    net = form.restore(after)
    assert net.leave.weight is net.enter.weight
    assert net.inner.out_features == 6
    assert net(torch.ones(2, *nets.SHAPE)).shape == (2, nets.CLASSES)


def test_what_has_nothing_to_leave_out_is_told(tmp_path):
    with pytest.raises(BuildError, match=r"no smaller student with width 1, depth 0\.5 can be made of the model"):
        smaller(nets.made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3))), Size(1.0, 0.5), tmp_path / "a")
    with pytest.raises(BuildError, match="can be made of the model: it has no layers between others"):
        smaller(nets.made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3))), Size(0.5, 1.0), tmp_path / "b")
    frozen = nets.made(nets.Stages).requires_grad_(False)
    with pytest.raises(BuildError, match="parameters of the model are frozen"):
        smaller(frozen, Size(0.5, 0.5), tmp_path / "c")


def test_the_knob_chooses_who_learns(tmp_path):
    artifact = nets.sealed(nets.made(nets.Stages), tmp_path / "model")
    given = nets.sealed(nets.made(nets.Stages, width=2), tmp_path / "given")
    fit = fitted(artifact, tmp_path, student=given)
    assert student_of(Teaching(), artifact, fit, "test") == (artifact, ())
    student, notes = student_of(Teaching(student="given"), artifact, fit, "test")
    assert (student.digest, student.base, notes) == (given.digest, "student", ())
    student, notes = student_of(Teaching(student="made", width=1.0, depth=0.5), artifact, fit, "test")
    assert len(form.restore(student).first) == 1
    assert notes[0].startswith("student made with width 1, depth 0.5, weights kept; 2 blocks left out: ")
