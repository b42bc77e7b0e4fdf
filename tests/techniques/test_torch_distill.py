"""A student learns what its teacher knows, alone and in a recipe, and opens again in a fresh process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.event import Event
from paretune.build.candidate import Builder
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_export
from paretune.techniques.torch_distill import TorchDistill
from paretune.techniques.torch_to_onnx import TorchToOnnx

QUICK = TorchDistill(epochs=15, batch=32, learning_rate=0.02)


class Original(nn.Module):
    """Knows the three classes of :func:`training_nets.rows` exactly, by the logits 4 · x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x[:, : nets.CLASSES]


class Student(nn.Module):
    """A smaller net, whose input has another name than the original's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(nets.FEATURES, 24), nn.ReLU(), nn.Linear(24, nets.CLASSES))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


def student(root: Path) -> Artifact:
    return dataclasses.replace(nets.sealed(nets.net(1, Student), root), base="student")


def fitted(root: Path, items=None, teacher: nn.Module | None = None, **options) -> Fit:
    original = nets.sealed(teacher or Original(), root / "original")
    items = nets.rows(300) if items is None else items
    data = Split.whole(items, None, "train") if items else None
    return Fit(data, None, original, 0, root / "scratch", **options)


def agreement(one: Artifact, other: Artifact) -> float:
    x = np.stack([x for x, _ in nets.rows(400, seed=99)])
    answers = [form.call(form.restore(artifact), artifact, (x,))[0].argmax(1) for artifact in (one, other)]
    return float(np.mean(answers[0] == answers[1]))


def test_a_student_learns_its_teacher_even_where_labels_say_nothing(tmp_path):
    noise = [(x, np.int64(number % nets.CLASSES)) for number, (x, _) in enumerate(nets.rows(300))]
    fit = fitted(tmp_path, noise, student=student(tmp_path / "student"))
    taught = dataclasses.replace(QUICK, student="given", alpha=1.0).apply(fit.teacher, fit)
    assert agreement(taught, fit.teacher) > 0.85
    alone = dataclasses.replace(fit, scratch=tmp_path / "alone")
    misled = dataclasses.replace(QUICK, student="given", alpha=0.0).apply(fit.teacher, alone)
    assert agreement(misled, fit.teacher) < 0.6
    counted = sum(parameter.numel() for parameter in Student().parameters())
    assert (taught.base, taught.parameters) == ("student", counted)
    assert (taught.inputs, taught.outputs) == (fit.teacher.inputs, fit.teacher.outputs)
    assert taught.notes[-1].startswith("torch_distill: 15 epochs: loss ")


def test_the_original_is_asked_as_the_knobs_say(tmp_path):
    asked = []

    class Watched(Original):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            asked.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype)
            return super().forward(x)

    for precision, wanted in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        fit = fitted(tmp_path / precision, teacher=Watched(), student=student(tmp_path / f"student-{precision}"))
        asked.clear()
        dataclasses.replace(QUICK, student="given", epochs=1, teacher_precision=precision).apply(fit.teacher, fit)
        assert set(asked) == {wanted}


def test_what_was_spoilt_before_is_healed(tmp_path):
    fit = fitted(tmp_path, teacher=Original())
    live = nets.net(3, Student)
    artifact = nets.sealed(live, tmp_path / "spoilt")
    healed = QUICK.apply(artifact, fit)
    assert agreement(artifact, fit.teacher) < 0.6
    assert agreement(healed, fit.teacher) > 0.85
    assert healed.base == "model"
    assert form.restore(healed).layers[0].weight.shape == live.layers[0].weight.shape


def test_a_regression_learns_its_teachers_values(tmp_path):
    class Curve(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(x[:, :1]) + x[:, 1:2]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(nets.FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    items = [(x, np.float32(np.sin(x[0]) + x[1])) for x, _ in nets.rows(400)]
    original = nets.sealed(Curve(), tmp_path / "original", outputs=1)
    artifact = nets.sealed(nets.net(1, Net), tmp_path / "net", outputs=1)
    fit = Fit(Split.whole(items, None, "train"), None, original, 0, tmp_path / "scratch")
    taught = dataclasses.replace(QUICK, epochs=30, validation=0.1).apply(artifact, fit)
    x = np.stack([x for x, _ in nets.rows(300, seed=99)])
    wanted = form.call(form.restore(original), original, (x,))[0]
    found = form.call(form.restore(taught), taught, (x,))[0]
    assert float(np.mean((found - wanted) ** 2)) < 0.1 * float(wanted.var())
    assert "validation score -0.0" in taught.notes[-1]


class Heard:
    def __init__(self) -> None:
        self.cached: list[bool] = []

    def on(self, event: Event) -> None:
        if event.kind == "step":
            self.cached.append(event.data["cached"])


def builder(root: Path) -> Builder:
    """As a run makes it: live modules from the user's functions, all else from the store."""
    place = root / f"given-{len(list(root.iterdir()))}"
    fit = fitted(place, student=student(place / "student"))
    (place / "scratch").mkdir(parents=True, exist_ok=True)
    return Builder(Store(root / "store"), fit.teacher, fit, Heard())


