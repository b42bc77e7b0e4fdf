"""Training learns, repeats, survives a kill, stops when it must, and leaves no trace but in the parameters."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import training_nets as nets
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact
from paretune.build.passing import is_passing
from paretune.errors import BuildError, DataError, StoppedError
from paretune.forms import torch as form
from paretune.training import trainer
from paretune.training.activation_checkpoint import blocks_of
from paretune.training.average import Average
from paretune.training.distillation import Teacher, distilling
from paretune.training.lesson import demand_classes, demand_lessons
from paretune.training.loss import supervised
from paretune.training.plan import Plan
from paretune.training.trainer import Keeping, train

PLAIN = supervised(None)
QUICK = Plan(epochs=3, batch=16, learning_rate=0.02)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(nets.FEATURES, 16), nn.ReLU(), nn.Linear(16, nets.CLASSES))


def trained(tmp_path: Path, live: nn.Module, plan: Plan = QUICK, step=PLAIN, items=None, **options):
    place = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
    artifact = nets.sealed(live, place)
    module = form.restore(artifact)
    data = nets.split(nets.rows() if items is None else items)
    return module, train(module, artifact, data, step, plan, 3, **options)


def accuracy(module: nn.Module, items) -> float:
    with torch.no_grad():
        answers = module(torch.from_numpy(np.stack([x for x, _ in items])))
    return float((answers.argmax(1).numpy() == np.array([y for _, y in items])).mean())


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("plan", [
    dataclasses.replace(QUICK, epochs=12),
    dataclasses.replace(QUICK, epochs=12, optimizer="sgd", learning_rate=0.2),
    dataclasses.replace(QUICK, epochs=12, precision="bf16"),
    dataclasses.replace(QUICK, epochs=12, precision="fp16"),
])  # fmt: skip
def test_it_learns_what_unseen_examples_hold(tmp_path, plan):
    live = nets.net(0, small)
    unseen = nets.rows(300, seed=9)
    module, outcome = trained(tmp_path, live, plan, items=nets.rows(400))
    assert accuracy(live, unseen) < 0.5
    assert accuracy(module, unseen) > 0.85
    assert outcome.epochs[-1].loss < outcome.epochs[0].loss / 2
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_the_same_seed_gives_the_same_bits_and_another_others(tmp_path):
    live = nets.net()
    artifact = nets.sealed(live, tmp_path / "model")
    modules = []
    for seed in (3, 3, 4):
        modules.append(form.restore(artifact))
        train(modules[-1], artifact, nets.split(nets.rows()), PLAIN, QUICK, seed)
    assert same(modules[0], modules[1])
    assert not same(modules[0], modules[2])


def start(folder: Path, pause_s: float, *how: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, nets.__file__, str(folder), str(pause_s), *how], stderr=subprocess.PIPE)


def end_of(folder: Path):
    with safe_open(folder / "end.safetensors", "pt") as file:
        facts = file.metadata()
    return load_file(folder / "end.safetensors"), facts["curve"], int(facts["resumed"])


def kill_after(folder: Path, steps: int, *how: str) -> None:
    process = start(folder, 0.02, *how)
    wanted = folder / "checkpoints" / f"step-{steps:09d}"
    deadline = time.monotonic() + 120
    while not wanted.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    process.stderr.close()
    assert not (folder / "end.safetensors").exists()


@pytest.mark.parametrize("how", [(), ("taught",)])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, how):
    whole, broken = _made(tmp_path / "whole"), _made(tmp_path / "broken")
    kill_after(broken, 8, *how)  # in the middle of the second epoch
    process = start(broken, 0.0, *how)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told.decode()
    nets.main(whole, 0.0, *map(bool, how))
    expected, curve, _ = end_of(whole)
    found, again, resumed = end_of(broken)
    assert 8 <= resumed < 36
    assert again == curve
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_finished_training_is_taken_up_at_its_end(tmp_path):
    keeping = Keeping(tmp_path / "kept")
    live = nets.net()
    first, one = trained(tmp_path, live, keeping=keeping)
    second, two = trained(tmp_path, live, keeping=keeping)
    assert same(first, second)
    assert (one.resumed, two.resumed) == (0, 3 * 7)
    assert one.epochs == two.epochs


def test_checkpoints_of_another_training_are_refused(tmp_path):
    keeping = Keeping(tmp_path / "kept")
    trained(tmp_path, nets.net(), keeping=keeping)
    with pytest.raises(BuildError, match="checkpoints of another training"):
        trained(tmp_path, nets.net(), dataclasses.replace(QUICK, batch=8), keeping=keeping)


def test_a_training_that_is_stopped_keeps_where_it_was_and_goes_on_to_the_same_bits(tmp_path):
    whole, expected = trained(tmp_path, nets.net(), nets.PLAN)
    keeping = Keeping(tmp_path / "kept")

    def stop(fraction: float, text: str) -> None:
        if text.startswith("epoch 2"):
            raise StoppedError("the time was over", where="here")

    with pytest.raises(StoppedError):
        trained(tmp_path, nets.net(), nets.PLAN, keeping=keeping, progress=stop)
    assert [path.name for path in sorted(keeping.folder.iterdir())][-1] == "step-000000012"
    resumed, outcome = trained(tmp_path, nets.net(), nets.PLAN, keeping=keeping)
    assert outcome.resumed == 12
    assert outcome.epochs == expected.epochs
    assert same(resumed, whole)


def test_a_stop_in_the_midst_of_an_epoch_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SHOWN_EVERY_S", 0.0)
    keeping = Keeping(tmp_path / "kept")

    def stop(fraction: float, text: str) -> None:
        if fraction > 0.25:
            raise StoppedError("interrupted", where="here")

    with pytest.raises(StoppedError):
        trained(tmp_path, nets.net(), keeping=keeping, progress=stop)
    assert [path.name for path in keeping.folder.iterdir()] == ["step-000000006"]


def test_want_of_memory_is_told_and_not_taken_for_a_fault_of_the_model(tmp_path):
    def greedy(call, lesson):
        return PLAIN(call, lesson) + torch.empty(2**55).sum()

    with pytest.raises(BuildError, match="the memory is not enough for 16 examples at once — set micro_batch") as told:
        trained(tmp_path, nets.net(), step=greedy)
    assert is_passing(told.value)
    greedy_loss = supervised(lambda outputs, labels: outputs.sum() + torch.empty(2**55).sum())
    with pytest.raises(BuildError, match="the memory is not enough"):
        trained(tmp_path, nets.net(), step=greedy_loss)


def test_what_is_never_saved_is_as_it_was_before(tmp_path):
    live = nets.net()
    module, _ = trained(tmp_path, live)
    assert float(module.seen) == float(live.seen) == 0
    artifact = nets.sealed(live, tmp_path / "model")
    form.save(module, _made(tmp_path / "again"))
    again = Artifact.seal("torch", tmp_path / "again", artifact.inputs, artifact.outputs, origin=live)
    assert form.fingerprint(form.restore(again)) == form.fingerprint(module), "what is opened is what was sealed"


def test_checkpoints_of_a_training_with_another_teacher_or_data_are_refused(tmp_path):
    keeping = Keeping(tmp_path / "kept")
    trained(tmp_path, nets.net(), keeping=keeping, about=("a",))
    with pytest.raises(BuildError, match="checkpoints of another training"):
        trained(tmp_path, nets.net(), keeping=keeping, about=("b",))
    with pytest.raises(BuildError, match="checkpoints of another training"):
        trained(tmp_path, nets.net(), keeping=keeping, about=("a",), items=nets.rows(seed=5))


class Tagger(nn.Module):
    """A class for each of the rows of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(nets.FEATURES, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(len(x), -1, nets.FEATURES))


