"""Assistants stand between teacher and student in size, each is taught by the one before, and a kill costs little."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import feature_nets as nets
import numpy as np
import pytest
import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.techniques.torch_distill_progressive import TorchDistillProgressive
from paretune.testing import TechniqueConformance
from paretune.training import healing

QUICK = TorchDistillProgressive(epochs=2, batch=16, learning_rate=0.01, width=0.5)


class TestTorchDistillProgressive(TechniqueConformance):
    technique = TorchDistillProgressive


def fitted(root: Path, teacher: nn.Module | None = None, student: nn.Module | None = None, **options) -> Fit:
    original = nets.sealed(teacher or nets.made(nets.Stages, 8, 4), root / "original")
    given = None if student is None else nets.sealed(student, root / "student")
    data = Split.whole(nets.images(), None, "train")
    return Fit(data, None, original, 0, root / "scratch", student=given, **options)


def numbers(note: str) -> tuple[int, int]:
    return tuple(map(int, re.search(r"parameters (\d+) → (\d+)", note).groups()))


def test_each_is_taught_by_the_one_before(tmp_path):
    heard: list[str] = []
    entries: list[dict] = []
    fit = fitted(tmp_path, progress=lambda share, text: heard.append(text), record=entries.append)
    plan = dataclasses.replace(QUICK, assistants=("1x0.75", "0.75x0.75"), assistant_epochs=1)
    found = plan.apply(fit.teacher, fit)
    sizes = [numbers(note)[1] for note in found.notes if "parameters" in note]
    assert [note.partition(" ")[0] for note in found.notes] == [
        "student", "assistant-1", "assistant-1:", "assistant-2", "assistant-2:", "torch_distill_progressive:",
    ]  # fmt: skip
    assert fit.teacher.parameters > sizes[1] > sizes[2] > sizes[0] == found.parameters
    assert "1 epoch: loss" in found.notes[2]
    assert found.notes[-1].startswith("torch_distill_progressive: 2 epochs: loss ")
    assert found.notes[-1].endswith("taught by assistant-2")
    assert [entry["title"] for entry in entries if entry["kind"] == "curve"] == [
        "assistant-1", "assistant-2", "student",
    ]  # fmt: skip
    assert {text.partition(":")[0] for text in heard} == {"1 of 3", "2 of 3", "3 of 3"}


def test_the_teacher_of_each_is_the_trained_one_before(tmp_path, monkeypatch):
    teachers: list[Artifact] = []
    real = healing.heal

    def heard(*given, **named):
        teachers.append(named["teacher"])
        return real(*given, **named)

    monkeypatch.setattr(healing, "heal", heard)
    monkeypatch.setattr(import_module("paretune.training.assistants"), "heal", heard)
    fit = fitted(tmp_path)
    plan = dataclasses.replace(QUICK, assistants=("1x0.75", "0.75x0.75"), assistant_epochs=1)
    found = plan.apply(fit.teacher, fit)
    sizes = [numbers(note)[1] for note in found.notes if "parameters" in note]
    assert [one.parameters for one in teachers] == [fit.teacher.parameters, *sizes[1:]]
    assert teachers[0].digest == fit.teacher.digest
    assert all("taught" in one.root.parts[-2] for one in teachers[1:])


def test_an_assistant_half_way_is_found_for_a_given_student(tmp_path):
    student = nets.made(nets.Stages, 8, 1, seed=3)
    fit = fitted(tmp_path, student=student)
    found = dataclasses.replace(QUICK, student="given").apply(fit.teacher, fit)
    before, after = numbers(found.notes[0])
    least = sum(parameter.numel() for parameter in student.parameters())
    assert before > after > least
    assert "assistant-1 made with width 1, depth" in found.notes[0]
    assert found.base == "student"
    plain = fitted(
        tmp_path / "plain", nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    )
    by_width = dataclasses.replace(QUICK, width=0.25).apply(plain.teacher, plain)
    assert "assistant-1 made with width 0." in by_width.notes[1]


def test_the_student_learns_of_its_assistant_and_not_of_the_labels(tmp_path):
    items = [(x + np.float32(number % 4), np.int64(number % 3)) for number, (x, _) in enumerate(nets.images(144))]
    x = torch.stack([torch.from_numpy(x) for x, _ in items])
    teacher = nets.made(nets.Stages, 8, 4, seed=5)
    with torch.no_grad():  # classes of its own, which follow the brightness and not the labels
        answers = teacher(x)
        teacher.linear.weight.mul_(1 / answers.std(dim=0, keepdim=True).T)
        teacher.linear.bias.zero_().sub_(teacher(x).mean(dim=0))
        wanted = teacher(x).argmax(1)
    fit = dataclasses.replace(fitted(tmp_path, teacher), train=Split.whole(items, None, "train"))
    plan = dataclasses.replace(QUICK, epochs=12, alpha=1.0, width=0.75)
    found = form.restore(plan.apply(fit.teacher, fit))(x).argmax(1)
    assert len(wanted.unique()) > 1
    assert float((found == wanted).float().mean()) > 0.7


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"assistants": ("half",)}, "'half' is no WIDTHxDEPTH between 0 and 1"),
        ({"assistants": ("2x1",)}, "'2x1' is no WIDTHxDEPTH between 0 and 1"),
        ({"assistants": ("0.5x0.5",), "width": 0.75}, "each must have fewer than the one before"),
        ({"assistants": ("1x1",)}, "no smaller student with width 1, depth 1 can be made"),
        ({"student": "artifact"}, "no assistant between"),
        ({"student": "given"}, "the workload has no student"),
    ],
)
def test_ladders_that_do_not_lead_down_are_told(tmp_path, knobs, told):
    fit = fitted(tmp_path)
    with pytest.raises(BuildError, match=told) as caught:
        dataclasses.replace(QUICK, **knobs).apply(fit.teacher, fit)
    assert "\n" not in str(caught.value)
    assert caught.value.where.startswith("torch_distill_progressive")


# -- killed ------------------------------------------------------------------------------------------------------------


def run(folder: Path, pause_s: float) -> Artifact:
    torch.set_num_threads(1)
    fit = fitted(folder, checkpoints=folder / "checkpoints", progress=lambda share, text: time.sleep(pause_s))
    return dataclasses.replace(QUICK, epochs=4).apply(fit.teacher, fit)


def test_a_killed_ladder_resumes_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", 0.0)
    broken = tmp_path / "broken"
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(nets.__file__).parent)]!r}; "
    code += "from pathlib import Path; import test_torch_distill_progressive as t; t.run(Path(sys.argv[1]), 0.2)"
    process = subprocess.Popen([sys.executable, "-c", code, str(broken)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    wanted = broken / "checkpoints" / "student"
    while not any(wanted.glob("step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    process.stderr.close()
    assert not (broken / "scratch" / "out" / "model.safetensors").exists()
    again = run(broken, 0.0)
    assert again.digest == whole.digest
    assert json.dumps(again.notes) == json.dumps(whole.notes)
