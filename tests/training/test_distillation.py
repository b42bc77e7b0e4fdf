"""Hinton's loss is what the paper says, and teachers answer as they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import training_nets as nets
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.own_step import OwnStep
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.distillation import Teacher, as_taught, distilling, imitation, soft
from paretune.training.healing import answers_classes
from paretune.training.learner import Learner
from paretune.training.lesson import Lesson, Lessons
from paretune.training.plan import Healing

CPU = torch.device("cpu")


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@given(st.integers(0, 99), st.floats(0.5, 20))
def test_the_soft_loss_is_never_negative_and_zero_for_the_same_answers(seed, temperature):
    student, teacher = logits(seed, 5, 4), logits(seed + 100, 5, 4)
    assert float(soft(student, teacher, temperature)) > 0
    assert abs(float(soft(teacher + 7, teacher, temperature))) < 1e-4 * temperature**2


@given(st.integers(0, 99), st.floats(0.5, 20))
def test_its_gradient_is_that_of_cross_entropy_with_soft_targets_times_temperature(seed, temperature):
    student, teacher = logits(seed, 5, 4).requires_grad_(), logits(seed + 100, 5, 4)
    (found,) = torch.autograd.grad(soft(student, teacher, temperature), student)
    ours, theirs = (functional.softmax(one / temperature, dim=1) for one in (student, teacher))
    torch.testing.assert_close(found, temperature * (ours - theirs).detach() / 5, rtol=1e-3, atol=1e-5)


def test_at_a_high_temperature_it_is_half_the_squared_difference_of_centred_logits_over_classes():
    student, teacher = logits(1, 6, 4), logits(2, 6, 4)  # the paper's section 2.1
    apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = (apart**2).sum(dim=1).mean() / (2 * 4)
    assert float(soft(student, teacher, 1000.0)) == pytest.approx(float(expected), rel=0.02)


def test_a_teacher_never_answers_more_at_once_than_the_memory_was_said_to_hold(tmp_path):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(nets.FEATURES, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return self.head(x)

    seen: list[int] = []
    artifact = nets.sealed(nets.net(0, Counting), tmp_path / "model")
    Teacher(artifact, nets.split(nets.rows(50)), CPU, at_once=8)
    assert seen == [8] * 6 + [2]


def test_positions_without_a_class_are_left_out():
    student, teacher = logits(1, 2, 3, 4), logits(2, 2, 3, 4)  # classes along axis 1
    labels = torch.tensor([[0, -100, 2, 1], [-100, -100, 1, 0]])
    kept = labels.reshape(-1) >= 0
    flat = [one.movedim(1, -1).reshape(-1, 3)[kept] for one in (student, teacher)]
    torch.testing.assert_close(imitation(student, teacher, labels, 2.0), soft(*flat, 2.0))
    assert imitation(student, teacher, torch.full((2, 4), -1), 2.0) == 0


def test_without_labels_classes_lie_along_the_second_axis_unless_it_may_be_the_last():
    student, teacher = logits(1, 2, 3, 4, 5), logits(2, 2, 3, 4, 5)
    whole = [one.movedim(1, -1).reshape(-1, 3) for one in (student, teacher)]
    torch.testing.assert_close(imitation(student, teacher, None, 2.0), soft(*whole, 2.0))
    with pytest.raises(BuildError, match=r"where classes lie in answers of shape \[2, 3, 20\]"):
        imitation(student.flatten(2), teacher.flatten(2), None, 2.0)


class Overwriting(nn.Module):
    """Subtracts a mean from its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(nets.FEATURES, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 1.0
        return self.head(x)


def test_who_writes_into_its_inputs_changes_nothing_for_others(tmp_path):
    artifact = nets.sealed(nets.net(0, Overwriting), tmp_path / "teacher")
    teacher = Teacher(artifact, nets.split(nets.rows()), CPU, remember=False)
    lesson = lesson_of(artifact, range(10))
    before = lesson.inputs[0].clone()
    student = Learner(nets.net(1, Overwriting), form.keywords(artifact))
    first = distilling(teacher, None, 0.5, 4.0, True)(student, lesson)
    assert torch.equal(lesson.inputs[0], before)
    assert torch.equal(distilling(teacher, None, 0.5, 4.0, True)(student, lesson), first)
    torch.testing.assert_close(teacher(lesson), nets.net(0, Overwriting)(before.clone()))


def test_a_single_column_is_two_classes():
    student, teacher = logits(1, 6, 1), logits(2, 6, 1)
    both = [torch.cat([torch.zeros(6, 1), one], 1) for one in (student, teacher)]
    for labels in (None, torch.ones(6, dtype=torch.int64)):
        torch.testing.assert_close(imitation(student, teacher, labels, 3.0), soft(*both, 3.0))


def taught(tmp_path, **facts):
    live = nets.net()
    artifact = nets.sealed(live, tmp_path / "teacher", **facts)
    return artifact, Teacher(artifact, nets.split(nets.rows()), CPU)


def lesson_of(artifact, places, labels=True):
    made = Lessons(nets.split(nets.rows()), artifact, CPU).at(np.array(places))
    return made if labels else Lesson(made.inputs, None, made.places)


def test_a_teacher_answers_by_place_as_the_model_in_eval_mode(tmp_path):
    artifact, teacher = taught(tmp_path)
    lesson = lesson_of(artifact, [70, 3, 119])
    with torch.no_grad():
        expected = form.restore(artifact)(lesson.inputs[0])
    torch.testing.assert_close(teacher(lesson), expected, rtol=1e-4, atol=1e-5)
    assert not teacher(lesson).requires_grad


def test_the_parts_of_the_loss_are_weighed(tmp_path):
    artifact, teacher = taught(tmp_path)
    lesson = lesson_of(artifact, range(10))
    answer = logits(5, 10, nets.CLASSES).requires_grad_()
    hard = functional.cross_entropy(answer, lesson.labels)
    like = soft(answer, teacher(lesson), 4.0)

    def step(alpha, loss=None, classes=True, given=lesson):
        return distilling(teacher, loss, alpha, 4.0, classes)(lambda *x: answer, given)

    torch.testing.assert_close(step(0.7), 0.7 * like + 0.3 * hard)
    torch.testing.assert_close(step(0.0), hard)
    torch.testing.assert_close(step(1.0, given=lesson_of(artifact, range(10), labels=False)), like)
    torch.testing.assert_close(step(0.5, lambda out, y: out.sum()), 0.5 * like + 0.5 * answer.sum())
    own = OwnStep(lambda model, x, y: model(x).square().sum() + y.sum())
    wanted = answer.square().sum() + lesson.labels.sum()
    torch.testing.assert_close(step(0.75, own), 0.75 * like + 0.25 * wanted)
    values = functional.mse_loss(answer, teacher(lesson))
    torch.testing.assert_close(step(1.0, classes=False), values)


def test_without_labels_an_epoch_is_scored_by_agreement(tmp_path):
    artifact, teacher = taught(tmp_path)
    lesson = lesson_of(artifact, range(20), labels=False)
    wanted = teacher(lesson)
    assert as_taught(teacher, True)(lambda *x: wanted * 2, lesson).tolist() == [1.0] * 20
    assert as_taught(teacher, False)(lambda *x: wanted + 3, lesson).tolist() == pytest.approx([-9.0] * 20, rel=1e-3)
    labelled = lesson_of(artifact, range(20))
    right = functional.one_hot(labelled.labels, nets.CLASSES).float()
    assert as_taught(teacher, True)(lambda *x: right, labelled).tolist() == [1.0] * 20


def test_labels_that_only_a_users_loss_understands_do_not_stop_it(tmp_path):
    artifact, teacher = taught(tmp_path)
    plain = lesson_of(artifact, range(10))
    odd = dataclasses.replace(plain, labels=torch.zeros(10, 7, dtype=torch.int64))
    answer = logits(5, 10, nets.CLASSES).requires_grad_()
    step = distilling(teacher, lambda out, y: (out.sum(1) + y.sum(1)).mean(), 0.5, 4.0, True)
    like = soft(answer, teacher(plain), 4.0)
    torch.testing.assert_close(step(lambda *x: answer, odd), 0.5 * like + 0.5 * answer.sum(1).mean())
    right = teacher(odd) * 3
    assert as_taught(teacher, True)(lambda *x: right, odd).tolist() == [1.0] * 10
    torch.testing.assert_close(distilling(teacher, None, 1.0, 4.0, True)(lambda *x: answer, odd), like)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_classes_given_as_floats_are_classes_along_the_same_axis(alpha):
    answer, wanted = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    labels = torch.tensor([[0, 1, 2, -1, -1], [1, 1, 0, 2, -1]])
    step = distilling(lambda lesson: wanted, None, alpha, 2.0, True)
    found = [
        float(step(lambda *x: answer, Lesson((torch.zeros(2, 1),), given, torch.arange(2))))
        for given in (labels, labels.float())
    ]
    assert found[0] == found[1] > 0


def test_whole_numbers_may_be_values_and_floats_classes(tmp_path):
    artifact, teacher = taught(tmp_path)
    lesson = lesson_of(artifact, range(6))
    answer = logits(5, 6, nets.CLASSES).requires_grad_()
    numbers = torch.arange(18).reshape(6, 3)
    values = dataclasses.replace(lesson, labels=numbers)
    step = distilling(teacher, None, 0.0, 4.0, False)
    torch.testing.assert_close(step(lambda *x: answer, values), functional.mse_loss(answer, numbers.float()))
    scores = as_taught(teacher, False)(lambda *x: answer, values)
    torch.testing.assert_close(scores, -((answer - numbers) ** 2).mean(1))
    floats = dataclasses.replace(lesson, labels=lesson.labels.float())
    step = distilling(teacher, None, 0.0, 4.0, True)
    torch.testing.assert_close(step(lambda *x: answer, floats), functional.cross_entropy(answer, lesson.labels))
    with pytest.raises(BuildError, match=r"holds the label \d\.5, which is no class"):
        step(lambda *x: answer, dataclasses.replace(lesson, labels=floats.labels + 0.5))


@pytest.mark.parametrize(("given", "plan", "loss", "classes"), [
    (np.int64, Healing(), None, True),
    (np.float32, Healing(), None, False),
    (np.int64, Healing(answers="values"), None, False),
    (np.float32, Healing(answers="classes"), None, True),
])  # fmt: skip
def test_what_answers_are_follows_from_the_labels_or_is_said(tmp_path, given, plan, loss, classes):
    data = nets.split([(x, given(y)) for x, y in nets.rows()])
    artifact = nets.sealed(nets.net(), tmp_path / "net")
    assert answers_classes(data, Fit(data, loss, artifact, 0, tmp_path), plan) is classes


def test_labels_that_are_not_used_are_not_looked_at(tmp_path):
    data = nets.split([(x, np.int64(1)) for x, _ in nets.rows()])
    fit = Fit(data, None, nets.sealed(nets.net(), tmp_path / "net"), 0, tmp_path)
    with pytest.raises(BuildError, match="all of its 120 examples are of class 1"):
        answers_classes(data, fit, Healing())
    assert answers_classes(data, fit, Healing(alpha=1.0)) is True
    assert answers_classes(data, fit, Healing(answers="values")) is False


def exported(artifact, folder):
    """The same module as a program for seven examples at once."""
    folder.mkdir()
    module = form.restore(artifact)
    torch.export.save(torch.export.export(module, (torch.zeros(7, nets.FEATURES),)), folder / "model.pt2")
    inputs, outputs = TensorSpec("x", "float32", (7, nets.FEATURES)), TensorSpec("output", "float32", (7, nets.CLASSES))
    return Artifact.seal("torch", folder, (inputs,), (outputs,))


def test_a_teacher_with_a_batch_of_its_own_answers_any_number(tmp_path):
    artifact, teacher = taught(tmp_path)
    fixed = exported(artifact, tmp_path / "program")
    for remember in (True, False):
        other = Teacher(fixed, nets.split(nets.rows()), CPU, remember=remember)
        for places in ([3], [70, 3, 119], range(20)):
            lesson = lesson_of(artifact, places)
            torch.testing.assert_close(other(lesson), teacher(lesson), rtol=1e-4, atol=1e-5)


def test_a_teacher_draws_nothing_from_the_callers_generators(tmp_path):
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] + torch.rand(len(x), 3)

    artifact = nets.sealed(Noisy(), tmp_path / "noisy")
    lesson = lesson_of(artifact, range(5))
    torch.manual_seed(1)
    first = Teacher(artifact, nets.split(nets.rows()), CPU)(lesson)
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), drawn)
    torch.manual_seed(2)
    assert torch.equal(Teacher(artifact, nets.split(nets.rows()), CPU)(lesson), first)


