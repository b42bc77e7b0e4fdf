"""Blocks are found however a model goes through its lists, with the way in which it does without them."""

from __future__ import annotations

from pathlib import Path

import attention_nets as attention
import pytest
import residual_nets as residual
import torch
import training_nets as nets
from torch import nn

from paretune.errors import BuildError
from paretune.forms.torch_blocks import Block, candidates, cut, edits, named
from paretune.forms.torch_edits import Bypass, Remove
from paretune.forms.torch_run import runner

WIDTH = nets.FEATURES


class Listed(nn.Module):
    """Goes through its list by ``way``; its members answer what is added, or by a tuple."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3))
        self.pairs = nn.ModuleList(Pair() for _ in range(3))
        self.scales = [1.0, 2.0, 3.0]
        self.head = nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "added":
            for layer in self.layers:
                x = x + layer(x)
        elif self.way == "beside":
            for layer, scale in zip(self.layers, self.scales, strict=False):
                x = x * scale + layer(x)
        else:
            for number in range(3):
                x, _ = self.pairs[number](x=x, mask=None)
        return self.head(x)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: None) -> tuple[torch.Tensor, torch.Tensor]:
        return x + self.inner(x), x


def running(module: nn.Module, root: Path):
    return runner(nets.sealed(module, root / "net"), nets.split(nets.rows(20)))


def ways(module: nn.Module, root: Path) -> dict[str, list[tuple[bool, int]]]:
    found = candidates(module, running(module, root))
    return {blocks[0].path: [(block.removed, block.length) for block in blocks] for blocks in found}


def test_stages_are_taken_apart_into_their_blocks(tmp_path):
    once = [(True, 0)]
    assert ways(residual.residual(), tmp_path) == {f"stages.{a}.{b}": once for a in (0, 1) for b in (0, 1, 2)}


def test_a_list_whose_answers_are_added_keeps_its_sequentials_whole(tmp_path):
    module = nets.net(0, lambda: Listed("added"))
    found = ways(module, tmp_path)
    assert found == {f"layers.{number}": [(True, 0), (False, 0)] for number in range(3)}
    x = torch.randn(4, WIDTH)
    by_hand = x + module.layers[0](x)
    by_hand = by_hand + module.layers[2](by_hand)
    torch.testing.assert_close(cut(module, (Block("layers.1", True),))(x), module.head(by_hand))


def test_where_something_stands_beside_the_list_both_ways_are_told_apart(tmp_path):
    module = nets.net(0, lambda: Listed("beside"))
    assert ways(module, tmp_path)["layers.0"] == [(True, 0), (False, 0)]


def test_a_counted_list_gets_passages_that_answer_as_tuples(tmp_path):
    module = nets.net(0, lambda: Listed("counted"))
    found = ways(module, tmp_path)
    assert found == {f"pairs.{number}": [(False, 2)] for number in range(3)}
    small = cut(module, (Block("pairs.0", False, 2), Block("pairs.2", False, 2)))
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(small(x), module.head(module.pairs[1](x, None)[0]))


@pytest.mark.parametrize("layer", [None, attention.Named, attention.Projected])
def test_encoder_layers_are_blocks(tmp_path, layer):
    module = attention.encoder(layer)
    run = runner(attention.sealed(module, tmp_path / "net"), attention.split())
    found = candidates(module, run)
    prefix = "layers.layers" if layer is None else "layers"
    assert [blocks[0].path for blocks in found] == [f"{prefix}.0", f"{prefix}.1"]
    assert all(blocks[0].removed for blocks in found)


def test_single_layers_are_blocks_where_there_is_nothing_else(tmp_path):
    plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    assert list(ways(plain.eval(), tmp_path)) == ["0", "2"]
    assert ways(nn.Sequential(nn.Linear(WIDTH, 3)).eval(), tmp_path / "none") == {}


def test_a_cut_shares_its_tensors_and_leaves_the_module_as_it_was(tmp_path):
    module = residual.residual()
    small = cut(module, (Block("stages.0.1", True), Block("stages.1.0", False)))
    assert (len(module.stages[0]), len(small.stages[0]), len(small.stages[1])) == (3, 2, 3)
    assert small.stages[0][1].up.weight is module.stages[0][2].up.weight
    assert small.stages[1][1].norm.running_mean is module.stages[1][1].norm.running_mean


def test_passages_come_before_removals():
    blocks = (Block("a.1", True), Block("b.0", False), Block("a.0", True), Block("b.1", False, 2))
    assert edits(blocks) == (Bypass(("b.0",)), Bypass(("b.1",), 2), Remove(("a.1", "a.0")))


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (("stages.9.0",), "no module 'stages.9.0'"),
        (("stages.0.1", "stages.0.1"), "stages.0.1 goes with stages.0.1 already"),
        (("stages.0", "stages.0.1"), "stages.0.1 goes with stages.0 already"),
        (("widen",), "widen does not answer in the shape of its first input"),
        (("",), "no module ''"),
    ],
)
def test_paths_that_cannot_go_are_told(tmp_path, paths, told):
    module = residual.residual()
    with pytest.raises(BuildError, match=told):
        named(module, paths, running(module, tmp_path), "here")


def test_a_second_path_of_a_module_is_told_with_its_first(tmp_path):
    module = residual.residual()
    module.backbone = nn.ModuleDict({"stages": module.stages})
    with pytest.raises(BuildError, match=r"backbone\.stages\.0\.1 is the same module as stages\.0\.1 — name"):
        named(module, ("backbone.stages.0.1",), running(module, tmp_path), "here")


def test_a_model_that_fails_is_told_in_a_line(tmp_path):
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    module = Failing().eval()
    with pytest.raises(BuildError, match="fails on training examples: RuntimeError") as caught:
        candidates(module, running(module, tmp_path))
    assert "\n" not in str(caught.value)
