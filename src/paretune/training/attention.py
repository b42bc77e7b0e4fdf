"""Attention: who looks at whom in a transformer, seen from outside, also where fused kernels hide it; its transfer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from paretune.errors import BuildError

HIDDEN = -1e9
"""A score of what must not be looked at: its probability is 0, and unlike minus infinity it leaves no NaN behind."""
BARRED = -1e4
"""Additive masks below this bar a position."""
SOFTMAX = (torch.softmax, functional.softmax, torch.Tensor.softmax)
PRODUCT = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm)
DROPOUT = (functional.dropout, torch.dropout)


@dataclass(frozen=True)
class Attention:
    """One call of an attention, in float32.

    Attributes
    ----------
    log_maps
        [n, heads, queries, keys]: logarithms of the shares, before dropout.
    values
        [n, heads, keys, width]; None where they could not be seen.
    seen
        bool [n, keys]: positions that anybody may look at; padding is False.
    """

    log_maps: torch.Tensor
    values: torch.Tensor | None
    seen: torch.Tensor

    @property
    def heads(self) -> int:
        return self.log_maps.shape[1]


Look = Callable[[], Attention]
"""Makes an attention of what its call was given: made for the few that are asked for, after the forward pass."""


class Listening(TorchFunctionMode):
    """While it is entered, every attention is told to ``heard`` as a :data:`Look`, whichever way it is computed.

    By ``nn.MultiheadAttention``, by ``scaled_dot_product_attention``, or written out: a softmax of a tensor [n, heads,
    queries, keys] whose product with the values follows. What is computed, and by which kernel, stays as it is.
    """

    def __init__(self, heard: Callable[[Look], None]) -> None:
        super().__init__()
        self._heard = heard
        self._maps: torch.Tensor | None = None  # the newest written-out maps, before and after dropout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func is functional.multi_head_attention_forward:
            self._heard(lambda: of_multihead(*args, **named))
        elif func is functional.scaled_dot_product_attention:
            self._heard(lambda: of_products(*args, **named))
        elif func in SOFTMAX and result.ndim == 4:
            self._maps = result
            self._heard(lambda: of_maps(result, None))
        elif self._maps is not None and args and args[0] is self._maps:
            self._follow(func, args, result)
        return result

    def _follow(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        maps = self._maps
        if func in DROPOUT:
            self._maps = result
        elif func in PRODUCT and maps is not None and len(args) > 1:
            values = args[1]
            self._maps = None
            self._heard(lambda: of_maps(maps, values))


def of_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """What ``scaled_dot_product_attention`` computes of [n, heads, length, width], by the plain product."""
    query, key, value = (_four(one.float()) for one in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = torch.zeros(query.shape[-2], key.shape[-2], device=query.device)
    if is_causal:
        bias = bias.masked_fill(torch.ones_like(bias).triu(1).bool(), HIDDEN)
    if attn_mask is not None:
        bias = bias + _additive(attn_mask, allowed=True)
    return _attention(query, key, value, bias, query.shape[-1] ** -0.5 if scale is None else scale)


def of_multihead(*args: Any, **named: Any) -> Attention:
    """What ``multi_head_attention_forward`` computes; positions that it adds of its own (``bias_k``) are left out."""
    given = inspect.signature(functional.multi_head_attention_forward).bind(*args, **named)
    given.apply_defaults()
    asked = given.arguments
    heads: int = asked["num_heads"]
    if asked["use_separate_proj_weight"]:
        weights = [asked[f"{letter}_proj_weight"] for letter in "qkv"]
    else:
        weights = asked["in_proj_weight"].chunk(3)
    biases = [None] * 3 if asked["in_proj_bias"] is None else asked["in_proj_bias"].chunk(3)
    parts = []
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        given_rows = asked[name].float()  # [length, n, width], or without n
        rows = functional.linear(given_rows, weight.float(), None if bias is None else bias.float())
        rows = rows.unsqueeze(1) if rows.ndim == 2 else rows
        parts.append(rows.unflatten(2, (heads, -1)).permute(1, 2, 0, 3))
    query, key, value = parts
    bias = torch.zeros(query.shape[-2], key.shape[-2], device=query.device)
    mask, padding = asked["attn_mask"], asked["key_padding_mask"]
    if mask is not None:
        mask = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 and mask.shape[0] == len(query) * heads else mask
        bias = bias + _additive(mask, allowed=False)
    if padding is not None:
        bias = bias + _additive(padding.reshape(len(query), 1, 1, -1), allowed=False)
    return _attention(query, key, value, bias, query.shape[-1] ** -0.5)


def of_maps(maps: torch.Tensor, values: torch.Tensor | None) -> Attention:
    """An attention that was written out: shares [n, heads, queries, keys], and values if they were seen."""
    shares = maps.float()
    seen = shares.detach().sum(dim=(1, 2)) > 0
    kept = None if values is None else values.float().reshape(*shares.shape[:2], shares.shape[-1], -1)
    return Attention(shares.clamp_min(1e-30).log().clamp_min(HIDDEN), kept, seen)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float
) -> Attention:
    # kept finite: a row that sees nothing is even, and not NaN
    scores = (query @ key.transpose(-1, -2)) * scale + bias.clamp_min(HIDDEN)
    allowed = (bias > BARRED).expand(scores.shape)
    return Attention(functional.log_softmax(scores, dim=-1), value, allowed.any(dim=2).any(dim=1))


def _additive(mask: torch.Tensor, allowed: bool) -> torch.Tensor:
    """A mask as a bias; ``allowed``: whether True stands for what may be looked at."""
    if mask.dtype != torch.bool:
        return mask.detach().float()
    barred = ~mask if allowed else mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(barred, HIDDEN)


def _four(tensor: torch.Tensor) -> torch.Tensor:
    """[n, heads, length, width], whatever stands before the last two axes."""
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)
    return tensor if tensor.ndim == 4 else tensor.reshape(-1, *tensor.shape[-3:])


def map_loss(student: Attention, teacher: Attention) -> torch.Tensor:
    """KL(teacher's map ‖ student's map), the mean over heads and positions that are no padding.

    Wang et al. 2020, "MiniLM", section 3.1. Where the numbers of heads differ, neighbouring heads are averaged until
    they are alike.
    """
    heads = math.gcd(student.heads, teacher.heads)
    ours, theirs = (_merged(one.log_maps, heads) for one in (student, teacher))
    demand_alike(ours, theirs, "attention maps")
    return _divergence(ours, theirs, teacher.seen)


def relation_loss(student: Attention, teacher: Attention) -> torch.Tensor:
    """KL between value relations softmax(V · Vᵀ / √width), the mean over heads and positions that are no padding.

    Wang et al. 2020, "MiniLM", section 3.2; widths may differ. Where the numbers of heads differ, values are cut anew
    into as many as divide both (as the relation heads of Wang et al. 2021, "MiniLMv2").
    """
    if student.values is None or teacher.values is None:
        raise BuildError("the values of an attention cannot be seen here", do="set maps to attention")
    heads = math.gcd(student.heads, teacher.heads)
    ours = _relation(student.values, heads, teacher.seen)
    theirs = _relation(teacher.values, heads, teacher.seen)
    demand_alike(ours, theirs, "value relations")
    return _divergence(ours, theirs, teacher.seen)


def demand_alike(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Refuse features of unlike shapes.

    Raises
    ------
    BuildError
        If they cannot be compared place by place.
    """
    if ours.shape != theirs.shape:
        raise BuildError(
            f"{what} are of shape {list(ours.shape[1:])} in the student and {list(theirs.shape[1:])} in the teacher",
            do="name other pairs",
        )  # fmt: skip


def _merged(log_maps: torch.Tensor, heads: int) -> torch.Tensor:
    each = log_maps.shape[1] // heads
    if each == 1:
        return log_maps
    return torch.logsumexp(log_maps.unflatten(1, (heads, each)), dim=2) - math.log(each)


def _relation(values: torch.Tensor, heads: int, seen: torch.Tensor) -> torch.Tensor:
    cut = values.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) * cut.shape[-1] ** -0.5
    if seen.shape != (len(scores), scores.shape[-1]):
        return functional.log_softmax(scores, dim=-1)
    return functional.log_softmax(scores.masked_fill(~seen[:, None, None, :], HIDDEN), dim=-1)


def _divergence(ours: torch.Tensor, theirs: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Of log-shares [n, heads, queries, keys]; rows count where their position is seen, all where keys are others."""
    rows = (theirs.exp() * (theirs - ours)).sum(dim=-1).mean(dim=1)
    if seen.shape != rows.shape:
        return rows.mean()
    counted = seen.to(rows.dtype)
    return (rows * counted).sum() / counted.sum().clamp_min(1)