def tokens(seed: int, lengths: list[int]) -> list:
    """Sentences of four words, of which so many count."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        labels = rng.integers(0, nets.CLASSES, 4)
        labels[length:] = -100
        found.append((rng.standard_normal(4 * nets.FEATURES).astype(np.float32), labels))
    return found


def ignoring(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())


ONE_STEP = Plan(
    epochs=1, batch=64, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, warmup=0.0, clip=0.0
)


@settings(max_examples=6)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=9).filter(any), st.integers(1, 8), st.integers(0, 99))
def test_parts_of_a_batch_of_tokens_give_the_gradient_of_the_batch(lengths, micro, seed):
    items = tokens(seed, lengths)
    live = nets.net(0, Tagger)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        artifact = nets.sealed(live, root / "model", features=4 * nets.FEATURES)
        data = nets.split(items)
        teacher = Teacher(
            nets.sealed(nets.net(1, Tagger), root / "t", features=4 * nets.FEATURES), data, torch.device("cpu")
        )
        for step in (PLAIN, supervised(ignoring), distilling(teacher, None, 0.6, 3.0, True)):
            moved = []
            for plan in (ONE_STEP, dataclasses.replace(ONE_STEP, micro_batch=micro)):
                module = form.restore(artifact)
                train(module, artifact, data, step, plan, 0)
                moved.append(module.head.weight.detach() - live.head.weight.detach())
            assert float(moved[0].abs().max()) > 0
            torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=1e-5)


def test_an_odd_batch_in_pairs_leaves_no_single_example_to_batch_normalisation(tmp_path):
    plan = dataclasses.replace(QUICK, epochs=1, batch=15, micro_batch=2)
    _, outcome = trained(tmp_path, nets.net(), plan)
    assert len(outcome.epochs) == 1
    with pytest.raises(BuildError, match="fails in training: ValueError: Expected more than 1 value"):
        trained(tmp_path, nets.net(), dataclasses.replace(plan, micro_batch=1))


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path):
    live = nets.net(0, small)
    whole, _ = trained(tmp_path, live)
    parts, _ = trained(tmp_path, live, dataclasses.replace(QUICK, micro_batch=5))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not same(whole, live)


def test_a_gradient_is_clipped(tmp_path):
    live = nets.net(0, small)
    plain = Plan(epochs=1, batch=16, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=1.0, warmup=0.0)
    plan = dataclasses.replace(plain, clip=0.01)
    module, _ = trained(tmp_path, live, plan, items=nets.rows(16))
    moved = torch.cat([(a - b).flatten() for a, b in zip(module.parameters(), live.parameters(), strict=True)])
    assert float(moved.norm().detach()) == pytest.approx(0.01, rel=1e-3)


def test_every_step_is_made_at_the_rate_of_its_place(tmp_path):
    """Where the gradient is one, a parameter falls by the rate: it rises, and falls as a cosine."""
    artifact = nets.sealed(nets.net(0, small), tmp_path / "model")
    module = form.restore(artifact)
    plan = Plan(
        epochs=4, batch=16, optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.1, warmup=0.25, clip=0.0
    )
    held: list[float] = []

    def step(call, lesson):
        return call(*lesson.inputs).sum() / len(lesson)

    train(
        module, artifact, nets.split(nets.rows(64)), step, plan, 3,
        each=lambda done, total: held.append(module[2].bias[0].item()),
    )  # fmt: skip
    wanted = [0.1 * share for share in (0.25, 0.5, 0.75, 1)]
    wanted += [0.05 * (1 + math.cos(math.pi * place / 12)) for place in range(12)]
    assert (-np.diff(held)).tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_is_in_the_asked_arithmetic(tmp_path, precision, dtype):
    artifact = nets.sealed(nets.net(0, small), tmp_path / "model")
    module = form.restore(artifact)
    seen = set()
    module[0].register_forward_hook(lambda part, given, made: seen.add(made.dtype))
    train(module, artifact, nets.split(nets.rows(64)), PLAIN, dataclasses.replace(QUICK, precision=precision), 3)
    assert seen == {dtype}


def averaged(place: Path, share: float, **options) -> tuple[nn.Module, list]:
    """What a training with an average ends with, and every step's parameters."""
    live = nets.net(
        0, lambda: nn.Sequential(nn.Linear(nets.FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, nets.CLASSES))
    )
    artifact = nets.sealed(live, place)
    module = form.restore(artifact)
    held: list[list[torch.Tensor]] = []

    def each(done: int, total: int) -> None:
        held.append([one.detach().clone() for one in module.parameters()])

    plan = dataclasses.replace(QUICK, epochs=4, average=share)
    train(module, artifact, nets.split(nets.rows(96)), PLAIN, plan, 3, each=each, **options)
    return module, held


