"""Heads and feed-forward units are found however a transformer is written, and taking them out is as zeroing them."""

from __future__ import annotations

import attention_nets as attention
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.forms.torch_edits import Unpack, difference, make
from paretune.forms.torch_hidden import Hidden, found, narrow
from paretune.forms.torch_run import runner, twin


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    artifact = attention.sealed(attention.encoder(attention.Named), tmp_path_factory.mktemp("model"))
    return runner(artifact, attention.split())


def model(kind: str) -> nn.Module:
    module = attention.encoder({"named": attention.Named, "projected": attention.Projected}.get(kind))
    if kind == "torch":
        Unpack(("layers.layers.0.self_attn", "layers.layers.1.self_attn")).apply(module)
    return module


PARTS = {
    "named": ("attention.output.dense", {"query", "key", "value"}, "output.dense", {"intermediate"}),
    "projected": ("o_proj", {"q_proj", "k_proj", "v_proj"}, "down", {"gate", "up"}),
    "torch": ("self_attn.out_proj", {"q_proj", "k_proj", "v_proj"}, "linear2", {"linear1"}),
}


@pytest.mark.parametrize("kind", PARTS)
def test_heads_and_units_are_found(run, kind):
    able, unable = found(model(kind), run)
    into, sources, then, units = PARTS[kind]
    assert unable == ()
    assert [one.size for one in able] == [attention.WIDTH // attention.HEADS, 1] * 2
    assert [one.count for one in able] == [attention.HEADS, attention.INNER] * 2
    for heads, inner in (able[:2], able[2:]):
        assert heads.into.endswith(into)
        assert inner.into.endswith(then)
        assert {path.rpartition(".")[2] for path in heads.sources} == sources
        assert {path.rpartition(".")[2] for path in inner.sources} == units


@pytest.mark.parametrize("kind", PARTS)
def test_what_is_taken_out_answers_as_zeros_would_and_is_made_again_from_edits(run, kind):
    module = model(kind)
    able, _ = found(module, run)
    kept = [[0, 2], list(range(1, attention.INNER, 3)), [1], list(range(5))]
    small = twin(module)
    for hidden, units in zip(able, kept, strict=True):
        narrow(small, hidden, units)

    def emptied(hidden: Hidden, units: list[int]):
        def hook(part, given):
            left = torch.zeros(given[0].shape[-1])
            left[hidden.columns(units)] = 1
            return (given[0] * left,)

        return hook

    for hidden, units in zip(able, kept, strict=True):
        module.get_submodule(hidden.into).register_forward_pre_hook(emptied(hidden, units))
    torch.testing.assert_close(run(small), run(module), rtol=1e-4, atol=1e-5)

    again = model(kind)
    for edit in difference(again, small):
        edit.apply(again)
    again.load_state_dict(small.state_dict())
    assert torch.equal(run(again)[0], run(small)[0])


def test_a_number_of_heads_that_is_written_into_forward_is_told(run):
    able, unable = found(attention.encoder(attention.Fixed), run)
    assert able == ()
    assert unable == ("layers.0.o_proj", "layers.1.o_proj")


class Tied(nn.Module):
    """Layers whose widths are nobody's to change: tied, used twice, with a shortcut, normalised in between."""

    def __init__(self) -> None:
        super().__init__()
        size = nets.FEATURES
        self.one, self.same, self.twice = nn.Linear(size, 8), nn.Linear(size, 8), nn.Linear(8, 8)
        self.same.weight = self.one.weight
        self.seen, self.norm, self.free = nn.Linear(8, 10), nn.LayerNorm(10), nn.Linear(10, 12)
        self.last, self.head = nn.Linear(12, 8), nn.Linear(8, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.one(x) * self.same(x)))
        y = self.last(torch.relu(self.free(self.norm(self.seen(x)))))
        return self.head(x + y)


def test_widths_that_something_else_hangs_on_are_left(tmp_path):
    module = nets.net(0, Tied)
    run = runner(nets.sealed(module, tmp_path / "net"), nets.split(nets.rows(20)))
    able, unable = found(module, run)
    assert [(one.into, one.sources) for one in able] == [("last", ("free",))]
    assert unable == ()


class Square(nn.Module):
    """Attention whose heads are as many as the columns of each."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(16, 16) for _ in range(4))
        self.head_dim = self._heads = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(made: torch.Tensor) -> torch.Tensor:
            return made.unflatten(2, (self._heads, self.head_dim)).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        looks = (query @ key.transpose(2, 3) * self.head_dim**-0.5).softmax(3)
        return self.mix((looks @ value).transpose(1, 2).flatten(2))


def test_as_many_heads_as_columns_are_told_apart_and_made_again():
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))

    def once(module: nn.Module) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (module(x),)

    module = nets.net(0, Square).eval()
    able, unable = found(module, once)
    assert [one.heads for one in able] == [(("", "_heads"),)]
    assert unable == ()
    small, again = twin(module), twin(module)
    narrow(small, able[0], [0, 2])
    make(difference(module, small), again)
    again.load_state_dict(small.state_dict())
    assert torch.equal(once(again)[0], once(small)[0])
