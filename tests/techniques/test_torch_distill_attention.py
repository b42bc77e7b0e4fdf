"""Attention transfer and hints: students learn, are held to what was asked, and leave no trace of how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import feature_nets as nets
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_export
from paretune.techniques.torch_distill_attention import TorchDistillAttention
from paretune.techniques.torch_distill_hints import TorchDistillHints
from paretune.testing import TechniqueConformance

QUICK = TorchDistillAttention(epochs=3, batch=16, learning_rate=0.01)
HINTS = TorchDistillHints(epochs=3, batch=16, learning_rate=0.01)


class TestTorchDistillAttention(TechniqueConformance):
    technique = TorchDistillAttention


class TestTorchDistillHints(TechniqueConformance):
    technique = TorchDistillHints


def fitted(root: Path, teacher: nn.Module, student: nn.Module | None = None, text: bool = False, **options) -> Fit:
    original = nets.sealed(teacher, root / "original", text)
    given = None if student is None else dataclasses.replace(nets.sealed(student, root / "student", text))
    items = nets.sentences() if text else nets.images()
    return Fit(Split.whole(items, None, "train"), None, original, 0, root / "scratch", student=given, **options)


def taught(technique, fit: Fit) -> Artifact:
    return dataclasses.replace(technique, student="given").apply(fit.teacher, fit)


def distance(student: nn.Module, teacher: nn.Module, text: bool = False) -> float:
    """Of the last attention's maps, or the first stage's spatial maps, over the examples."""
    from paretune.training.attention import map_loss
    from paretune.training.features import Taps, spatial_loss

    items = nets.sentences() if text else nets.images()
    x = torch.from_numpy(np.stack([x for x, _ in items]))
    taps = [Taps(net, ["layers.1" if text else "first"], "student", "test") for net in (student, teacher)]
    with torch.no_grad():
        for net, tap in zip((student, teacher), taps, strict=True):
            with tap.listening():
                net(x)
        if text:
            return float(map_loss(*(tap.attention("layers.1") for tap in taps)))
        return float(spatial_loss(*(tap.output("first") for tap in taps)))


@pytest.mark.parametrize("text", [False, True])
def test_the_student_looks_where_the_teacher_looks(tmp_path, text):
    if text:
        teacher = nets.made(nets.Encoder, 8, 4, 2, "module", seed=1)
        student = nets.made(nets.Encoder, 8, 2, 2, "fused", seed=2)
        with torch.no_grad():
            for layer in teacher.layers:
                layer.attention.in_proj_weight *= 4  # looks at few words, unlike a fresh student
    else:
        teacher, student = nets.made(nets.Stages, 8, 3, seed=1), nets.made(nets.Stages, 4, 2, seed=2)
    fit = fitted(tmp_path, teacher, student, text)
    knobs = {"epochs": 16 if text else 8, "weight": 10.0 if text else 1.0}
    found = taught(dataclasses.replace(QUICK, **knobs), fit)
    alone = taught(
        dataclasses.replace(QUICK, **knobs | {"weight": 0.0}), dataclasses.replace(fit, scratch=tmp_path / "alone")
    )
    reached, without = (distance(form.restore(one), teacher, text) for one in (found, alone))
    assert reached < 0.7 * without
    what = "attention maps and value relations of layers.1=layers.1.attention" if text else ""
    assert found.notes[-1].endswith(f"held to {what or 'spatial maps of first=first, spatial maps of second=second'}")
    assert found.notes[-1].startswith(f"torch_distill_attention: {knobs['epochs']} epochs: loss ")


def test_hints_are_projected_and_the_projections_stay_outside(tmp_path):
    teacher, student = nets.made(nets.Stages, 6, 3, seed=1), nets.made(nets.Stages, 4, 2, seed=2)
    fit = fitted(tmp_path, teacher, student)
    found = taught(dataclasses.replace(HINTS, pairs=("first=first.1", "second"), weight=2.0), fit)
    with safe_open(found.path(".safetensors"), "pt") as file:
        assert set(file.keys()) == set(student.state_dict())
    assert found.parameters == sum(parameter.numel() for parameter in student.parameters())
    told = "held to first=first.1 (projected from 4 to 6), second=second (projected from 8 to 12)"
    assert found.notes[-1].endswith(told)
    net = form.restore(found)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_hints_alone_leave_the_rest_as_it_was(tmp_path):
    teacher, student = nets.made(nets.Stages, 6, 3, seed=1), nets.made(nets.Stages, 4, 2, seed=2)
    fit = fitted(tmp_path, teacher, student)
    found = form.restore(taught(dataclasses.replace(HINTS, epochs=1, batch=48, hints_first=0.9), fit))
    assert torch.equal(found.linear.weight, student.linear.weight)
    assert not torch.equal(found.first[0].conv.weight, student.first[0].conv.weight)


@pytest.mark.parametrize("technique", [QUICK, dataclasses.replace(HINTS, hints_first=0.5)])
def test_resumes_to_the_same_bits_with_its_companion(tmp_path, technique):
    teacher, student = nets.made(nets.Stages, 6, 3, seed=1), nets.made(nets.Stages, 4, 2, seed=2)
    fit = fitted(tmp_path, teacher, student)
    whole = taught(technique, dataclasses.replace(fit, checkpoints=tmp_path / "whole"))

    class Killed(BaseException):
        pass

    def killed(share: float, text: str) -> None:
        if share > 0.6:
            raise Killed

    broken = dataclasses.replace(fit, checkpoints=tmp_path / "broken", progress=killed, scratch=tmp_path / "first")
    with pytest.raises(Killed):
        taught(technique, broken)
    kept = sorted(path.name for path in (tmp_path / "broken").iterdir())
    again = dataclasses.replace(fit, checkpoints=tmp_path / "broken", scratch=tmp_path / "again")
    found = taught(technique, again)
    assert kept
    assert found.digest == whole.digest


@pytest.mark.parametrize(
    ("technique", "knobs", "told"),
    [
        (QUICK, {"pairs": ("frist=first",)}, "the student has no module 'frist'; near it are .*first"),
        (QUICK, {"pairs": ("first=secnd",)}, "the teacher has no module 'secnd'; near it are .*second"),
        (QUICK, {"pairs": ("first=a=b",)}, "'first=a=b' is no pair of modules"),
        (QUICK, {"pairs": ("first=",)}, "'first=' is no pair of modules"),
        (QUICK, {"pairs": ("first", "first=first")}, "'first=first' is no pair of modules, or comes twice"),
        (QUICK, {"pairs": ("linear",)}, r"linear=linear: features of shape \[3\] .* have no places to compare"),
        (QUICK, {"maps": "attention"}, "the student has no attention to compare"),
        (QUICK, {"maps": "relations", "pairs": ("first",)}, "first=first: first of the student attends to nothing"),
        (HINTS, {"pairs": ("first=linear",)}, "first=linear: features of shape .* cannot be brought together"),
    ],
)
def test_pairs_that_do_not_fit_are_told_in_a_line(tmp_path, technique, knobs, told):
    fit = fitted(tmp_path, nets.made(nets.Stages, 6), nets.made(nets.Stages))
    with pytest.raises(BuildError, match=told) as caught:
        taught(dataclasses.replace(technique, **knobs), fit)
    assert "\n" not in str(caught.value)
    assert str(caught.value.where).startswith(technique.name)


def test_models_without_insides_are_told(tmp_path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).eval()
    fit = fitted(tmp_path, plain, nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).eval())
    with pytest.raises(BuildError, match="the student has no attention and no feature maps to compare"):
        taught(QUICK, fit)
    live = nets.sealed(nets.made(nets.Stages), tmp_path / "live")
    program = torch_export.export_program(live, tmp_path / "program")
    student = nets.sealed(nets.made(nets.Stages, 2), tmp_path / "student-2")
    of_program = dataclasses.replace(fit, teacher=program, student=student)
    with pytest.raises(BuildError, match=r"the teacher has no .* to compare .*an exported program calls none"):
        taught(QUICK, of_program)
    with pytest.raises(BuildError, match="nothing half-way through the teacher was found"):
        taught(HINTS, of_program)


@pytest.mark.parametrize("technique", [QUICK, HINTS])
def test_a_compiled_student_cannot_be_listened_to(tmp_path, technique):
    fit = fitted(tmp_path, nets.made(nets.Stages), nets.made(nets.Stages))
    with pytest.raises(BuildError, match=f"{technique.name}.compile: .* cannot be listened to — leave it off"):
        taught(dataclasses.replace(technique, compile=True), fit)
    with pytest.raises(BuildError, match=f"{technique.name}.consensus: .* answers each view as it comes"):
        taught(dataclasses.replace(technique, augment="flip", views=2, consensus=0.5), fit)


@pytest.mark.parametrize("technique", [QUICK, HINTS])
def test_a_teacher_that_is_listened_to_answers_as_the_knobs_say(tmp_path, technique):
    given = []

    class Watched(nets.Stages):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer = super().forward(x)
            given.append((answer.dtype, self.stem.weight.is_contiguous(memory_format=torch.channels_last)))
            return answer

    fit = fitted(tmp_path, nets.made(Watched), nets.made(nets.Stages))
    asked = dataclasses.replace(technique, epochs=1, teacher_precision="bf16", channels_last=True)
    learnt = taught(asked, fit)
    assert set(given[1:]) == {(torch.bfloat16, True)}, "after it was looked through"
    assert learnt.precision == "fp32"


def test_a_teacher_whose_answers_do_not_fit_is_told(tmp_path):
    class Wide(nets.Stages):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 5)

    fit = fitted(tmp_path, nets.made(Wide), nets.made(nets.Stages))
    with pytest.raises(BuildError, match=r"the student answers in shape \[3\] and the teacher in \[5\]"):
        taught(QUICK, fit)


def test_an_mlp_and_an_lstm_are_given_hints(tmp_path):
    class Lstm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.lstm = nn.LSTM(16, width, batch_first=True)
            self.linear = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.lstm(x.flatten(2).transpose(1, 2).reshape(len(x), 8, 16))[0].mean(1))

    fit = fitted(tmp_path / "lstm", nets.made(Lstm, 8), nets.made(Lstm, 5))
    assert "lstm=lstm (projected from 5 to 8)" in taught(dataclasses.replace(HINTS, pairs=("lstm",)), fit).notes[-1]

    def mlp(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(128, width), nn.ReLU(), nn.Linear(width, 3))

    fit = fitted(tmp_path / "mlp", nets.made(mlp, 9), nets.made(mlp, 4))
    assert "held to 1=1 (projected from 4 to 9)" in taught(HINTS, fit).notes[-1]


def test_several_outputs_and_a_regression(tmp_path):
    class Regression(nets.Stages):
        """Answers a value, and the features beside it."""

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            x = self.second(self.down(self.first(self.stem(x))))
            return {"logits": self.linear(x.mean((2, 3)))[:, :1], "features": x.mean((2, 3))}

    def sealed(live: nn.Module, root: Path) -> Artifact:
        made = nets.sealed(live, root)
        width = live.linear.in_features
        outputs = TensorSpec("logits", "float32", ("batch", 1)), TensorSpec("features", "float32", ("batch", width))
        return dataclasses.replace(made, outputs=outputs, output_kind="dict")

    items = [(x, np.float32(y)) for x, y in nets.images()]
    original = sealed(nets.made(Regression, 6), tmp_path / "original")
    student = sealed(nets.made(Regression, 4), tmp_path / "student")
    fit = Fit(Split.whole(items, None, "train"), None, original, 0, tmp_path / "scratch", student=student)
    found = taught(QUICK, fit)
    assert found.output_kind == "dict"
    assert "spatial maps of first=first" in found.notes[-1]


def test_a_student_made_of_the_model_is_held_to_it(tmp_path):
    fit = fitted(tmp_path, nets.made(nets.Stages, 8, 3))
    found = dataclasses.replace(QUICK, student="made", width=0.5, depth=0.7).apply(fit.teacher, fit)
    net = form.restore(found)
    assert (len(net.first), net.first[0].conv.out_channels) == (2, 4)
    assert found.notes[-2].startswith("student made with width 0.5, depth 0.7, weights kept; 2 blocks left out: ")
    opened = dataclasses.replace(Artifact.open(found.root), origin=fit.teacher.origin)
    assert torch.equal(form.restore(opened).linear.weight, net.linear.weight)