@pytest.mark.parametrize(("share", "steps"), [(0.25, 6), (0.01, 1), (0.0, 0), (0.9, 22)])
def test_the_weights_of_the_last_steps_are_averaged(tmp_path, share, steps):
    module, held = averaged(tmp_path / "model", share)
    wanted = [torch.stack(one).mean(dim=0) for one in zip(*held[-(steps or 1) :], strict=True)]
    for one, other in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-6)
    x = torch.from_numpy(np.stack([x for x, _ in nets.rows(96)]))
    with torch.no_grad():
        seen = module[0](x)
    fits = torch.allclose(module[1].running_mean, seen.mean(dim=0), atol=1e-5)
    assert fits == (steps > 0), "what batch normalisation holds is that of the mean of the weights"
    assert module[1].momentum == 0.1


def test_the_smallest_share_averages_one_step_at_least(tmp_path):
    module, held = averaged(tmp_path / "model", 0.001)
    for one, other in zip(module.parameters(), held[-1], strict=True):
        assert torch.equal(one.detach(), other)


def test_a_mean_of_short_floats_is_taken_in_float32():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    mean = Average(module, 1.0, 2000)
    for step in range(2000):
        with torch.no_grad():
            module.weight.fill_(1.0 if step < 1000 else 2.0)
        mean.take(step + 1)
    mean.lay((), None, "test")
    assert module.weight.item() == 1.5


