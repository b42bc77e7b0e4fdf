"""Images are mirrored and moved as told, the same ones whatever the parts of a batch, and the teacher sees them so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paretune.ask import source
from paretune.ask.data import Split
from paretune.errors import BuildError, StoppedError
from paretune.forms import torch as form
from paretune.testing import samples
from paretune.training import distillation
from paretune.training.augmentation import Augmentation
from paretune.training.distillation import Teacher, distilling
from paretune.training.healing import heal, tutored
from paretune.training.lesson import Lesson, Lessons, demand_lessons
from paretune.training.loss import supervised
from paretune.training.order import Places, parted
from paretune.training.plan import Healing, Plan
from paretune.training.trainer import Keeping, train


def lesson(*inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Lesson:
    return Lesson(inputs, labels, torch.arange(len(inputs[0])))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_every_image_is_one_shifted_by_at_most_an_eighth_and_maybe_mirrored(height, width, seed):
    images = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(seed))
    made = Augmentation("shift_flip", seed, 3)
    found = made.of(lesson(images), 7).inputs[0]
    assert found.shape == images.shape
    far = height // 8, width // 8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (far[0],) * 2, (far[1],) * 2))
    for before, after in zip(padded, found.numpy(), strict=True):
        windows = [
            before[:, down : down + height, right : right + width]
            for down in range(2 * far[0] + 1) for right in range(2 * far[1] + 1)
        ]  # fmt: skip
        assert any(np.array_equal(after, one) or np.array_equal(after, one[..., ::-1]) for one in windows)


def test_about_half_are_mirrored_and_every_shift_comes_up():
    images = torch.arange(16.0).expand(2000, 1, 16, 16).contiguous()  # every row is 0 … 15
    made = Augmentation("flip", 0, 2000)
    found = made.of(lesson(images), 1).inputs[0][:, 0, 0, 0]
    assert set(found.tolist()) == {0.0, 15.0}
    assert 900 < int((found == 15).sum()) < 1100
    made = Augmentation("shift_flip", 0, 2000)
    moved = made.of(lesson(images), 1).inputs[0][:, 0, 8, 8]
    assert set(moved.tolist()) == {5.0, 6.0, 7.0, 8.0, 9.0, 10.0}, "8 or, mirrored, 7; by -2 … 2 pixels"


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_one_rectangle_of_a_quarter_of_each_side_is_erased_and_the_rest_stays_in_place(height, width, seed):
    images = 1 + torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(seed))
    found = Augmentation("erase_flip", seed, 3).of(lesson(images), 7).inputs[0]
    for before, after in zip(images, found, strict=True):
        gone = after == 0
        assert torch.equal(gone[0], gone[1]), "in all channels"
        rows, columns = gone[0].any(dim=1), gone[0].any(dim=0)
        assert torch.equal(gone[0], rows[:, None] & columns), "a rectangle"
        for line, side in ((rows, height), (columns, width)):
            (places,) = line.nonzero(as_tuple=True)
            assert 1 <= len(places) <= max(side // 4, 1)
            assert int(places[-1] - places[0]) == len(places) - 1
            cut = int(places[0]) == 0 or int(places[-1]) == side - 1
            assert cut or len(places) == max(side // 4, 1)
        assert any(torch.equal(after, one.masked_fill(gone, 0)) for one in (before, before.flip(-1)))


def test_every_pixel_is_erased_as_often_but_near_the_borders():
    images = torch.ones(4000, 1, 16, 16)
    share = (Augmentation("erase_flip", 0, 4000).of(lesson(images), 1).inputs[0][:, 0] == 0).float().mean(dim=0)
    inner = share[2:-2, 2:-2]
    assert 0.04 < float(inner.min()) <= float(inner.max()) < 0.09, "16 of 256"
    assert 0 < float(share[0, 0]) < 0.04


def blended(made: Augmentation, images: torch.Tensor, view: int = 1) -> torch.Tensor:
    def others(places: Places) -> Lesson:
        return Lesson((images[places],), None, torch.from_numpy(places))

    return made.of(lesson(images), view, others).inputs[0]


def test_a_blend_is_a_line_between_an_image_and_at_most_half_of_another_each_mirrored_or_not():
    images = torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    made, plain = Augmentation("mix_flip", 0, 600), Augmentation("flip", 0, 600)
    found, partners = blended(made, images), made.partners(1)
    shares = []
    for place, after in enumerate(found):
        own, other = images[place], images[partners[place]]
        fits = []
        for one in (own, own.flip(-1)):
            for beside in (other, other.flip(-1)):
                away = (beside - one).flatten()
                share = float(((after - one).flatten() @ away) / (away @ away).clamp_min(1e-12))
                fits.append((float((after - one - share * (beside - one)).abs().max()), share))
        off, share = min(fits)
        assert off < 1e-5
        assert -1e-5 < share < 0.5
        shares.append(share)
    assert np.histogram(shares, 5, (0, 0.5))[0].min() > 80, "as much of the other one in any measure"
    assert not torch.equal(found, plain.of(lesson(images), 1).inputs[0])
    assert found.is_contiguous()


def test_no_example_that_is_set_aside_is_blended_into_another():
    made = Augmentation("mix_flip", 3, 500, validation=0.4)
    learnt, aside = parted(500, 0.4, 3)
    partners = np.concatenate([made.partners(view) for view in range(1, 11)])
    assert set(partners) == set(learnt)
    assert not set(partners) & set(aside)
    assert not np.array_equal(made.partners(1), made.partners(2))


def test_a_blend_is_the_same_whatever_lesson_it_comes_in_and_in_any_order_of_memory():
    images = torch.randn(40, 3, 8, 8)
    made = Augmentation("mix_flip", 1, 40)
    whole = blended(made, images, 2)
    places = torch.tensor([4, 0, 33])

    def others(asked: Places) -> Lesson:
        return Lesson((images[asked].contiguous(memory_format=torch.channels_last),), None, torch.from_numpy(asked))

    few = images[places].contiguous(memory_format=torch.channels_last)
    found = made.of(Lesson((few,), None, places), 2, others).inputs[0]
    assert torch.equal(found, whole[places])
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_of_seed_and_view_alone():
    made = Augmentation("shift_flip", 3, 8)
    assert np.array_equal(made.draws(5), Augmentation("shift_flip", 3, 8, views=9).draws(5))
    assert not np.array_equal(made.draws(5), made.draws(6))
    assert not np.array_equal(made.draws(5), Augmentation("shift_flip", 4, 8).draws(5))
    assert not Augmentation("none", 3, 8)


def test_views_come_again_in_turn_or_never():
    assert [Augmentation("flip", 0, 8, views=3).view(epoch) for epoch in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert [Augmentation("flip", 0, 8).view(epoch) for epoch in range(4)] == [1, 2, 3, 4]


def test_an_example_has_one_look_in_a_view_whatever_lesson_it_comes_in():
    images = torch.randn(5, 1, 16, 16)
    made = Augmentation("shift_flip", 1, 5)
    whole = made.of(lesson(images), 2).inputs[0]
    places = torch.tensor([4, 0, 3])
    assert torch.equal(made.of(Lesson((images[places],), None, places), 2).inputs[0], whole[places])


def test_labels_other_inputs_and_the_order_of_memory_stay():
    images = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    other, labels = torch.randn(4, 5), torch.arange(4)
    made = Augmentation("shift_flip", 0, 4)
    before = lesson(images, other, labels=labels)
    after = made.of(before, 3)
    assert after.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert after.inputs[1] is other
    assert after.labels is labels
    assert (before.view, after.view) == (0, 3)


def test_what_cannot_be_mirrored_is_told():
    made = Augmentation("flip", 0, 4)
    with pytest.raises(BuildError, match=r"no input is an image .*: float32\[4, 6\] — use augment=none"):
        made.of(lesson(torch.zeros(4, 6)), 1)
    with pytest.raises(BuildError, match="lie on the image's pixels"):
        made.of(lesson(torch.zeros(4, 1, 8, 8), labels=torch.zeros(4, 8, 8)), 1)


QUICK = Plan(epochs=2, batch=16, learning_rate=0.02, augment="shift_flip")


def trained(plan: Plan, **options) -> nn.Module:
    artifact = samples.artifact("torch")
    module = form.restore(artifact)
    train(module, artifact, samples.examples(), supervised(None), plan, 0, **options)
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_resumed_training_sees_the_same_images(tmp_path):
    whole, plain = trained(QUICK), trained(dataclasses.replace(QUICK, augment="none"))
    assert not same(whole, plain)

    class EnoughError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise EnoughError

    with pytest.raises(EnoughError):
        trained(QUICK, keeping=Keeping(tmp_path / "kept", 0.0), each=stop)
    assert same(trained(QUICK, keeping=Keeping(tmp_path / "kept")), whole)


def test_a_teacher_answers_the_changed_pixels(tmp_path):
    artifact = samples.artifact("torch")
    teacher = Teacher(artifact, samples.examples(), torch.device("cpu"))
    seen: list[Lesson] = []

    def around(step):
        def kept(call, lesson):
            seen.append(lesson)
            return step(call, lesson)

        return kept

    plan = Healing(epochs=1, batch=16, augment="flip")
    fit = samples.fit(artifact, tmp_path)
    heal(form.restore(artifact), artifact, fit, plan, name="here", around=around)
    module = form.restore(artifact)
    for one in seen:
        with torch.no_grad():
            torch.testing.assert_close(teacher(one), module(one.inputs[0]))
            known = teacher(dataclasses.replace(one, view=0))
        assert not torch.allclose(teacher(one), known)
        same = distilling(teacher, None, 1.0, 4.0, True)(lambda *x, one=one: teacher(one).requires_grad_(), one)
        assert abs(float(same.detach())) < 1e-5
    assert len(seen) == 2


def test_views_without_augmentation_are_refused():
    with pytest.raises(BuildError, match=r"training.views: views needs images that are augmented — set augment too"):
        trained(dataclasses.replace(QUICK, augment="none", views=2))


def test_each_view_is_answered_once_and_taught_as_if_it_were_asked_anew(tmp_path):
    artifact = samples.artifact("torch")
    plan = Healing(epochs=5, batch=16, augment="shift_flip", views=2)
    fit = samples.fit(artifact, tmp_path)
    data = demand_lessons(fit.train, "here")
    asked: list[str] = []

    def healed(*, remember: bool, **options) -> nn.Module:
        module = form.restore(artifact)
        augmentation = Augmentation("shift_flip", fit.seed, len(data), views=2)
        teacher = Teacher(
            artifact, data, torch.device("cpu"), lambda share, text: asked.append(text), remember, augmentation
        )
        heal(module, artifact, dataclasses.replace(fit, **options), plan, name="here", teacher=teacher)
        return module

    known = healed(remember=True)
    assert set(asked) == {"asking the original, view 1", "asking the original, view 2"}
    assert len(asked) == 2 * -(-len(data) // 64), "each view once in five epochs"
    asked.clear()
    anew = healed(remember=False)
    assert not asked
    for ours, theirs in zip(known.state_dict().values(), anew.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def stop(share: float, text: str) -> None:
        if share > 0.7:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        healed(remember=True, checkpoints=tmp_path / "kept", progress=stop)
    assert same(healed(remember=True, checkpoints=tmp_path / "kept"), known)


def asked_of(answers: dict[int, torch.Tensor], artifact, data, consensus: float, views: int) -> torch.Tensor:
    """What a teacher says to the first four examples in view 1; what it says to each view is put into ``answers``."""
    augmentation = Augmentation("shift_flip", 3, len(data), views=views)
    lessons = Lessons(data, artifact, torch.device("cpu"))
    wise = Teacher(artifact, data, torch.device("cpu"), augmentation=augmentation, consensus=consensus)
    alone = Teacher(artifact, data, torch.device("cpu"), augmentation=augmentation)
    lesson = lessons.at(np.arange(4))
    answers |= {view: alone(augmentation.of(lesson, view, lessons.at)) for view in range(1, views + 1)}
    return wise(augmentation.of(lesson, 1, lessons.at))


def healed(tmp_path, *plans: Healing) -> list[nn.Module]:
    """The same module, taught by each plan."""
    artifact = samples.artifact("torch")
    modules = [form.restore(artifact) for _ in plans]
    for module, plan in zip(modules, plans, strict=True):
        heal(module, artifact, samples.fit(artifact, tmp_path), plan, name="here")
    return modules


def test_the_original_is_asked_of_blends_and_each_view_of_them_once(tmp_path):
    plan = Healing(epochs=2, batch=16, augment="mix_flip", alpha=1.0)
    modules = healed(tmp_path, dataclasses.replace(plan, views=2), plan)
    assert not same(modules[0], form.restore(samples.artifact("torch")))
    for ours, theirs in zip(modules[0].state_dict().values(), modules[1].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_labels_of_blends_are_those_of_either_by_their_shares(tmp_path):
    images, labels = torch.zeros(4000, 1, 2, 2), torch.arange(4000)
    made = Augmentation("mix_flip", 0, 4000)
    images[:, 0, 0, 0] = labels

    def others(places: Places) -> Lesson:
        return Lesson((images[places],), labels[places], torch.from_numpy(places))

    after = made.of(lesson(images, labels=labels), 1, others)
    partners, shares = made.partners(1), 0.5 * made.draws(1)[:, 2]
    swapped = (after.labels != labels).numpy()
    assert np.array_equal(after.labels.numpy()[swapped], partners[swapped])
    for low in np.arange(0, 0.5, 0.1):
        part = (shares >= low) & (shares < low + 0.1)
        assert abs(swapped[part].mean() - low - 0.05) < 0.05
    hidden = labels.clone()
    hidden[::2] = -1
    kept = made.of(
        lesson(images, labels=hidden), 1, lambda places: dataclasses.replace(others(places), labels=hidden[places])
    ).labels
    assert torch.equal(kept < 0, hidden < 0), "what does not count is neither given nor taken"
    values = labels.double()[:, None]
    blended = made.of(
        lesson(images, labels=values), 1, lambda places: dataclasses.replace(others(places), labels=values[places])
    ).labels
    assert torch.equal(blended[:, 0].long(), after.labels)
    alone = made.of(lesson(images), 1, lambda places: Lesson((images[places],), None, torch.from_numpy(places)))
    assert alone.labels is None


def test_labels_of_blends_are_learnt_too(tmp_path):
    artifact = samples.artifact("torch")
    module = form.restore(artifact)
    plan = dataclasses.replace(QUICK, augment="mix_flip")
    tutored(module, artifact, samples.fit(artifact, tmp_path), plan, name="here")
    assert not same(module, form.restore(artifact))


@pytest.mark.parametrize("views", [0, 2])
def test_a_consensus_on_blends_is_that_of_both_mirror_images(tmp_path, views):
    artifact = samples.artifact("torch")
    data = demand_lessons(samples.fit(artifact, tmp_path).train, "here")
    made = Augmentation("mix_flip", 3, len(data), views=views)
    lessons = Lessons(data, artifact, torch.device("cpu"))
    wise, plain = (
        Teacher(artifact, data, torch.device("cpu"), augmentation=made, consensus=weight) for weight in (0.5, 0.0)
    )
    given = made.of(lessons.at(np.arange(4)), 1, lessons.at)
    mirrored = dataclasses.replace(given, inputs=(given.inputs[0].flip(-1),), view=9)
    one, other = plain(given), plain._answer(mirrored)
    assert not torch.allclose(one, other, atol=1e-3)
    torch.testing.assert_close(wise(given), 0.75 * one + 0.25 * other)


@pytest.mark.parametrize("consensus", [0.25, 1.0])
def test_a_consensus_draws_every_answer_to_the_mean_of_all_views(tmp_path, consensus):
    artifact = samples.artifact("torch")
    data = demand_lessons(samples.fit(artifact, tmp_path).train, "here")
    answers: dict[int, torch.Tensor] = {}
    told = asked_of(answers, artifact, data, consensus, views=3)
    mean = (answers[1] + answers[2] + answers[3]) / 3
    assert not torch.allclose(answers[1], answers[2], atol=1e-3), "views differ"
    torch.testing.assert_close(told, answers[1] + consensus * (mean - answers[1]))


def test_a_consensus_is_taught(tmp_path):
    plan = Healing(epochs=2, batch=16, augment="shift_flip", views=2)
    assert not same(*healed(tmp_path, plan, dataclasses.replace(plan, consensus=1.0)))


@pytest.mark.parametrize("options", [{}, {"augment": "shift_flip"}, {"augment": "shift_flip", "views": 1}])
def test_a_consensus_needs_views_that_come_again(tmp_path, options):
    artifact = samples.artifact("torch")
    plan = Healing(epochs=1, consensus=0.5, **options)
    with pytest.raises(BuildError, match=r"here\.consensus: .* only where views of the data come again"):
        heal(form.restore(artifact), artifact, samples.fit(artifact, tmp_path), plan, name="here")


def test_answers_that_lie_on_the_image_have_no_consensus(tmp_path):
    images = [(image, 0) for image in np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)]
    data = Split.whole(images, None, "train")
    artifact, _ = source.find(nn.Conv2d(3, 2, 3, padding=1), data, tmp_path)
    augmentation = Augmentation("flip", 0, len(data), views=2)
    with pytest.raises(BuildError, match=r"one\.consensus: .* in shape \[batch, 2, 8, 8\], which moves as"):
        Teacher(artifact, data, torch.device("cpu"), augmentation=augmentation, consensus=0.5, name="one")


def test_answers_that_do_not_fit_into_memory_have_no_consensus(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "REMEMBERED_BYTES", 8)
    artifact = samples.artifact("torch")
    plan = Healing(epochs=1, consensus=0.5, augment="flip", views=2)
    with pytest.raises(BuildError, match="answers to 2 views do not fit into memory, and a consensus needs them all"):
        heal(form.restore(artifact), artifact, samples.fit(artifact, tmp_path), plan, name="here")
