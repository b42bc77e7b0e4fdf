"""A ticket lives on a few weights, rewound to early values; a random one is of the same shape; both can be redeemed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import ArtifactError, BuildError
from paretune.forms import torch as form
from paretune.techniques.torch_lottery_ticket import TorchLotteryTicket
from paretune.testing import TechniqueConformance
from paretune.training import healing
from paretune.training.ticket import FILE, redeem

QUICK = TorchLotteryTicket(epochs=2, batch=32, learning_rate=0.02, rounds=2, rate=0.5, rewind=0.2, alpha=0.0)
WEIGHTS = ("layers.0.weight", "layers.4.weight")


class TestTorchLotteryTicket(TechniqueConformance):
    technique = TorchLotteryTicket


def fitted(root, live: nn.Module, **options) -> Fit:
    return Fit(nets.split(nets.rows(160)), None, nets.sealed(live, root / "original"), 0, root / "scratch", **options)


def drawn(root, live: nn.Module | None = None, technique: TorchLotteryTicket = QUICK, **options) -> Artifact:
    fit = fitted(root, nets.net() if live is None else live, **options)
    return technique.apply(fit.teacher, fit)


def alive(artifact: Artifact) -> dict[str, torch.Tensor]:
    named = dict(form.restore(artifact).named_parameters())
    return {name: named[name] != 0 for name in WEIGHTS}


def counts(artifact: Artifact) -> list[int]:
    return [int(mask.sum()) for mask in alive(artifact).values()]


@pytest.mark.parametrize("scope", ["global", "per_layer"])
def test_a_random_ticket_has_as_many_weights_in_every_layer_and_other_ones(tmp_path, scope):
    asked = dataclasses.replace(QUICK, scope=scope)
    winning = drawn(tmp_path / "winning", technique=asked)
    random = drawn(tmp_path / "random", technique=dataclasses.replace(asked, ticket="random"))
    assert sum(counts(winning)) == 144 - round(0.75 * 144)
    assert counts(winning) == counts(random)
    assert any(bool((mask != alive(random)[name]).any()) for name, mask in alive(winning).items())
    assert len([note for note in winning.notes if note.startswith(("all weights: ", "sparsity 50.0%: 2 epochs"))]) == 2


def test_the_ticket_holds_early_weights_of_what_lives(tmp_path):
    live = nets.net()
    technique = dataclasses.replace(QUICK, rewind=0.0)
    made = drawn(tmp_path, live, technique)
    assert sorted(made.files) == sorted(["model.safetensors", "module.json", FILE])
    early = nets.net(1)
    redeem(early, made.root / FILE)
    mask = alive(made)
    for (name, now), (_, first) in zip(early.named_parameters(), live.named_parameters(), strict=True):
        assert torch.equal(now, first.masked_fill(~mask[name], 0.0) if name in mask else first)
    assert not torch.equal(form.restore(made).layers[0].weight, early.layers[0].weight)  # it was trained since
    with pytest.raises(ArtifactError, match="is no ticket of this model"):
        redeem(nn.Linear(3, 3), made.root / FILE)


def test_rewinding_goes_back_to_the_asked_step(tmp_path):
    made = drawn(tmp_path, technique=dataclasses.replace(QUICK, rewind=1.0, rounds=1))
    late = nets.net(1)
    redeem(late, made.root / FILE)
    alone = dataclasses.replace(QUICK, rewind=0.5, rounds=1, epochs=2)
    half = nets.net(1)
    redeem(half, drawn(tmp_path / "half", technique=alone).root / FILE)
    # the end of the first training: its batch normalisation has seen every step
    assert int(late.layers[1].num_batches_tracked) == 10
    assert int(half.layers[1].num_batches_tracked) == 5


def test_every_round_begins_with_the_early_weights_of_what_lives(tmp_path, monkeypatch):
    starts: list[dict[str, torch.Tensor]] = []
    real = healing.heal

    def heard(module, *given, **named):
        starts.append({name: tensor.detach().clone() for name, tensor in module.named_parameters()})
        return real(module, *given, **named)

    monkeypatch.setattr(healing, "heal", heard)
    drawn(tmp_path, technique=dataclasses.replace(QUICK, rewind=0.0))
    first, *later = starts
    for start, share in zip(later, (0.5, 0.75), strict=True):
        alive = {name: start[name] != 0 for name in WEIGHTS}
        assert sum(int((~mask).sum()) for mask in alive.values()) == round(share * 144)
        assert all(torch.equal(start[name][mask], first[name][mask]) for name, mask in alive.items())
        assert all(torch.equal(start[name], first[name]) for name in start.keys() - set(WEIGHTS))


def test_fresh_weights_are_new_and_the_same_every_time(tmp_path):
    technique = dataclasses.replace(QUICK, start="fresh", rewind=0.0, rounds=1)
    live = nets.net(5)
    live.layers[4].bias.requires_grad_(False)
    first, again = nets.net(1), nets.net(1)
    redeem(first, drawn(tmp_path / "a", live, technique).root / FILE)
    redeem(again, drawn(tmp_path / "b", live, technique).root / FILE)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.layers[0].bias, live.layers[0].bias)
    assert torch.equal(first.layers[4].bias, live.layers[4].bias)


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("round_", [1, 2])
def test_a_kill_in_any_round_changes_no_bit(tmp_path, round_):
    straight = drawn(tmp_path / "straight")
    fit = fitted(tmp_path, nets.net(), checkpoints=tmp_path / "checkpoints")

    def stop(share: float, text: str) -> None:
        if text.startswith(f"training {round_ + 1} of 3, epoch 2"):
            raise Killed

    with pytest.raises(Killed):
        QUICK.apply(fit.teacher, dataclasses.replace(fit, progress=stop))
    assert (tmp_path / "checkpoints" / f"round-{round_}").is_dir()
    resumed = QUICK.apply(fit.teacher, dataclasses.replace(fit, scratch=tmp_path / "again"))
    assert resumed.digest == straight.digest


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(nets.FEATURES, nets.CLASSES)
        self.scale = nn.Parameter(torch.ones(nets.CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * self.scale


@pytest.mark.parametrize(
    ("knobs", "live", "told"),
    [
        ({"patience": 1, "validation": 0.1, "rewind": 0.9}, nets.Net, "patience may keep an epoch before the early"),
        ({"start": "fresh"}, Own, r"the model \(Own\) cannot be given new first weights"),
        ({"keep": ("*",)}, Own, "all 1 are spared"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(tmp_path, knobs, live, told):
    with pytest.raises(BuildError, match=told) as caught:
        drawn(tmp_path, nets.net(0, live), dataclasses.replace(QUICK, **knobs))
    assert "\n" not in str(caught.value)
