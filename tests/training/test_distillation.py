"""Hinton's loss is what the paper says, and teachers answer as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.distillation import Teacher, as_taught, distilling, imitation, soft
from paretune.training.lesson import Lesson, Lessons

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


def test_positions_without_a_class_are_left_out():
    student, teacher = logits(1, 2, 3, 4), logits(2, 2, 3, 4)  # classes along axis 1
    labels = torch.tensor([[0, -100, 2, 1], [-100, -100, 1, 0]])
    kept = labels.reshape(-1) >= 0
    flat = [one.movedim(1, -1).reshape(-1, 3)[kept] for one in (student, teacher)]
    torch.testing.assert_close(imitation(student, teacher, labels, 2.0), soft(*flat, 2.0))
    whole = [one.movedim(1, -1).reshape(-1, 3) for one in (student, teacher)]
    torch.testing.assert_close(imitation(student, teacher, None, 2.0), soft(*whole, 2.0))
    assert imitation(student, teacher, torch.full((2, 4), -1), 2.0) == 0


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
    import dataclasses

    other = dataclasses.replace(nets.sealed(nets.net(), tmp_path / "other"), form="onnx")
    with pytest.raises(BuildError, match="only a torch module can teach"):
        Teacher(other, nets.split(nets.rows()), CPU)
