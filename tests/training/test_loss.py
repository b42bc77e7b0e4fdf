"""The default losses are torch's, on whatever shape answers and labels have; misfits are said."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.own_step import OwnStep
from paretune.errors import BuildError
from paretune.training import distillation, loss
from paretune.training.lesson import Lesson, Lessons


def lesson(labels, count=None):
    count = len(labels) if count is None else count
    return Lesson((torch.zeros(count, 1),), labels, torch.arange(count))


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_classes_along_axis_one_or_the_last():
    logits, labels = seeded(5, 4, 3), torch.tensor([[0, 1, 3]] * 5)
    expected = functional.cross_entropy(logits, labels)
    assert torch.allclose(loss.against_labels(logits, labels), expected)
    assert torch.allclose(loss.against_labels(logits.movedim(1, -1), labels.int()), expected)
    flat = seeded(5, 4)
    column = torch.tensor([[3], [0], [1], [1], [2]])
    assert torch.allclose(loss.against_labels(flat, column), functional.cross_entropy(flat, column[:, 0]))


def test_a_batch_as_long_as_there_are_classes_keeps_its_axis():
    labels = torch.tensor([[0, 1, 2], [2, 2, 1]])
    perfect = 10 * functional.one_hot(labels, 3).float()  # [batch, tokens, classes], as many tokens as classes
    last = Lesson((torch.zeros(2, 3),), labels, torch.arange(2), classes_last=True)
    assert float(loss.supervised(None)(lambda *x: perfect, last)) < 1e-3
    assert loss.examine(lambda *x: perfect, last).tolist() == [1, 1]
    first = Lesson((torch.zeros(2, 3),), labels, torch.arange(2))
    assert float(loss.supervised(None)(lambda *x: perfect.movedim(-1, 1), first)) < 1e-3
    assert float(distillation.imitation(-perfect, perfect, labels, 1.0, last=True)) > 5
    assert float(distillation.imitation(perfect, perfect, labels, 1.0, last=True)) < 1e-6


def test_lessons_tell_from_the_model_where_its_classes_lie(tmp_path):
    data = Split.whole([(np.zeros(3, np.int64), np.zeros(3, np.int64))] * 2, None, "train")
    inputs = (TensorSpec("x", "int64", ("batch", "length")),)
    for shape, last in ((("batch", "length", 3), True), (("batch", 3, "length"), False), (("batch", 3), False)):
        root = tmp_path / str(shape)
        root.mkdir()
        artifact = Artifact.seal("torch", root, inputs, (TensorSpec("logits", "float32", shape),))
        assert Lessons(data, artifact, torch.device("cpu")).at(np.arange(2)).classes_last is last


def test_a_class_of_small_unsigned_labels_is_not_taken_for_ignored(tmp_path):
    (tmp_path / "m").mkdir()
    inputs, outputs = TensorSpec("x", "float32", ("batch", 1)), TensorSpec("output", "float32", ("batch", 200))
    artifact = Artifact.seal("torch", tmp_path / "m", (inputs,), (outputs,))
    data = Split.whole([(np.zeros(1, np.float32), np.uint8(156))] * 3, None, "train")
    found = Lessons(data, artifact, torch.device("cpu")).at(np.arange(3))
    assert found.labels.tolist() == [156] * 3
    assert loss.balance(dataclasses.replace(found, batch_labels=found.labels), lambda one: one != loss.IGNORED) == 1


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_single_column_is_a_binary_logit(shape):
    logits, labels = seeded(*shape), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = functional.binary_cross_entropy_with_logits(logits.reshape(-1), labels.float())
    assert torch.allclose(loss.against_labels(logits, labels), expected)
    assert torch.equal(
        loss.examine(lambda *x: logits, lesson(labels)), ((logits.reshape(-1) > 0) == labels.bool()).float()
    )


def test_negative_labels_are_left_out_of_loss_and_score():
    logits, labels = seeded(4, 3), torch.tensor([2, -100, 0, -1])
    assert torch.allclose(loss.against_labels(logits, labels), functional.cross_entropy(logits[[0, 2]], labels[[0, 2]]))
    assert loss.against_labels(logits, torch.full((4,), -1)) == 0
    tokens = torch.zeros(1, 2, 4)
    tokens[0, 1] = 1
    truth = torch.tensor([[1, 0, -1, 1]])
    assert loss.examine(lambda *x: tokens, lesson(truth)).tolist() == [pytest.approx(2 / 3)]


def test_floats_are_compared_in_the_shape_of_the_answers():
    answers, labels = seeded(4, 1), torch.arange(4.0)
    assert torch.allclose(loss.against_labels(answers, labels), ((answers[:, 0] - labels) ** 2).mean())
    assert torch.allclose(loss.examine(lambda *x: answers, lesson(labels)), -((answers[:, 0] - labels) ** 2))


@pytest.mark.parametrize(
    ("answers", "labels", "told"),
    [
        (seeded(4, 3), torch.zeros(5, dtype=torch.int64), r"labels of shape \[5\] \(int64\) do not fit"),
        (seeded(4, 3), torch.zeros(4), r"\[4\] \(float32\) do not fit answers of shape \[4, 3\]"),
        (seeded(4, 3), torch.tensor([0, 1, 2, 3]), "class 3, and the model answers 3 classes"),
    ],
)
def test_what_does_not_fit_is_said(answers, labels, told):
    with pytest.raises(BuildError, match=told):
        loss.against_labels(answers, labels)


def test_a_users_loss_gets_what_the_model_returns_and_the_labels_as_they_are():
    labels = torch.tensor([1, 0], dtype=torch.int32)
    weight = torch.ones(2, requires_grad=True)
    seen = []

    def own(outputs, truth):
        seen.append((outputs, truth))
        return outputs["a"].sum().reshape(1)

    found = loss.supervised(own)(lambda x: {"a": weight * 2}, lesson(labels))
    assert found.shape == ()
    assert found.item() == 4
    assert seen[0][1] is labels
    assert set(seen[0][0]) == {"a"}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (lambda out, y: out.nonsense, "Workload.loss: failed: AttributeError"),
        (lambda out, y: 3.0, "Workload.loss: returned a float"),
        (lambda out, y: out * 2, r"returned a tensor of shape \[2\]"),
        (lambda out, y: out.detach().sum(), r"returned a tensor of shape \[\] without a gradient"),
    ],
)
def test_a_users_loss_that_cannot_be_minimised_is_told(own, told):
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(BuildError, match=told):
        loss.supervised(own)(lambda x: weight, lesson(torch.tensor([1, 0])))


def test_without_labels_there_is_nothing_to_learn():
    with pytest.raises(BuildError, match="no labels"):
        loss.supervised(None)(lambda x: x, lesson(None, 2))
    with pytest.raises(BuildError, match="no labels"):
        loss.examine(lambda x: x, lesson(None, 2))


def test_score_of_images_is_the_share_of_right_pixels():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = 1
    truth = torch.from_numpy(np.array([[[1, 1], [0, 0]]]))
    assert loss.examine(lambda *x: logits, lesson(truth)).tolist() == [0.75]


class Counting(torch.nn.Module):
    """A loss with tensors and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return functional.cross_entropy(outputs, labels, self.weight) * self.seen


