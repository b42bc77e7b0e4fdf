"""Small recurrent nets, whose hidden units can go."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

STEPS, FEATURES, CLASSES = 5, 4, 3


class LastStep(nn.Module):
    """Two stacked LSTM layers; the last step's output is read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class BothWays(nn.Module):
    """A bidirectional GRU behind a linear layer; its last states, normalised, are read beside its mean output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 10)
        self.gru = nn.GRU(10, 6, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, state = self.gru(torch.relu(self.embed(x)))
        ends = self.norm(torch.cat([state[0], state[1]], dim=1))
        return self.head(torch.cat([ends, out.mean(1)], dim=1))


class Attended(nn.Module):
    """Tokens, an LSTM, and an average weighted by what a linear layer thinks of each step; an LSTM reads it too."""

    VOCABULARY = 6

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.VOCABULARY, 8)
        self.lstm = nn.LSTM(8, 7, batch_first=True)
        self.score = nn.Linear(7, 1)
        self.second = nn.LSTM(7, 5, batch_first=True)
        self.head = nn.Linear(7 + 5, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(self.embed(tokens))
        weights = torch.softmax(self.score(out), dim=1)
        _, (last, _) = self.second(out)
        return self.head(torch.cat([(weights * out).sum(1), last[-1]], dim=1))


class Stateful(nn.Module):
    """It answers its hidden state, which must keep its width."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 8, batch_first=True)
        self.up = nn.Linear(8, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, (last, _) = self.lstm(x)
        return self.head(torch.relu(self.up(out[:, -1]))), last.transpose(0, 1)


def series(count: int = 64, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Series of standard normal rows; the class is the largest of three sums."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, STEPS, FEATURES)).astype(np.float32)
    return [(one, np.int64(one[:, :CLASSES].sum(0).argmax())) for one in made]


def tokens(count: int = 64, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Rows of tokens, and the first one's remainder."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, Attended.VOCABULARY, (count, STEPS))
    return [(one, np.int64(one[0] % CLASSES)) for one in made]
