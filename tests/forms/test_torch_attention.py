"""Attention with layers of its own answers as torch's does, however it is called; without some heads, as with zeros."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from paretune.errors import ArtifactError
from paretune.forms.torch_attention import Attention
from paretune.forms.torch_edits import Unpack

BATCH, LENGTH, SOURCE, WIDTH, HEADS = 2, 5, 5, 12, 3


def packed(**options) -> nn.MultiheadAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = nn.MultiheadAttention(WIDTH, HEADS, **options)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
        return made.eval()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def masks(kind: str) -> dict[str, torch.Tensor]:
    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.ones(LENGTH, SOURCE, dtype=torch.bool).triu(1)
    each = torch.stack([causal] * (BATCH * HEADS))
    each[::2] = False
    return {
        "none": {}, "padding": {"key_padding_mask": padding}, "causal": {"attn_mask": causal},
        "both": {"key_padding_mask": padding, "attn_mask": causal}, "each head": {"attn_mask": each},
        "added": {"attn_mask": draw(LENGTH, SOURCE), "key_padding_mask": draw(BATCH, SOURCE)},
        "hint": {"attn_mask": causal, "is_causal": True},
    }[kind]  # fmt: skip


def same(ours: tuple, theirs: tuple) -> None:
    assert (ours[1] is None) == (theirs[1] is None)
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "padding", "causal", "both", "each head", "added", "hint"])
def test_it_answers_as_torchs_own(kind):
    for first, weights, average in itertools.product((True, False), repeat=3):
        whole = packed(batch_first=first)
        x = draw(BATCH, LENGTH, WIDTH) if first else draw(LENGTH, BATCH, WIDTH)
        options = {"need_weights": weights, "average_attn_weights": average, **masks(kind)}
        with torch.no_grad():
            same(Attention(whole)(x, x, x, **options), whole(x, x, x, **options))


def test_it_answers_as_torchs_own_for_other_keys_without_biases_and_without_a_batch():
    whole = packed(kdim=7, vdim=9, bias=False, batch_first=True)
    given = draw(BATCH, LENGTH, WIDTH), draw(BATCH, 4, 7), draw(BATCH, 4, 9)
    with torch.no_grad():
        same(Attention(whole)(*given), whole(*given))
        single = tuple(one[0] for one in given)
        padding = torch.tensor([False, False, True, False])
        same(Attention(whole)(*single, key_padding_mask=padding), whole(*single, key_padding_mask=padding))


def test_dropout_falls_in_training_alone():
    ours, x = Attention(packed(dropout=0.5, batch_first=True)), draw(BATCH, LENGTH, WIDTH)
    for weights in (True, False):
        ours.train()
        assert not torch.equal(ours(x, x, x, need_weights=weights)[0], ours(x, x, x, need_weights=weights)[0])
        ours.eval()
        assert torch.equal(ours(x, x, x, need_weights=weights)[0], ours(x, x, x, need_weights=weights)[0])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = packed(batch_first=True)
        self.other = self.one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(*[self.one(x, x, x)[0]] * 3)[0]


def test_attention_that_is_used_twice_stays_one_module():
    module, x = Twice(), draw(BATCH, LENGTH, WIDTH)
    with torch.no_grad():
        wanted = module(x)
        Unpack(("one",)).apply(module)
        assert isinstance(module.one, Attention)
        assert module.other is module.one
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_torchs_encoder_runs_with_it_where_its_fast_path_would_reach_for_the_packed_weights(first):
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 16, dropout=0.0, batch_first=True, norm_first=not first)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=first).eval()
    x, padding = draw(BATCH, LENGTH, WIDTH), masks("padding")["key_padding_mask"]
    with torch.inference_mode():
        wanted = module(x, src_key_padding_mask=padding)
        Unpack(("layers.0.self_attn", "layers.1.self_attn")).apply(module)
        found = module(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], wanted[~padding], rtol=1e-4, atol=1e-5)


def test_what_is_no_attention_of_torch_is_refused():
    for module in (nn.Linear(2, 2), packed(add_bias_kv=True), packed(add_zero_attn=True)):
        with pytest.raises(ArtifactError, match="one is no MultiheadAttention"):
            Unpack(("one",)).apply(nn.ModuleDict({"one": module}))


def test_what_was_frozen_stays_so_and_nothing_else():
    for separate in (False, True):
        whole = packed(**({"kdim": 5, "vdim": 7} if separate else {}))
        assert (whole.in_proj_weight is None) == separate
        whole.out_proj.weight.requires_grad_(False)
        whole.in_proj_bias.requires_grad_(False)
        found = {name for name, value in Attention(whole).named_parameters() if not value.requires_grad}
        assert found == {"out_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"}
