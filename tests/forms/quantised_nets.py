"""Nets whose parts are called in the ways that quantisers must find their places in."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def seeded(kind: type[nn.Module], *given: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(*given).eval()


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters, all but the layers in functions."""

    def __init__(self, channels: int, to: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, to, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(to)
        self.conv2 = nn.Conv2d(to, to, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(to)
        self.stride, self.pad = stride, (to - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """Images [batch, 3, 12, 12] → 4 logits, as the CIFAR ResNets of He et al. 2016 are made."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2))
        self.linear = nn.Linear(16, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        return self.linear(self.layer2(self.layer1(x)).mean((2, 3)))


class Shared(nn.Module):
    """A rectifier that changes its input in place and is used everywhere, a pool, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.twice, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.stem(x)))
        x = self.relu(self.norm(self.twice(x)))
        x += self.twice(x)
        return self.head(self.relu(x).mean((2, 3)))
