"""Small nets of many kinds, whose layers can be made narrower, or cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.forms import torch as form

CLASSES, SIZE = 3, 8


def seeded(kind, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind()
        for part in module.modules():  # as after a training: nothing is neutral
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.2)
                nn.init.normal_(part.running_mean, std=0.2)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


class Plain(nn.Module):
    """Convolutions with and without normalisation, then a flattened map and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(12 * 16, 16)
        self.fc2 = nn.Linear(16, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = torch.sigmoid(self.conv2(x)).flatten(1)
        return self.fc2(functional.gelu(self.fc1(x)))


class Padded(nn.Module):
    """Residual blocks whose shortcut subsamples and pads channels (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.one = PaddedBlock(8, 8)
        self.two = PaddedBlock(8, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.stem(image)))
        return self.head(self.two(self.one(x)).mean((2, 3)))


class PaddedBlock(nn.Module):
    def __init__(self, channels: int, to: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, to, 3, 1 if channels == to else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(to)
        self.conv2 = nn.Conv2d(to, to, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(to)
        pad = (to - channels) // 2
        self.shortcut = Lambda(
            (lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))) if pad else (lambda x: x)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Projected(nn.Module):
    """A residual block whose shortcut is a convolution: its whole width may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.short = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(image))
        x = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + self.short(x)
        return self.head(functional.relu(x).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped, depthwise and transposed convolutions, group normalisation, PReLU, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.groups = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.act = nn.PReLU(24)
        self.up = nn.ConvTranspose2d(24, 8, 2, stride=2)
        self.upgroups = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.side = nn.Conv2d(24, 6, 1)
        self.last = nn.Conv2d(14, CLASSES, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.groups(functional.relu(self.first(image))))
        x = self.act(self.depthwise(x))
        up = self.upgroups(functional.relu(self.up(x)))[:, :, ::4, ::4]
        return self.last(torch.cat([up, self.side(x)], 1)).mean((2, 3))


class Rows(nn.Module):
    """A regression's or classifier's net of linear layers, normalised per example."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 24), nn.LayerNorm(24), nn.Sigmoid(), nn.Linear(24, 16), nn.Tanh(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Fixed(nn.Module):
    """A view with its size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.tail = FixedTail()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.tail(functional.relu(self.conv(functional.relu(self.inner(image)))))


class FixedTail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.view(-1, 128))


class Gated(nn.Module):
    """A layer whose halves are multiplied, one used twice, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.hidden = nn.Conv2d(8, 10, 1)
        self.head = nn.Linear(10, CLASSES)
        self.extra = nn.Linear(10, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        one, two = self.wide(image).chunk(2, dim=1)
        x = self.twice(functional.relu(self.twice(one * torch.sigmoid(two))))
        x = functional.relu(self.hidden(x)).mean((2, 3))
        return {"extra": self.extra(x), "logits": self.head(x)}


class Tied(nn.Module):
    """Tokens whose embedding is the head's weight, too."""

    VOCABULARY = 7

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(self.VOCABULARY, 12)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.head = nn.Linear(12, self.VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(functional.relu(self.up(x)))
        return self.head(x.mean(1))


class Vector(nn.Module):
    """A vector that becomes a map: one channel of it is four features."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(3 * SIZE * SIZE, 32)
        self.conv = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.grow(image.flatten(1)))
        return self.head(functional.relu(self.conv(x.reshape(len(x), -1, 2, 2))).mean((2, 3)))


def images(count: int = 96, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Images of three classes, told apart by the brightest of three channels."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count)
    made[np.arange(count), labels] += 1.0
    return [(image, np.int64(label)) for image, label in zip(made, labels, strict=True)]


def words(count: int = 64, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Five tokens each, and the most frequent of them."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, Tied.VOCABULARY, (count, 5))
    return [(row, np.int64(np.bincount(row).argmax())) for row in made]


def sealed(live: nn.Module, root: Path, example: np.ndarray | None = None) -> Artifact:
    """The module's artefact; its inputs are called ``x`` and shaped like the example."""
    root.mkdir(parents=True, exist_ok=True)
    form.save(live, root)
    example = images(1)[0][0] if example is None else example
    names, tensors, kind = form.flatten_outputs(live(torch.from_numpy(example[None])))
    answers = tuple(
        TensorSpec(name, "float32", ("batch", *tensor.shape[1:])) for name, tensor in zip(names, tensors, strict=True)
    )
    inputs = (TensorSpec("x", str(example.dtype), ("batch", *example.shape)),)
    return Artifact.seal("torch", root, inputs, answers, output_kind=kind, origin=live)


def fitted(artifact: Artifact, root: Path, items: list | None = None, **options) -> Fit:
    data = Split.whole(images() if items is None else items, None, "train")
    return Fit(data, None, options.pop("teacher", artifact), options.pop("seed", 0), root / "scratch", **options)
