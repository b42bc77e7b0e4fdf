"""Nets of residual blocks, some of which hardly matter, and their data."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import training_nets as nets
from torch import nn

from paretune.ask import source
from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.testing import samples

WIDTH = 16
DULL = ("stages.0.2", "stages.1.1")


class Block(nn.Module):
    """Adds a little to its input; ``weight`` says how much."""

    def __init__(self, width: int, weight: float) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, width)
        with torch.no_grad():
            self.down.weight *= weight
            self.down.bias *= weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


class Residual(nn.Module):
    """Two stages of three blocks, wider in the second; the third block and the fifth are dull."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(nets.FEATURES, WIDTH)
        narrow = [Block(WIDTH, 3), Block(WIDTH, 3), Block(WIDTH, 0.02)]
        wide = [Block(2 * WIDTH, 3), Block(2 * WIDTH, 0.01), Block(2 * WIDTH, 3)]
        self.stages = nn.ModuleList([nn.Sequential(*narrow), nn.Sequential(*wide)])
        self.widen = nn.Linear(WIDTH, 2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, nets.CLASSES)
        with torch.no_grad():
            self.head.weight *= 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages[1](self.widen(self.stages[0](self.stem(x))))
        return self.head(x)


@cache
def residual() -> nn.Module:
    """The net, its batch normalisations settled on the data; the same bits whoever asks first, with any threads."""
    module = nets.net(5, Residual).train()
    x = torch.from_numpy(np.stack([x for x, _ in nets.rows(300)]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(30):
                module(x)
    finally:
        torch.set_num_threads(threads)
    return module.eval()


def answered(module: nn.Module, count: int = 300, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Rows with the module's own classes for labels."""
    x = np.stack([x for x, _ in nets.rows(count, seed)])
    with torch.no_grad():
        classes = module(torch.from_numpy(x)).argmax(1).numpy()
    return list(zip(x, classes, strict=True))


def sealed(root: Path | None = None) -> Artifact:
    macs = nets.FEATURES * WIDTH + 6 * WIDTH**2 + 2 * WIDTH**2 + 6 * (2 * WIDTH) ** 2 + 2 * WIDTH * nets.CLASSES
    return nets.sealed(residual(), (root or Path(tempfile.mkdtemp())) / "residual", macs=macs)


class Pictures(nn.Module):
    """The suites' images → their classes, through three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(samples.SHAPE[0], 8, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Convolutions(8) for _ in range(3)))
        self.head = nn.Linear(8, samples.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def pictures() -> Artifact:
    """For the suites: a model of their images that has blocks."""
    return source.find(nets.net(0, Pictures), samples.examples(), Path(tempfile.mkdtemp()))[0]


def fitted(artifact: Artifact, scratch: Path, items: list | None = None, **options) -> Fit:
    items = answered(residual()) if items is None else items
    return Fit(Split.whole(items, None, "train") if items else None, None, artifact, 0, scratch, **options)
