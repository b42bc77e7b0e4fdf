"""Unimportant weights are zero to the element, whatever the scope; a kill changes no bit; bad input is told."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import training_nets as nets
from onnx import numpy_helper
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.techniques.torch_sparsify_magnitude import TorchSparsifyMagnitude
from paretune.techniques.torch_to_onnx import TorchToOnnx
from paretune.testing import TechniqueConformance

QUICK = TorchSparsifyMagnitude(epochs=4, batch=32, learning_rate=0.02, interval=3, alpha=0.5)


class TestTorchSparsifyMagnitude(TechniqueConformance):
    technique = TorchSparsifyMagnitude


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


class Killed(BaseException):
    """The process is gone."""


def killed_and_resumed(fit: Fit, technique, live: nn.Module, after: int) -> Artifact:
    """Stopped when progress was told ``after`` times, then done again from its checkpoints."""
    told: list[str] = []

    def stop(share: float, text: str) -> None:
        told.append(text)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        technique.apply(fit.teacher, dataclasses.replace(fit, progress=stop))
    assert list(fit.checkpoints.rglob("checkpoint.json")), "nothing was kept before the kill"
    return technique.apply(fit.teacher, dataclasses.replace(fit, scratch=fit.scratch / "again"))


@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_a_kill_changes_no_bit(tmp_path, importance):
    live = trained()
    technique = dataclasses.replace(QUICK, epochs=6, importance=importance, end=0.8)
    straight = sparse(tmp_path / "straight", live, technique)
    fit = fitted(tmp_path / "killed", live, checkpoints=tmp_path / "checkpoints")
    resumed = killed_and_resumed(fit, technique, live, after=8)
    assert resumed.digest == straight.digest
    assert resumed.notes == straight.notes


def packed(module: nn.Module) -> int:
    return sum(len(zlib.compress(tensor.numpy().tobytes())) for tensor in module.state_dict().values())


def test_what_was_done_is_told(tmp_path):
    entries: list[dict] = []
    made = sparse(tmp_path, trained(), dataclasses.replace(QUICK, sparsity=0.5), record=entries.append)
    how, share, layers, macs, size, speed = made.notes
    assert how.startswith("torch_sparsify_magnitude: magnitude, global, gradual; 4 epochs: loss ")
    assert share == "sparsity 50.00%: 216 of 432 weights are zero; 147 other parameters are dense"
    found = zeros(made)
    assert layers == "sparsity per layer: " + ", ".join(
        f"{name.removesuffix('.weight')} {zero / count:.0%}" for name, (zero, count) in found.items() if count > 100
    )
    assert macs == "multiply-accumulates of one example: 432, of which 216 are with weights not zero (2.0× fewer)"
    before, after = (packed(one) for one in (trained(), form.restore(made)))
    assert after < 0.85 * before
    told = f"compressed by DEFLATE the parameters take {after:,} bytes, {after / before:.0%} of the {before:,} of the"
    assert size.startswith(told)
    assert "no speed is gained" in speed
    assert [entry["kind"] for entry in entries] == ["curve", "table"]
    assert [row[2] for row in entries[1]["rows"]] == [found[row[0]][0] for row in entries[1]["rows"]]


def test_nothing_but_weights_is_changed_and_other_steps_are_kept(tmp_path):
    live = trained()
    fit = fitted(tmp_path, live, keep=("layers.3",))
    made = dataclasses.replace(QUICK, scope="per_layer", epochs=1).apply(fit.teacher, fit)
    assert zeros(made)["layers.3.weight"] == (0, 144)
    assert zeros(made)["layers.0.weight"] == (round(0.8 * 288), 288)
    assert sorted(made.files) == sorted(fit.teacher.files)
    assert (made.inputs, made.outputs, made.parameters) == (fit.teacher.inputs, fit.teacher.outputs, 579)


class Tied(nn.Module):
    """Weights that are shared, used twice, or frozen; no batch normalisation; two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.fixed(self.one(torch.relu(self.other(torch.relu(self.one(x))))))
        return self.head(x), x


def test_shared_weights_are_masked_once_and_frozen_ones_left(tmp_path):
    live = nets.net(0, Tied)
    made = sparse(tmp_path, live, dataclasses.replace(QUICK, scope="per_layer", sparsity=0.75))
    after = form.restore(made)
    assert after.one.weight is after.other.weight
    assert zeros(made)["one.weight"] == (27, 36)
    assert torch.equal(after.fixed.weight, live.fixed.weight)
    assert "multiply-accumulates of one example: 162, of which 67 are" in made.notes[3]


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"importance": "movement", "epochs": 0}, "movement shows only in training"),
        ({"importance": "movement", "schedule": "one_shot"}, "movement shows only in training"),
        ({"begin": 0.6}, "begin=0.6 lies behind end=0.5"),
        ({"average": 0.6}, "average=0.6 begins before the last zeros came — set it to 0.5 at most"),
        ({"patience": 1, "validation": 0.1}, "patience may keep an epoch before the last zeros came"),
        ({"keep": ("layers.*",)}, "no weight that may be made sparse: all 2 are spared"),
    ],
)
def test_what_contradicts_itself_is_told_in_a_line(tmp_path, knobs, told):
    with pytest.raises(BuildError, match=told) as caught:
        sparse(tmp_path, nets.net(), dataclasses.replace(QUICK, **knobs))
    assert "\n" not in str(caught.value)


def test_a_pattern_of_keep_that_names_nothing_is_refused(tmp_path):
    with pytest.raises(BuildError, match=r"nothing in the model is named 'layers.9'; near it are layers\.") as told:
        sparse(tmp_path, nets.net(0, Wide), dataclasses.replace(QUICK, keep=("layers.9",)))
    assert told.value.where == "torch_sparsify_magnitude.keep"


def test_a_layer_of_which_nothing_is_left_is_told(tmp_path):
    live = trained()
    with torch.no_grad():
        live.layers[3].weight *= 1e-6
    made = sparse(tmp_path, live, dataclasses.replace(QUICK, epochs=0, sparsity=0.5))
    assert any(note.startswith("nothing is left of layers.3.weight: ") for note in made.notes)


def test_zeros_are_still_there_in_the_graph(tmp_path):
    made = sparse(tmp_path, trained(), dataclasses.replace(QUICK, epochs=1))
    graph = TorchToOnnx().apply(made, Fit(None, None, made, 0, tmp_path / "onnx"))
    model = onnx.load(graph.path(".onnx"))
    matrices = [one for one in map(numpy_helper.to_array, model.graph.initializer) if one.ndim == 2]
    assert sum(int((one == 0).sum()) for one in matrices) == round(0.8 * 432)
