"""n of every m inputs live after training, in every layer that can be cut so; what cannot is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.techniques.torch_sparsify_n_m import TorchSparsifyNM
from paretune.testing import TechniqueConformance

QUICK = TorchSparsifyNM(epochs=3, batch=32, learning_rate=0.02, interval=2, alpha=0.5)


class TestTorchSparsifyNM(TechniqueConformance):
    technique = TorchSparsifyNM


class Mixed(nn.Module):
    """Inputs along the second axis, along the first, in groups; of three channels; and recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 1)
        self.conv = nn.Conv1d(8, 16, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(16, 8, 3, groups=2, padding=1)
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.head = nn.Linear(4, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.conv(torch.relu(self.stem(x)))))
        return self.head(self.lstm(x.movedim(1, -1))[0][:, -1])


def made(root, technique=QUICK, **options) -> Artifact:
    live = nets.net(0, Mixed)
    root.mkdir(exist_ok=True)
    (root / "m").mkdir()
    form.save(live, root / "m")
    inputs = (TensorSpec("x", "float32", ("batch", 3, 5)),)
    answers = (TensorSpec("output", "float32", ("batch", nets.CLASSES)),)
    artifact = Artifact.seal("torch", root / "m", inputs, answers, origin=live)
    rng = np.random.default_rng(0)
    items = [(x, np.int64(x.sum() > 0)) for x in rng.standard_normal((64, 3, 5)).astype(np.float32)]
    return technique.apply(artifact, Fit(nets.split(items), None, artifact, 0, root / "s", **options))


def alive(weight: torch.Tensor, axis: int, m: int) -> set[int]:
    """How many of ``m`` neighbours along an axis are not zero, over all groups."""
    moved = weight.detach().numpy().swapaxes(axis, -1)
    groups = np.stack([moved[..., start : start + m] for start in range(0, moved.shape[-1], m)])
    return set((groups != 0).sum(-1).ravel().tolist())


@pytest.mark.parametrize("schedule", ["gradual", "one_shot"])
def test_two_of_every_four_inputs_live_after_training(tmp_path, schedule):
    artifact = made(tmp_path, dataclasses.replace(QUICK, schedule=schedule))
    after = form.restore(artifact)
    assert alive(after.conv.weight, 1, 4) == {2}
    assert alive(after.up.weight, 0, 4) == {2}
    assert alive(after.lstm.weight_ih_l0, 1, 4) == {2}
    assert alive(after.lstm.weight_hh_l0, 1, 4) == {2}
    assert alive(after.head.weight, 1, 4) == {2}
    assert bool((after.stem.weight != 0).all())
    assert artifact.notes[0].startswith(f"torch_sparsify_n_m: 2:4 along the input axis, {schedule}; 3 epochs: ")
    assert artifact.notes[1] == "without groups of 4 inputs, and dense: stem.weight"
    assert artifact.notes[2].startswith("sparsity 50.00%: ")


def test_torch_packs_two_of_four_for_tensor_cores(tmp_path):
    """What torch's own converter to the layout of sparse tensor cores keeps is all there is."""
    live = nets.net(0, lambda: nn.Linear(64, 32))
    artifact = nets.sealed(live, tmp_path / "m", outputs=32, features=64)
    fit = Fit(None, None, artifact, 0, tmp_path / "s")
    weight = form.restore(dataclasses.replace(QUICK, epochs=0).apply(artifact, fit)).weight.detach().half()

    def packed(dense: torch.Tensor) -> torch.Tensor:
        return sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(dense))

    assert torch.equal(packed(weight), weight)
    assert not torch.equal(packed(live.weight.detach().half()), live.weight.detach().half())


def test_other_patterns_without_training(tmp_path):
    after = form.restore(made(tmp_path, dataclasses.replace(QUICK, epochs=0, n=1, m=8)))
    assert alive(after.lstm.weight_ih_l0, 1, 8) == {1}
    assert alive(after.up.weight, 0, 8) == {1}
    assert bool((after.conv.weight != 0).all())  # four inputs in each of its groups


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"n": 4}, "4 of 4 leaves nothing to take"),
        ({"m": 64}, r"no weight has inputs in groups of 64: stem.weight, conv.weight, up.weight cannot be cut so"),
    ],
)
def test_what_cannot_be_cut_is_told(tmp_path, knobs, told):
    with pytest.raises(BuildError, match=told):
        made(tmp_path, dataclasses.replace(QUICK, **knobs))
