"""Small nets with insides worth comparing: convolutional stages, and transformers that attend in three ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.forms import torch as form

CLASSES = 3
SHAPE = (2, 8, 8)
LENGTH, WORDS = 6, 11


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.norm(self.conv(x)))


class Stages(nn.Module):
    """Two stages of residual blocks, at 8 × 8 and at 4 × 4 places."""

    def __init__(self, width: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.first = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.second = nn.Sequential(*(Block(2 * width) for _ in range(blocks)))
        self.linear = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.down(self.first(self.stem(x))))
        return self.linear(x.mean((2, 3)))


class Attends(nn.Module):
    """Self-attention with a residual; ``way``: ``fused``, ``written`` out, or torch's own ``module``."""

    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        if way == "module":
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.up = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        if self.way == "module":
            return x + self.up(self.attention(x, x, x, key_padding_mask=~seen, need_weights=False)[0])
        parts = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        query, key, value = parts
        mask = seen[:, None, None, :]
        if self.way == "fused":
            y = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            y = self.dropout(scores.masked_fill(~mask, -1e9).softmax(-1)) @ value
        return x + self.up(y.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """int64 [batch, length] → logits; 0 is padding."""

    def __init__(self, width: int = 8, heads: int = 2, layers: int = 2, way: str = "fused") -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Attends(width, heads, way) for _ in range(layers))
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        seen = words != 0
        x = self.words(words)
        for layer in self.layers:
            x = layer(x, seen)
        weight = seen.unsqueeze(2).to(x.dtype)
        return self.linear((x * weight).sum(1) / weight.sum(1).clamp_min(1))


def made(kind, *args, seed: int = 0, **named) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(*args, **named).eval()


def images(count: int = 48, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Three classes, told apart by how bright the first channel's left, middle and right are."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        image = 0.3 * rng.standard_normal(SHAPE)
        image[0, :, 3 * (number % CLASSES) : 3 * (number % CLASSES) + 2] += 1
        items.append((image.astype(np.float32), np.int64(number % CLASSES)))
    return items


def sentences(count: int = 48, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Words of which the first tells the class; the end is padding."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        words = rng.integers(4, WORDS, LENGTH)
        words[0] = 1 + number % CLASSES
        words[int(rng.integers(3, LENGTH + 1)) :] = 0
        items.append((words.astype(np.int64), np.int64(number % CLASSES)))
    return items


def sealed(module: nn.Module, root: Path, text: bool = False, outputs: int = CLASSES, **facts) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    form.save(module, root)
    image = TensorSpec("x", "float32", ("batch", *SHAPE))
    inputs = (TensorSpec("words", "int64", ("batch", LENGTH)) if text else image,)
    answers = (TensorSpec("output", "float32", ("batch", outputs)),)
    count = sum(parameter.numel() for parameter in module.parameters())
    return Artifact.seal("torch", root, inputs, answers, origin=module, parameters=count, **facts)
