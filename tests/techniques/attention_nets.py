"""Small transformers as people write them, and their data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import training_nets as nets
from torch import nn
from torch.nn import functional

from paretune.ask import source
from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.forms import torch as form
from paretune.testing import samples

WORDS, WIDTH, HEADS, INNER = 12, 24, 3, 48


class Named(nn.Module):
    """An encoder layer in the manner of BERT: parts in parts, attributes that count heads and columns, tuples."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_attention_heads, self.attention_head_size, self.all_head_size = HEADS, WIDTH // HEADS, WIDTH
            self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
            shape = (*x.shape[:2], self.num_attention_heads, self.attention_head_size)
            query, key, value = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
            scores = query @ key.transpose(2, 3) / self.attention_head_size**0.5
            weights = scores.masked_fill(~mask[:, None, None].bool(), -1e9).softmax(3)
            return ((weights @ value).transpose(1, 2).reshape(*x.shape[:2], self.all_head_size),)

    class Output(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
            return self.norm(self.dense(x) + shortcut)

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Named.Attention(), "output": Named.Output(WIDTH)})
        self.intermediate, self.output = nn.Linear(WIDTH, INNER), Named.Output(INNER)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = self.attention["output"](self.attention["self"](hidden_states, mask)[0], hidden_states)
        return self.output(functional.gelu(self.intermediate(x)), x), None


class Projected(nn.Module):
    """Attention by ``q_proj`` … ``o_proj`` with a gated feed-forward part; heads counted by the head's size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.first(hidden_states)
        parts = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (part(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(query, key, value, mask[:, None, None].bool())
        x = hidden_states + self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        y = self.second(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Fixed(Projected):
    """The number of heads is written into ``forward``."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = (self.q_proj, self.k_proj, self.v_proj)
        x = hidden_states
        query, key, value = (part(x).view(*x.shape[:2], 3, 8).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(query, key, value)
        return x + self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], 24))


class Encoder(nn.Module):
    """int64 [batch, length] twice, by keyword → logits [batch, classes]; ``layer`` says how the layers are written."""

    def __init__(self, layer: type[nn.Module] | None, layers: int = 2) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, WIDTH)
        self.ours = layer is not None
        if layer is not None:
            self.layers: nn.Module = nn.ModuleList(layer() for _ in range(layers))
        else:
            one = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, batch_first=True)
            self.layers = nn.TransformerEncoder(one, layers)
        self.head = nn.Linear(WIDTH, nets.CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.word(input_ids)
        if self.ours:
            for layer in self.layers:
                answer = layer(x, attention_mask)
                x = answer[0] if isinstance(answer, tuple) else answer
        else:
            x = self.layers(x, src_key_padding_mask=attention_mask == 0)
        weight = attention_mask[:, :, None].to(x)
        return self.head((x * weight).sum(1) / weight.sum(1))


def encoder(layer: type[nn.Module] | None, seed: int = 0) -> nn.Module:
    return nets.net(seed, lambda: Encoder(layer))


def sentences(count: int = 120, seed: int = 0) -> list:
    """Of 3 to 8 words; the class is how many of the first three words are there, modulo the number of classes."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = rng.integers(0, WORDS, rng.integers(3, 9))
        made.append(({"input_ids": ids, "attention_mask": np.ones_like(ids)}, np.int64((ids < 4).sum() % nets.CLASSES)))
    return made


def collate(items: list) -> tuple:
    longest = max(len(inputs["input_ids"]) for inputs, _ in items)

    def padded(name: str) -> np.ndarray:
        return np.stack([np.pad(inputs[name], (0, longest - len(inputs[name]))) for inputs, _ in items])

    return {name: padded(name) for name in ("input_ids", "attention_mask")}, np.array([label for _, label in items])


def split(count: int = 120, seed: int = 0) -> Split:
    return Split.whole(sentences(count, seed), collate, "train")


def sealed(module: nn.Module, root: Path) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    form.save(module, root)
    inputs = tuple(TensorSpec(name, "int64", ("batch", "length_1")) for name in ("input_ids", "attention_mask"))
    outputs = (TensorSpec("output", "float32", ("batch", nets.CLASSES)),)
    return Artifact.seal("torch", root, inputs, outputs, keyword_inputs=True, origin=module)


def fitted(artifact: Artifact, scratch: Path, **options) -> Fit:
    return Fit(split(), None, artifact, 0, scratch, **options)


class Vision(nn.Module):
    """The suites' images → their classes: nine patches, two of torch's encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(samples.SHAPE[0], 16, 4, stride=4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, samples.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def pictures() -> Artifact:
    """For the suites: a model of their images that has heads."""
    return source.find(nets.net(0, Vision), samples.examples(), Path(tempfile.mkdtemp()))[0]
