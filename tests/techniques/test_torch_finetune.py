"""A module, or the workload's student, learns what the labels say, and only that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.techniques.torch_finetune import TorchFinetune
from paretune.testing import TechniqueConformance

QUICK = TorchFinetune(epochs=15, batch=32, learning_rate=0.02)


class TestTorchFinetune(TechniqueConformance):
    technique = TorchFinetune


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(nets.FEATURES, 24), nn.ReLU(), nn.Linear(24, nets.CLASSES))


def fitted(root: Path, items=None, **options) -> Fit:
    original = nets.sealed(nets.net(0, small), root / "original")
    items = nets.rows(300) if items is None else items
    return Fit(Split.whole(items, None, "train"), None, original, 0, root / "scratch", **options)


def right(artifact: Artifact) -> float:
    rows = nets.rows(400, seed=99)
    answers = form.call(form.restore(artifact), artifact, (np.stack([x for x, _ in rows]),))[0]
    return float(np.mean(answers.argmax(1) == np.array([y for _, y in rows])))


def test_a_module_learns_its_labels(tmp_path):
    fit = fitted(tmp_path)
    made = QUICK.apply(fit.teacher, fit)
    assert right(fit.teacher) < 0.6
    assert right(made) > 0.85
    assert made.base == "model"
    assert made.notes[-1].startswith("torch_finetune: 15 epochs: loss ")


def test_a_fresh_student_learns_in_the_models_place(tmp_path):
    live = nn.Sequential(nn.Linear(nets.FEATURES, 8), nn.Tanh(), nn.Linear(8, nets.CLASSES))
    student = dataclasses.replace(nets.sealed(live, tmp_path / "student"), base="student")
    fit = fitted(tmp_path, student=student)
    made = dataclasses.replace(QUICK, student="given", epochs=30).apply(fit.teacher, fit)
    assert right(made) > 0.85
    assert (made.base, made.parameters) == ("student", sum(one.numel() for one in live.parameters()))
    changed = nets.sealed(nets.net(1, small), tmp_path / "changed")
    with pytest.raises(BuildError, match="changed before"):
        dataclasses.replace(QUICK, student="given").apply(changed, fit)


def test_a_loss_of_ones_own_is_minimised(tmp_path):
    def wrong(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, (labels + 1) % nets.CLASSES)

    fit = dataclasses.replace(fitted(tmp_path), loss=wrong)
    assert right(QUICK.apply(fit.teacher, fit)) < 0.1


@pytest.mark.parametrize(
    ("knobs", "items", "told"),
    [
        ({}, [(x, np.int64(1)) for x, _ in nets.rows(20)], "all of its 20 examples are of class 1"),
        ({}, [(x, None) for x, _ in nets.rows(20)], "no labels"),
        ({"student": "given"}, None, "the workload has no student"),
        ({"augment": "flip"}, None, "no input is an image"),
    ],
)
def test_what_cannot_be_learnt_is_told_in_a_line(tmp_path, knobs, items, told):
    fit = fitted(tmp_path, items)
    with pytest.raises(BuildError, match=told) as caught:
        dataclasses.replace(QUICK, **knobs).apply(fit.teacher, fit)
    assert "\n" not in str(caught.value)
