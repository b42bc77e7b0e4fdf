"""Sentiment of sentences (SST-2, Socher et al. 2013): transformer encoders, a small one and a deep one, and an LSTM.

    paretune optimize examples/sst2.py:encoder --budget "drop<=1pp" --batch 1,32
    paretune optimize examples/sst2.py:lstm --budget "drop<=1pp" --batch 1,32

They are trained from scratch when the model is asked for: seeded, less than half a minute (``deep_encoder``: two
minutes), 80 % right. They show variable length: an item is one sentence, and ``collate`` pads a batch to its longest.
The encoders take a dict, ``input_ids`` and ``attention_mask``, and are called with keywords; the LSTM takes ids alone.
Sentences are read from $PARETUNE_DATA, else from ../shared/data beside the repository.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune import Workload
from paretune.errors import DataError

PAD, UNKNOWN = 0, 1
LONGEST = 64
SEED = 0


def encoder() -> Workload:
    """Two transformer layers of width 128; ``forward(input_ids, attention_mask)`` by keyword."""
    return encoded("sst2-encoder", Encoder, epochs=3, rate=2e-3)


def deep_encoder() -> Workload:
    """Six layers of width 192 with six heads each: what whole heads and feed-forward units can be taken out of."""
    return encoded("sst2-deep-encoder", partial(Encoder, width=192, layers=6, heads=6), epochs=4, rate=1e-3)


def encoded(name: str, make: Callable[[int], nn.Module], epochs: int, rate: float) -> Workload:
    keyworded = [({"input_ids": ids, "attention_mask": np.ones_like(ids)}, label) for ids, label in sentences("train")]
    heldout = [({"input_ids": ids, "attention_mask": np.ones_like(ids)}, label) for ids, label in heldout_sentences()]

    def trained() -> nn.Module:
        return fit(lambda: make(len(vocabulary())), keyworded, collate_keywords, epochs, rate)

    return Workload(name, model=trained, train=keyworded, heldout=heldout, collate=collate_keywords)


def lstm() -> Workload:
    """One LSTM layer of 128 units, averaged over the words; ``forward(input_ids)``."""

    def trained() -> nn.Module:
        return fit(lambda: Lstm(len(vocabulary())), sentences("train"), collate_ids, epochs=3, rate=3e-3)

    return Workload(
        "sst2-lstm", model=trained, train=sentences("train"), heldout=heldout_sentences(), collate=collate_ids
    )


# --- data: an item is (int64 [words], class 0 or 1) ---


@cache
def read(part: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    folder = Path(os.environ.get("PARETUNE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    path = folder / "sst2" / f"{part}.tsv"
    if not path.is_file():
        raise DataError(
            f"there is no sst2/{part}.tsv",
            where=str(folder),
            do="set PARETUNE_DATA to the directory that holds the data",
        )
    rows = (line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").split("\n") if line)
    return tuple((tuple(text.split()[:LONGEST]), int(label)) for text, label in rows)


@cache
def vocabulary() -> dict[str, int]:
    """Words seen at least twice in training, the most frequent first; 0 is padding, 1 any other word."""
    counts = Counter(word for words, _ in read("train") for word in words)
    known = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return {"<pad>": PAD, "<unknown>": UNKNOWN} | {word: number for number, word in enumerate(known, start=2)}


@cache
def sentences(part: str) -> list[tuple[np.ndarray, np.int64]]:
    number = vocabulary()
    return [
        (np.array([number.get(word, UNKNOWN) for word in words], np.int64), np.int64(label))
        for words, label in read(part)
    ]


def heldout_sentences() -> list[tuple[np.ndarray, np.int64]]:
    """Dev and test together: nothing here is tuned on dev, and 2,693 sentences prove more than 1,821."""
    return sentences("dev") + sentences("test")


def pad(rows: list[np.ndarray]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def collate_ids(items: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    return pad([ids for ids, _ in items]), np.array([label for _, label in items])


def collate_keywords(items: list[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    names = ("input_ids", "attention_mask")
    return {name: pad([inputs[name] for inputs, _ in items]) for name in names}, np.array([label for _, label in items])


# --- models: logits [batch, 2] that do not depend on how far the batch was padded ---


class Encoder(nn.Module):
    """int64 [batch, length] twice → logits; learnt positions, layer norm first (Xiong et al. 2020)."""

    def __init__(self, words: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.word = words_of(words, width)
        self.position = nn.Parameter(torch.randn(LONGEST, width) * 0.02)
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.word(input_ids) + self.position[: input_ids.shape[1]])
        seen = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, seen)
        return self.classify(self.dropout(mean_of_words(self.norm(x), attention_mask)))


class Layer(nn.Module):
    """Self-attention and a feed-forward part, each with its shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        y = self.before_attention(x)
        query, key, value = (
            part(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.attended(y))
        return x + self.dropout(self.down(functional.gelu(self.up(self.before_forward(x)))))


class Lstm(nn.Module):
    """int64 [batch, length] → logits; read from left to right, so that padding on the right changes nothing."""

    def __init__(self, words: int, width: int = 128) -> None:
        super().__init__()
        self.word = words_of(words, width)
        self.dropout = nn.Dropout(0.4)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.classify = nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.dropout(self.word(input_ids)))
        return self.classify(self.dropout(mean_of_words(states, input_ids != PAD)))


def words_of(words: int, width: int) -> nn.Embedding:
    """Vectors small enough to be moved by a few hundred steps."""
    return nn.Embedding(words, width, padding_idx=PAD, _weight=torch.randn(words, width) * 0.05)


def mean_of_words(states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    weight = seen.to(states.dtype).unsqueeze(2)
    return (states * weight).sum(1) / weight.sum(1)


# --- training ---


def fit(make: Callable[[], nn.Module], items: list[Any], collate: Any, epochs: int, rate: float) -> nn.Module:
    """Cross-entropy, AdamW on one cycle; seeded, on one thread, and without a trace on the caller's generator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            return train(make(), items, collate, epochs, rate).eval()
    finally:
        torch.set_num_threads(threads)


def train(net: nn.Module, items: list[Any], collate: Any, epochs: int, rate: float, size: int = 64) -> nn.Module:
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    steps = epochs * -(-len(items) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for _ in range(epochs):
        for batch in batches(items, size):
            inputs, labels = collate(batch)
            if isinstance(inputs, dict):
                logits = net(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            else:
                logits = net(torch.from_numpy(inputs))
            loss = functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Every item once, shuffled; a batch holds sentences of like length, so that little of it is padding."""
    shuffled = [items[index] for index in torch.randperm(len(items)).tolist()]
    alike = sorted(shuffled, key=lambda item: len(item[0]["input_ids"] if isinstance(item[0], dict) else item[0]))
    for number in torch.randperm(-(-len(items) // size)).tolist():
        yield alike[number * size : (number + 1) * size]