def test_answers_that_do_not_fit_are_told(tmp_path):
    artifact, teacher = taught(tmp_path)
    step = distilling(teacher, None, 0.5, 4.0, True)
    with pytest.raises(BuildError, match=r"the student answers in shape \[5\] and the teacher in \[3\]"):
        step(lambda *x: torch.zeros(4, 5), lesson_of(artifact, range(4)))


def test_a_teacher_that_cannot_teach_is_told(tmp_path):
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] / (x[:, 3:4] * 0).where(x[:, 3:4] == x[:, 3:4].max(), 1)

    with pytest.raises(BuildError, match=r"train\[\d+\]: the original answers .* not finite"):
        Teacher(nets.sealed(Broken(), tmp_path / "broken"), nets.split(nets.rows()), CPU)
    other = dataclasses.replace(nets.sealed(nets.net(), tmp_path / "other"), form="onnx")
    with pytest.raises(BuildError, match="only a torch module can teach"):
        Teacher(other, nets.split(nets.rows()), CPU)


@pytest.mark.parametrize("remember", [True, False])
@pytest.mark.parametrize("kept_as", ["module", "program"])
def test_a_teacher_answers_in_the_arithmetic_that_is_asked_for(tmp_path, remember, kept_as):
    artifact, exact = taught(tmp_path)
    known = artifact if kept_as == "module" else exported(artifact, tmp_path / "program")
    rounded = Teacher(known, nets.split(nets.rows()), CPU, remember=remember, precision="bf16")
    lesson = lesson_of(artifact, range(20))
    told, wanted = rounded(lesson), exact(lesson)
    assert told.dtype == torch.float32
    assert not torch.equal(told, wanted)
    torch.testing.assert_close(told, wanted, rtol=0.03, atol=0.03)  # bfloat16 has eight bits
    assert torch.equal(told, told.bfloat16().float())