CHAIN = Recipe((dataclasses.replace(QUICK, student="given", epochs=5), TorchToOnnx()))


def answers(root: Path) -> tuple[str, list[float], list[float], list[bool]]:
    """Build the chain: the student's digest and answers, its graph's answers, and which steps were in the store."""
    from paretune.forms import onnx

    made = builder(root)
    graph = made.build(CHAIN)
    cached = list(made.observer.cached)
    taught = made.build(Recipe(CHAIN.steps[:1]))
    x = np.stack([x for x, _ in nets.rows(5, seed=99)])
    found = form.call(form.restore(taught), taught, (x,))[0]
    exported = onnx.session(graph.path(".onnx"), 1).run(None, {graph.inputs[0].name: x})[0]
    return taught.digest, found.ravel().tolist(), exported.ravel().tolist(), cached


def test_a_taught_student_goes_on_through_the_recipe_and_opens_in_a_fresh_process(tmp_path):
    digest, found, exported, cached = answers(tmp_path)
    assert cached == [False, False]
    np.testing.assert_allclose(exported, found, rtol=1e-3, atol=1e-4)
    code = "import json, sys; from pathlib import Path; import test_torch_distill as t; "
    code += "print(json.dumps(t.answers(Path(sys.argv[1]))))"
    paths = [str(Path(__file__).parent), str(Path(nets.__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again, found_again, exported_again, cached_again = json.loads(done.stdout)
    assert (again, cached_again) == (digest, [True, True]), "the same bits"
    # of the same bits some CPUs' kernels make answers that differ in the last one, with other numbers of threads
    np.testing.assert_allclose(found_again, found, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exported_again, exported, rtol=1e-5, atol=1e-6)
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} == {".safetensors", ".json", ".onnx"}
    assert not list((tmp_path / "store" / "unfinished").iterdir())


def test_an_original_that_is_a_program_can_teach(tmp_path):
    live = Original()
    artifact = nets.sealed(live, tmp_path / "live")
    program = torch_export.export_program(artifact, tmp_path / "program")
    fit = dataclasses.replace(fitted(tmp_path, student=student(tmp_path / "student")), teacher=program)
    taught = dataclasses.replace(QUICK, student="given").apply(program, fit)
    assert agreement(taught, artifact) > 0.85
    with pytest.raises(BuildError, match="exported program, which has no training mode"):
        QUICK.apply(program, dataclasses.replace(fit, scratch=tmp_path / "again"))


@pytest.mark.parametrize(
    ("knobs", "items", "told"),
    [
        ({}, [], "needs training data"),
        ({}, [(x, np.int64(1)) for x, _ in nets.rows(20)], "all of its 20 examples are of class 1"),
        ({}, [(x, None) for x, _ in nets.rows(20)], "no labels — give labels, or set alpha=1"),
        ({"student": "given"}, None, "the workload has no student"),
        ({"patience": 2}, None, "patience needs a validation part"),
        ({}, [(x, np.int64(y + 1)) for x, y in nets.rows(90)], "holds class 3, and the model answers 3 classes"),
    ],
)
def test_what_cannot_teach_is_told_in_a_line(tmp_path, knobs, items, told):
    artifact = nets.sealed(nets.net(1, Student), tmp_path / "net")
    with pytest.raises(BuildError, match=told) as caught:
        dataclasses.replace(QUICK, **knobs).apply(artifact, fitted(tmp_path, items))
    assert "\n" not in str(caught.value)


def test_models_that_do_not_fit_are_told(tmp_path):
    frozen = nets.sealed(nets.net(1, Student).requires_grad_(False), tmp_path / "frozen")
    with pytest.raises(BuildError, match="parameters of the model are frozen"):
        QUICK.apply(frozen, fitted(tmp_path / "a"))
    fit = fitted(tmp_path / "b", student=student(tmp_path / "student"))
    changed = nets.sealed(nets.net(1, Student), tmp_path / "changed")
    with pytest.raises(BuildError, match="changed before"):
        dataclasses.replace(QUICK, student="given").apply(changed, fit)
    wide = nets.sealed(nn.Linear(nets.FEATURES, 5), tmp_path / "wide", outputs=5)
    with pytest.raises(BuildError, match=r"student answers in shape \[5\] and the teacher in \[3\]"):
        QUICK.apply(wide, fitted(tmp_path / "c"))


def test_without_labels_the_teacher_alone_teaches(tmp_path):
    artifact = nets.sealed(nets.net(1, Student), tmp_path / "net")
    fit = fitted(tmp_path, [(x, None) for x, _ in nets.rows(300)])
    taught = dataclasses.replace(QUICK, alpha=1.0, answers="classes", validation=0.1).apply(artifact, fit)
    assert agreement(taught, fit.teacher) > 0.85
    assert float(taught.notes[-1].rpartition("validation score ")[2]) > 0.8


def test_inputs_by_keyword_and_a_dict_of_outputs(tmp_path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(nets.FEATURES, nets.CLASSES)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"hidden": x, "logits": self.net(x) * scale[:, None]}

    class Teaches(Named):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"hidden": x, "logits": 4 * x[:, : nets.CLASSES] * scale[:, None]}

    items = [({"scale": np.float32(1), "x": x}, y) for x, y in nets.rows(300)]
    inputs = TensorSpec("x", "float32", ("batch", nets.FEATURES)), TensorSpec("scale", "float32", ("batch",))
    outputs = TensorSpec("hidden", "float32", ("batch", 6)), TensorSpec("logits", "float32", ("batch", 3))

    def made(live: nn.Module, root: Path) -> Artifact:
        root.mkdir(parents=True)
        form.save(live, root)
        return Artifact.seal(
            "torch", root, inputs, outputs, keyword_inputs=True, output_kind="dict", origin=live
        )  # fmt: skip

    fit = Fit(
        Split.whole(items, None, "train"), None, made(Teaches(), tmp_path / "teacher"), 0, tmp_path / "scratch"
    )  # fmt: skip
    before = made(nets.net(1, Named), tmp_path / "net")
    taught = QUICK.apply(before, fit)
    x = np.stack([x for x, _ in nets.rows(300, seed=99)])
    one = np.ones(len(x), np.float32)
    found = form.call(form.restore(taught), taught, (x, one))[1].argmax(1)
    assert float(np.mean(found == x[:, :3].argmax(1))) > 0.85
    assert (taught.keyword_inputs, taught.output_kind) == (True, "dict")
