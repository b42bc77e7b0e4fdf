"""Attention is seen whichever way it is computed, and its losses are those of the formulas."""

from __future__ import annotations

import math

import feature_nets as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paretune.errors import BuildError
from paretune.training.attention import Attention, map_loss, of_maps, of_products, relation_loss
from paretune.training.features import Taps


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(seed: int, heads: int = 2, length: int = 4, width: int = 3) -> Attention:
    return of_products(*(drawn(seed + place, 2, heads, length, width) for place in range(3)))


@pytest.mark.parametrize("masked", ["nothing", "bool", "float", "causal"])
def test_hidden_maps_equal_those_of_the_plain_product(masked):
    query, key, value = (drawn(seed, 2, 3, 5, 4) for seed in range(3))
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None, :]
    bias = torch.zeros(2, 1, 1, 5).masked_fill(~seen, -math.inf)
    options = {
        "nothing": {}, "bool": {"attn_mask": seen}, "float": {"attn_mask": bias}, "causal": {"is_causal": True},
    }[masked]  # fmt: skip
    scores = query @ key.transpose(-1, -2) / 2
    if masked in ("bool", "float"):
        scores = scores + bias
    if masked == "causal":
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    found = of_products(query, key, value, **options)
    torch.testing.assert_close(found.log_maps.exp(), scores.softmax(-1))
    mixed = functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(found.log_maps.exp() @ found.values, mixed, rtol=1e-4, atol=1e-5)
    padded = masked in ("bool", "float")
    assert found.seen.tolist() == [[True] * 3 + [not padded] * 2, [True] * 5]


def test_one_head_of_keys_for_several_of_queries():
    query, key, value = drawn(1, 2, 4, 5, 3), drawn(2, 2, 2, 5, 3), drawn(3, 2, 2, 5, 3)
    found = of_products(query, key, value, enable_gqa=True)
    mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(found.log_maps.exp() @ found.values, mixed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"kdim": 8, "vdim": 8, "bias": False}, {"batch_first": False}])
def test_the_maps_of_torchs_own_module_are_those_it_returns(options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options}).eval()
    if "kdim" in options:
        module._qkv_same_embed_dim = False
        module.in_proj_weight = None
        for letter in "qkv":
            setattr(module, f"{letter}_proj_weight", nn.Parameter(drawn(ord(letter), 8, 8)))
    x = drawn(5, 3, 6, 8)
    padding = torch.zeros(3, 6).bool()
    padding[0, 4:] = True
    given_x = x if module.batch_first else x.transpose(0, 1)
    later = torch.ones(6, 6).triu(1).bool()
    with torch.no_grad():
        expected = module(
            given_x, given_x, given_x, key_padding_mask=padding, attn_mask=later, average_attn_weights=False
        )[1]
    taps = Taps(nn.ModuleDict({"it": module}), ["it"], "student", "test")
    with taps.listening():
        module(given_x, given_x, given_x, key_padding_mask=padding, attn_mask=later, need_weights=False)
    found = taps.attention("it")
    torch.testing.assert_close(found.log_maps.exp(), expected)
    assert found.log_maps.requires_grad
    assert found.seen.tolist() == (~padding).tolist()


def test_every_way_of_computing_gives_the_same_attention():
    fused = nets.made(nets.Encoder, way="fused")
    written, module = nets.made(nets.Encoder, way="written"), nets.made(nets.Encoder, way="module")
    state = fused.state_dict()
    written.load_state_dict(state)
    for place in range(2):
        for part in ("weight", "bias"):
            joined = torch.cat([state[f"layers.{place}.{name}.{part}"] for name in ("query", "key", "value")])
            module.state_dict()[f"layers.{place}.attention.in_proj_{part}"].copy_(joined)
    words = torch.tensor([[1, 4, 5, 6, 0, 0], [2, 4, 7, 8, 9, 5]])
    module.words.load_state_dict(fused.words.state_dict())
    found = []
    for net in (fused, written, module):
        taps = Taps(net, ["layers.0"], "student", "test")
        with taps.listening():
            net(words)
        found.append(taps.attention("layers.0"))
    seen = found[0].seen
    assert seen.tolist() == (words != 0).tolist()
    for other in found[1:]:
        assert other.seen.tolist() == seen.tolist()
        torch.testing.assert_close(other.values, found[0].values)
        torch.testing.assert_close(other.log_maps.exp(), found[0].log_maps.exp())
        assert map_loss(other, found[0]).item() == pytest.approx(0, abs=1e-6)
        assert relation_loss(other, found[0]).item() == pytest.approx(0, abs=1e-6)