def test_filters_of_volumes_stay_where_channels_are_to_lie_innermost(tmp_path):
    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spread, self.flat = nn.Conv3d(1, 4, 1), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4 * nets.FEATURES, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.spread(x.reshape(-1, 1, nets.FEATURES, 1, 1))
            return self.head(torch.relu(self.flat(x.squeeze(-1))).flatten(1))

    live = nets.net(0, Volumes)
    module, _ = trained(tmp_path, live, dataclasses.replace(QUICK, channels_last=True))
    assert module.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(module.spread.weight, live.spread.weight)


def test_parameters_in_float16_are_refused_by_name(tmp_path):
    with pytest.raises(BuildError, match=r"layers\.0\.weight is in float16, .* give the model in float32"):
        trained(tmp_path, nets.net().half())


def test_a_resumed_average_is_the_same(tmp_path):
    class EnoughError(Exception):
        pass

    def stop(share: float, text: str) -> None:
        if share > 0.8:
            raise EnoughError

    whole, _ = averaged(tmp_path / "a", 0.5)
    keeping = Keeping(tmp_path / "kept", 0.0)
    with pytest.raises(EnoughError):
        averaged(tmp_path / "a", 0.5, keeping=keeping, progress=stop)
    assert same(averaged(tmp_path / "a", 0.5, keeping=keeping)[0], whole)


def test_an_average_and_patience_exclude_each_other(tmp_path):
    plan = dataclasses.replace(QUICK, average=0.5, patience=1, validation=0.2)
    with pytest.raises(BuildError, match="average and patience exclude each other — choose one of them"):
        trained(tmp_path, nets.net(0, small), plan)


def test_it_stops_early_and_keeps_the_best_epoch(tmp_path):
    items = [(x, np.int64(number % 3)) for number, (x, _) in enumerate(nets.rows(90))]  # labels that say nothing
    plan = Plan(epochs=40, batch=16, learning_rate=0.02, validation=0.3, patience=2)
    module, outcome = trained(tmp_path, nets.net(0, small), plan, items=items)
    scores = [epoch.score for epoch in outcome.epochs]
    assert len(scores) == outcome.kept + 2
    assert scores[outcome.kept - 1] == max(scores)
    shorter, _ = trained(tmp_path, nets.net(0, small), dataclasses.replace(plan, patience=40), items=items,
                         score=first_high(outcome.kept))  # fmt: skip
    assert same(module, shorter)