def test_a_teacher_of_images_has_its_filters_as_the_plan_has_them(tmp_path):
    layouts = []

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = nn.Conv2d(2, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            four = x.unflatten(1, (2, 3))[..., None].expand(-1, -1, -1, 3)
            layouts.append(self.filters.weight.is_contiguous(memory_format=torch.channels_last))
            return self.filters(four).flatten(1)

    artifact = nets.sealed(nets.net(0, Images), tmp_path / "images")
    lesson = lesson_of(artifact, range(8))
    answers = []
    for channels_last in (False, True):
        layouts.clear()
        teacher = Teacher(artifact, nets.split(nets.rows()), CPU, remember=False, channels_last=channels_last)
        answers.append(teacher(lesson))
        assert layouts == [channels_last]
    torch.testing.assert_close(*answers)


def test_answers_that_overflow_half_precision_are_told(tmp_path):
    live = nets.net()
    with torch.no_grad():
        live.layers[4].weight.mul_(1e6)
    artifact = nets.sealed(live, tmp_path / "large")
    assert bool(Teacher(artifact, nets.split(nets.rows()), CPU)(lesson_of(artifact, range(8))).isfinite().all())
    with pytest.raises(BuildError, match="not finite") as told:
        Teacher(artifact, nets.split(nets.rows()), CPU, precision="fp16")
    assert told.value.do == "set teacher_precision=bf16"
