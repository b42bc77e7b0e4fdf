"""Attention with layers of its own for queries, keys and values, whose heads can be left out.

``torch.nn.MultiheadAttention`` keeps the three in one tensor and demands that its heads fill the width of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch.nn import functional

from paretune.errors import ArtifactError
from paretune.forms.torch_path import submodule


class Attention(torch.nn.Module):
    """Answers as the ``MultiheadAttention`` that it is made of, but for rounding, and is called alike.

    Masks are torch's: True, or what is added to the scores; one for all heads, or one for each of the heads that there
    were in the beginning. The weights that it returns are those of the heads that are left. ``is_causal`` is a hint,
    as in torch: the mask counts.

    Attributes
    ----------
    heads
        Which of the first module's heads are left.
    mask_heads
        How many there were.
    """

    in_proj_weight: None = None  # nn.TransformerEncoderLayer asks for these before it goes past its parts
    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    def __init__(self, packed: torch.nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.head_dim, self.mask_heads = packed.embed_dim, packed.head_dim, packed.num_heads
        self.heads = tuple(range(packed.num_heads))
        self.dropout, self.batch_first = packed.dropout, packed.batch_first
        if packed.in_proj_weight is not None:
            weights: Any = _thirds(packed.in_proj_weight)
        else:
            weights = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        biases = (None,) * 3 if packed.in_proj_bias is None else _thirds(packed.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)

    @property
    def num_heads(self) -> int:
        """How many are left."""
        return len(self.heads)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batched, turned = query.dim() == 3, query.dim() == 3 and not self.batch_first
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif turned:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(dim=3), dropped)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropped)
        answer = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return answer[0], None if weights is None else weights[0]
        return answer.transpose(0, 1) if turned else answer, weights

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, heads · size] → [batch, heads, length, size]."""
        parts: torch.Tensor = x.unflatten(2, (len(self.heads), self.head_dim))
        return parts.transpose(1, 2)

    def _mask(
        self, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor | None:
        """What is added to scores [batch, heads, length, source]; None: nothing."""
        added = None
        if attn_mask is not None:
            if attn_mask.dim() == 2:
                attn_mask = attn_mask[None, None]
            else:
                attn_mask = attn_mask.unflatten(0, (like.shape[0], self.mask_heads))[:, list(self.heads)]
            added = _added(attn_mask, like)
        if key_padding_mask is not None:
            padding = _added(key_padding_mask[:, None, None], like)
            added = padding if added is None else added + padding
        return added


def is_openable(part: torch.nn.Module) -> bool:
    """Whether it is torch's own, without the keys and values of its own that it may add."""
    return type(part) is torch.nn.MultiheadAttention and part.bias_k is None and not part.add_zero_attn


@dataclass(frozen=True)
class Unpack:
    """Put :class:`Attention` in the place of ``nn.MultiheadAttention`` modules.

    ``nn.TransformerEncoder`` then keeps padded positions: only torch's own module knows how to leave them out.
    """

    name: ClassVar[str] = "unpack"

    paths: Sequence[str]

    def apply(self, module: torch.nn.Module) -> None:
        for path in self.paths:
            packed = submodule(module, path)
            if not path or not is_openable(packed):
                raise ArtifactError(f"{path or 'the model'} is no MultiheadAttention", where="edits.json")
            opened = Attention(cast(torch.nn.MultiheadAttention, packed)).train(packed.training)
            for owner in list(module.modules()):  # one that stands in several places stays one
                for key in [key for key, part in owner._modules.items() if part is packed]:
                    owner._modules[key] = opened
        for part in module.modules():
            if isinstance(part, torch.nn.TransformerEncoder):
                part.use_nested_tensor = False


def _thirds(packed: torch.nn.Parameter) -> list[torch.Tensor]:
    """Of queries, keys and values: frozen, if it is."""
    return [part.requires_grad_(packed.requires_grad) for part in packed.detach().chunk(3)]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