def first_high(epoch: int):
    """A score that is highest after one epoch, whatever the model answers."""
    asked = []

    def score(call, lesson):
        asked.append(None)
        batches = -(-27 // 16)
        return torch.full((len(lesson),), float((len(asked) - 1) // batches + 1 == epoch))

    return score


def test_a_loss_that_is_no_number_names_step_and_last_good_checkpoint(tmp_path):
    seen = []

    def spoilt(call, lesson):
        seen.append(len(seen))
        return PLAIN(call, lesson) * (float("nan") if len(seen) == 10 else 1.0)

    keeping = Keeping(tmp_path / "kept", 0.0)
    told = r"the loss is nan at step 10 of 21 \(epoch 2\); the last good .* after 8 steps"
    with pytest.raises(BuildError, match=told):
        trained(tmp_path, nets.net(), step=spoilt, keeping=keeping)
    good = load_file(tmp_path / "kept" / "step-000000008" / "model.safetensors")
    assert [path.name for path in keeping.folder.iterdir()] == ["step-000000008"]
    fresh = nets.net()
    assert set(fresh.state_dict()) <= set(good)
    assert all(bool(tensor.isfinite().all()) for tensor in good.values())


def test_a_gradient_that_is_no_number_is_caught_before_it_harms(tmp_path):
    def spoilt(call, lesson):
        weight = call.model[0].weight
        return PLAIN(call, lesson) + (weight - weight.detach()).abs().sum().sqrt()

    with pytest.raises(BuildError, match="a gradient is not finite at step 1 of 21"):
        trained(tmp_path, nets.net(0, small), step=spoilt)


def test_half_precision_that_overflows_skips_steps_and_goes_on(tmp_path):
    def steep(call, lesson):
        return PLAIN(call, lesson) * 100

    live = nets.net(0, small)
    plan = dataclasses.replace(QUICK, precision="fp16", epochs=12)
    module, outcome = trained(tmp_path, live, plan, step=steep)
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert outcome.epochs[-1].loss < outcome.epochs[0].loss


def test_half_precision_that_skipped_every_step_did_not_train(tmp_path):
    def steep(call, lesson):
        return PLAIN(call, lesson) * 1e38  # overflows at the first scales

    plan = dataclasses.replace(QUICK, precision="fp16", epochs=1, batch=60)
    with pytest.raises(BuildError, match="overflowed half precision in every step"):
        trained(tmp_path, nets.net(0, small), plan, step=steep)


def test_blocks_that_compute_again_give_the_same_bits(tmp_path):
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.lin, self.norm, self.drop = nn.Linear(width, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            ran.append(self.training)
            return self.drop(torch.relu(self.norm(self.lin(x)))) * scale

    def blocks() -> nn.Module:
        return nn.Sequential(nn.Sequential(Block(nets.FEATURES), Block(16)), nn.Linear(16, nets.CLASSES))

    ran: list[bool] = []
    live = nets.net(0, blocks)
    plain, _ = trained(tmp_path, live)
    once = len(ran)
    ran.clear()  # a method of the block is closed over it
    before = form.fingerprint(live)
    again, _ = trained(tmp_path, live, dataclasses.replace(QUICK, activation_checkpointing=True))
    assert len(ran) == 2 * once, "on the way back as well"
    ran.clear()
    assert same(plain, again)
    assert form.fingerprint(again) == before, "nothing is left laid over a block"
    assert blocks_of(live) == list(live[0])
    shared = nn.Module()
    shared.encoder, shared.decoder = nn.ModuleList(live[0]), nn.ModuleList(live[0])
    assert blocks_of(shared) == list(live[0]), "a block that stands in two containers is one"
    with pytest.raises(BuildError, match="no blocks to compute again"):
        trained(tmp_path, nets.net(0, small), dataclasses.replace(QUICK, activation_checkpointing=True))
    with pytest.raises(BuildError, match="exclude each other"):
        trained(tmp_path, live, dataclasses.replace(QUICK, activation_checkpointing=True, compile=True))


def test_blocks_that_read_buffers_which_they_change_compute_the_same_again(tmp_path):
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.lin = nn.utils.parametrizations.spectral_norm(nn.Linear(width, 16))
            self.register_buffer("scale", torch.ones(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lin(x) * self.scale
            if self.training:
                self.scale = 0.9 * self.scale + 0.1 * x.detach().std(0)  # another tensor, not another value
            return torch.relu(x) ** 2

    def blocks() -> nn.Module:
        return nn.Sequential(nn.Sequential(Block(nets.FEATURES), Block(16)), nn.Linear(16, nets.CLASSES))

    live = nets.net(0, blocks)
    plain, _ = trained(tmp_path, live)
    again, _ = trained(tmp_path, live, dataclasses.replace(QUICK, activation_checkpointing=True))
    assert same(plain, again)
    assert not torch.equal(again[0][0].scale, live[0][0].scale)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_training_learns_the_same(tmp_path):
    live = nets.net(0, small)
    plain, _ = trained(tmp_path, live)
    compiled, _ = trained(tmp_path, live, dataclasses.replace(QUICK, compile=True))
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert form.fingerprint(compiled) == form.fingerprint(live)


def test_what_cannot_learn_is_refused_in_a_line(tmp_path):
    frozen = nets.net().requires_grad_(False)
    with pytest.raises(BuildError, match="all 6 parameters of the model are frozen"):
        trained(tmp_path, frozen)
    with pytest.raises(BuildError, match="no parameters"):
        trained(tmp_path, nn.Flatten())
    program = torch.export.export(nets.net(), (torch.zeros(2, nets.FEATURES),)).module()
    with pytest.raises(BuildError, match="exported program"):
        train(program, nets.sealed(nets.net(), tmp_path / "p"), nets.split(nets.rows()), PLAIN, QUICK, 0)
    with pytest.raises(BuildError, match="patience needs a validation part"):
        trained(tmp_path, nets.net(), dataclasses.replace(QUICK, patience=1))
    with pytest.raises(BuildError, match="fails in training: ValueError: Expected more than 1 value"):
        trained(tmp_path, nets.net(), dataclasses.replace(QUICK, batch=1))
    with pytest.raises(DataError, match="float64 and the model takes float32"):
        trained(tmp_path, nets.net(), items=[(x.astype("float64"), y) for x, y in nets.rows()])


def test_data_that_teaches_nothing_is_refused():
    with pytest.raises(BuildError, match="needs training data"):
        demand_lessons(None, "here")
    alike = [(x, np.int64(2)) for x, _ in nets.rows(30)]
    with pytest.raises(BuildError, match="all of its 30 examples are of class 2"):
        demand_classes(nets.split(alike))
    with pytest.raises(BuildError, match="no labels"):
        demand_classes(nets.split([(x, None) for x, _ in alike]))
    demand_classes(nets.split([*alike, (alike[0][0], np.int64(0))]))
    demand_classes(nets.split([(x, np.float32(1)) for x, _ in alike]))


def test_a_mask_of_minus_infinity_does_not_keep_it_from_its_checkpoints(tmp_path):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(nets.FEATURES, nets.CLASSES)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lin(x) * self.mask.softmax(1).sum() / 4

    live, keeping = nets.net(0, Masked), Keeping(tmp_path / "checkpoints", 0.0)

    def stopping(fraction: float, text: str) -> None:
        if fraction > 0.5:
            raise StoppedError("the time was over")

    with pytest.raises(StoppedError):
        trained(tmp_path, live, keeping=keeping, progress=stopping)
    module, outcome = trained(tmp_path, live, keeping=keeping)
    assert outcome.resumed
    assert same(module, trained(tmp_path, live)[0])


def test_frozen_parameters_stay(tmp_path):
    live = nets.net(0, small)
    live[0].requires_grad_(False)
    module, _ = trained(tmp_path, live)
    assert torch.equal(module[0].weight, live[0].weight)
    assert not torch.equal(module[2].weight, live[2].weight)


def test_nothing_but_the_parameters_is_changed(tmp_path):
    live = nets.net(0, small)
    before = form.fingerprint(live)
    user = Accelerator(mixed_precision="no", cpu=True, gradient_accumulation_steps=3)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    draws = [random.random(), np.random.random(), float(torch.rand(()))]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    artifact = nets.sealed(live, tmp_path / "model")
    module = form.restore(artifact)
    plan = dataclasses.replace(QUICK, precision="bf16", channels_last=True)
    with torch.inference_mode():
        train(module, artifact, nets.split(nets.rows()), PLAIN, plan, 3)
    assert [random.random(), np.random.random(), float(torch.rand(()))] == draws
    assert form.fingerprint(module) == before
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not torch.are_deterministic_algorithms_enabled()
    assert (user.mixed_precision, user.gradient_accumulation_steps) == ("no", 3)
    AcceleratorState._reset_state()
    GradientState._reset_state()


def test_images_in_channels_last_learn_the_same(tmp_path):
    from paretune.testing import samples

    artifact = samples.artifact("torch")
    found = []
    for channels_last in (False, True):
        module = form.restore(artifact)
        plan = dataclasses.replace(QUICK, channels_last=channels_last)
        train(module, artifact, samples.examples(), PLAIN, plan, 0)
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        found.append(form.call(module, artifact, samples.inputs(artifact, 4))[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2, atol=1e-3)


def test_a_frozen_batch_normalisation_keeps_its_statistics(tmp_path):
    live = nets.net()
    live.layers[0].requires_grad_(False)
    live.layers[1].requires_grad_(False)
    before = live.layers[1].running_mean.clone()
    module, _ = trained(tmp_path, live)
    assert torch.equal(module.layers[1].running_mean, before)
    assert torch.equal(module.layers[0].weight, live.layers[0].weight)
    assert not torch.equal(module.layers[4].weight, live.layers[4].weight)
    (tmp_path / "free").mkdir()
    free, _ = trained(tmp_path / "free", nets.net())
    assert not torch.equal(free.layers[1].running_mean, before)


def test_progress_tells_epoch_loss_score_and_time(tmp_path):
    told = []
    plan = dataclasses.replace(QUICK, validation=0.2)
    trained(tmp_path, nets.net(), plan, progress=lambda fraction, text: told.append((fraction, text)))
    assert [fraction for fraction, text in told if "epoch" in text][-1] == 1
    assert [round(fraction, 3) for fraction, _ in told][-3:] == [round(n / 3, 3) for n in (1, 2, 3)]
    assert told[-1][1].startswith("epoch 3 of 3, loss ")
    assert ", score 0." in told[-1][1]
    assert told[-1][1].endswith(", 0:00 left")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_processes_learn_what_one_does(tmp_path):
    # accelerate launch starts several processes on GPUs only; on CPUs it leaves that to torch or MPI
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    command += ["--master_port", str(free_port())]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("parallel_nets.py")), str(tmp_path)],
        capture_output=True, text=True, timeout=200,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = (tmp_path / "told-1").read_text().splitlines()
    assert "1 examples to a step cannot be shared by 2 processes" in told[0]
    assert "compile needs a single process" in told[1]
    mine, others = (load_file(tmp_path / f"normed-{place}.safetensors") for place in (0, 1))
    assert all(torch.equal(tensor, others[name]) for name, tensor in mine.items())
    assert mine["layers.1.running_mean"].any()
    found = load_file(tmp_path / "end.safetensors")
    plan = Plan(epochs=2, batch=15, micro_batch=4, learning_rate=0.02)
    live = nets.net(0, small)
    module, _ = trained(tmp_path, live, plan)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(tensor, live.state_dict()[name], atol=1e-2)