def test_a_loss_that_is_a_module_is_copied_for_each_training():
    own = Counting()
    answer, given = seeded(2, 3).requires_grad_(), lesson(torch.tensor([1, 0]))
    first, second = loss.supervised(own), loss.supervised(own)
    once = first(lambda x: answer, given)
    assert float(first(lambda x: answer, given).detach()) == pytest.approx(2 * float(once.detach()))
    assert torch.equal(second(lambda x: answer, given), once)
    assert float(own.seen) == 0


def test_a_step_of_ones_own_calls_the_model_itself():
    given = []
    weight = torch.ones(2, requires_grad=True)

    def own(model, inputs, labels):
        given.append((inputs, labels))
        return (model(inputs) - model(inputs + 1)).abs().sum() + weight.sum()

    labels = torch.tensor([1, 0])
    step = loss.supervised(OwnStep(own))
    assert step(lambda x: x * weight[0], lesson(labels)).item() == 4
    assert torch.equal(given[0][0], torch.zeros(2, 1))
    assert given[0][1] is labels
    pair = Lesson((torch.zeros(2, 1), torch.ones(2, 1)), labels, torch.arange(2), names=("a", "b"))
    loss.supervised(OwnStep(lambda model, x, y: given.append(x) or weight.sum()))(lambda x: x, pair)
    assert set(given[-1]) == {"a", "b"}
    with pytest.raises(BuildError, match=r"Workload.step: returned a float"):
        loss.supervised(OwnStep(lambda model, x, y: 3.0))(lambda x: x, lesson(labels))
    with pytest.raises(BuildError, match=r"Workload.step: failed: KeyError: 'b' — give a function \(model, inputs"):
        loss.supervised(OwnStep(lambda model, x, y: {}["b"]))(lambda x: x, lesson(labels))


def test_an_epoch_is_scored_by_the_users_loss_where_only_that_understands_the_labels():
    labels = torch.zeros(4, 7)
    answer = seeded(4, 3)
    score = loss.examining(lambda out, y: (out.sum(1) - y.sum(1)).abs().mean())
    with torch.no_grad():
        found = score(lambda x: answer, lesson(labels))
    assert found.tolist() == pytest.approx([-float(answer.sum(1).abs().mean())] * 4)
    plain = lesson(torch.tensor([0, 1, 2, 0]))
    assert torch.equal(score(lambda x: answer, plain), loss.examine(lambda x: answer, plain))
