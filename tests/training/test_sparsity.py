"""Which weights may become zero in which model, in the order in which inputs meet them, and what products cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch_count
from paretune.training.sparsity import Products, eligible

UNKNOWN = Products(None, ())


def chosen(module: nn.Module, keep=(), spare="none", products=UNKNOWN, **options) -> list[str]:
    fit = Fit(None, None, Artifact("torch", None, {}, (), ()), 0, None, **options)
    return [weight.name for weight in eligible(module, fit, keep=keep, spare=spare, products=products, where="here")]


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.place = nn.Parameter(torch.zeros(1, 4, 8))
        self.norm = nn.LayerNorm((4, 8))
        self.conv = nn.Conv1d(8, 8, 3, groups=2)
        self.up = nn.ConvTranspose1d(8, 6, 3, groups=2)
        self.bn = nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(8, 4)
        self.head = nn.Linear(4, 3)


def test_weights_of_products_are_eligible_and_nothing_else():
    names = ["conv.weight", "up.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    names += ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]
    assert chosen(Everything()) == names
    module = Everything()
    module.conv.weight.requires_grad_(False)
    assert chosen(module) == names[1:]
    axes = {one.name: (one.input_axis, one.inputs) for one in eligible(
        module, Fit(None, None, Artifact("torch", None, {}, (), ()), 0, None), keep=(), spare="none",
        products=UNKNOWN, where="here",
    )}  # fmt: skip
    assert axes["up.weight"] == (0, 4)
    assert axes["lstm.weight_hh_l0"] == (1, 4)


def test_patterns_name_modules_parameters_and_what_holds_them():
    idle: list[str] = []
    module = Everything()
    fit = Fit(
        None, None, Artifact("torch", None, {}, (), ()), 0, None, keep=("conv", "none.*"), unmatched=idle.extend
    )  # fmt: skip
    weights = eligible(module, fit, keep=("head.wei*",), spare="none", products=UNKNOWN, where="here")
    found = [weight.name for weight in weights]
    assert "conv.weight" not in found
    assert "head.weight" not in found
    assert "up.weight" in found
    assert idle == ["none.*"]
    with pytest.raises(BuildError, match="nothing in the model is named 'none"):
        chosen(module, keep=("none.*",))


class Tied(nn.Module):
    """Two layers share a weight, one is used twice, and the classifier comes first in the list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.one = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.stem = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.other(self.one(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.one(x)))


def test_shared_weights_come_once_and_ends_are_those_of_the_products(tmp_path):
    live = nets.net(0, Tied)
    artifact = nets.sealed(live, tmp_path / "m")
    products = Products.of(live, artifact, nets.split(nets.rows(2)))
    assert products.each == (("stem.weight", 36), ("one.weight", 36), ("one.weight", 36), ("one.weight", 36),
                             ("head.weight", 18))  # fmt: skip
    assert products.total == sum(macs for _, macs in products.each)
    assert chosen(live, products=products) == ["head.weight", "one.weight", "stem.weight"]
    assert chosen(live, products=products, spare="first") == ["head.weight", "one.weight"]
    assert chosen(live, products=products, spare="last") == ["one.weight", "stem.weight"]
    assert chosen(live, products=products, spare="both") == ["one.weight"]
    assert chosen(live, products=products, keep=("other",)) == ["head.weight", "stem.weight"]


def test_a_table_that_an_output_layer_shares_stays_as_it_is():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 10, bias=False)
            self.mixing = nn.Linear(8, 8)
            self.table = nn.Embedding(10, 8)
            self.head.weight = self.table.weight

    assert chosen(Language()) == ["mixing.weight"]


def test_products_are_found_behind_functions_recurrence_and_attention():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 6))
            self.lstm = nn.LSTM(8, 4, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.lstm(functional.linear(x, self.weight))
            return self.attention(y, y, y, need_weights=False)[0]

    found: dict[str, int] = {}
    for name, macs in torch_count.products(nets.net(0, Odd), None, (np.ones((1, 5, 6), np.float32),)):
        found[name] = found.get(name, 0) + macs
    assert found == {
        "weight": 5 * 48, "lstm.weight_ih_l0": 5 * 128, "lstm.weight_hh_l0": 5 * 64,
        "attention.in_proj_weight": 5 * 48, "attention.out_proj.weight": 5 * 16,
    }  # fmt: skip


def test_a_model_without_weights_to_take_is_told(tmp_path):
    with pytest.raises(BuildError, match=r"no weight that may be made sparse: it has none of two axes or more"):
        chosen(nn.Sequential(nn.BatchNorm1d(4), nn.Embedding(3, 4)))
    with pytest.raises(BuildError, match="all 1 are spared"):
        chosen(nn.Sequential(nn.Linear(3, 3)), spare="both")
    with pytest.raises(BuildError, match="all 2 parameters of the model are frozen"):
        chosen(nn.Linear(3, 3).requires_grad_(False))
    broken = nn.Linear(3, 3)
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(BuildError, match=r"weight holds numbers that are not finite"):
        chosen(broken)