def test_torchs_own_encoder_is_heard_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    taps = Taps(net, ["layers.1.self_attn"], "teacher", "test")
    with torch.no_grad(), taps.listening():
        net(drawn(1, 2, 5, 8))
    assert taps.attention("layers.1.self_attn").log_maps.shape == (2, 2, 5, 5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_map_loss_by_hand():
    ours, theirs = attention(1), attention(7)
    p, q = theirs.log_maps.exp(), ours.log_maps.exp()
    by_hand = (p * (p / q).log()).sum() / (2 * 2 * 4)  # examples × heads × positions
    torch.testing.assert_close(map_loss(ours, theirs), by_hand)


def test_relation_loss_by_hand_of_other_widths():
    ours, theirs = attention(1, width=5), attention(7, width=3)
    relations = [
        (one.values @ one.values.transpose(-1, -2) / math.sqrt(one.values.shape[-1])).softmax(-1)
        for one in (ours, theirs)
    ]
    by_hand = (relations[1] * (relations[1] / relations[0]).log()).sum() / (2 * 2 * 4)
    torch.testing.assert_close(relation_loss(ours, theirs), by_hand)


def test_padding_counts_for_nothing():
    ours, theirs = attention(1), attention(7)
    masks = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()

    def masked(one: Attention, junk: float) -> Attention:
        log = one.log_maps.masked_fill(~masks[:, None, None, :], -1e9).log_softmax(-1)
        rows = log.masked_fill(~masks[:, None, :, None], junk)
        return Attention(rows, one.values.masked_fill(~masks[:, None, :, None], junk), masks)

    for loss in (map_loss, relation_loss):
        values = [float(loss(masked(ours, junk), masked(theirs, 0.1))) for junk in (0.1, -0.7)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        assert values[0] > 0.01


def test_a_row_that_sees_nothing_leaves_no_nan():
    query = drawn(1, 1, 1, 3, 2).requires_grad_()
    barred = of_products(query, query, query, attn_mask=torch.zeros(1, 1, 3, 3).bool())
    loss = map_loss(barred, barred)
    (barred.log_maps.sum() + loss).backward()
    assert barred.log_maps.isfinite().all()
    assert query.grad.isfinite().all()


def test_other_numbers_of_heads_are_brought_together():
    ours, theirs = attention(1, heads=2, width=4), attention(7, heads=4, width=3)
    halved = theirs.log_maps.exp().unflatten(1, (2, 2)).mean(2)
    alike = Attention(halved.log(), theirs.values, theirs.seen)
    torch.testing.assert_close(map_loss(ours, theirs), map_loss(ours, alike))
    cut = theirs.values.transpose(1, 2).flatten(2).unflatten(2, (2, 6)).transpose(1, 2)
    torch.testing.assert_close(
        relation_loss(ours, theirs), relation_loss(ours, Attention(theirs.log_maps, cut, theirs.seen))
    )


def test_what_does_not_fit_is_told():
    with pytest.raises(BuildError, match=r"attention maps are of shape \[2, 4, 4\] .* \[2, 5, 5\]"):
        map_loss(attention(1), attention(1, length=5))
    blind = of_maps(attention(1).log_maps.exp(), None)
    with pytest.raises(BuildError, match=r"values of an attention cannot be seen .* set maps to attention"):
        relation_loss(blind, attention(1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), heads=st.sampled_from([1, 2, 4, 6]), length=st.integers(1, 6))
def test_losses_are_zero_at_the_teacher_and_positive_elsewhere(seed, heads, length):
    one, other = attention(seed, heads, length), attention(seed + 50_000, 2, length)
    for loss in (map_loss, relation_loss):
        assert abs(float(loss(one, one))) < 1e-5
        assert float(loss(one, other)) > -1e-6
