"""ResNet-20 and ResNet-56 for CIFAR-10 (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2).

    paretune optimize examples/cifar10.py:resnet56 --budget "drop<=1pp" --target onnxruntime,openvino --batch 1,32

Weights and data are read from $PARETUNE_DATA, else from ../shared/data beside the repository.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from paretune import Workload
from paretune.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def resnet20() -> Workload:
    """Three stages of three blocks: 0.27 M parameters, 41 M multiply-accumulates, 0.8835 right on the test file."""
    return workload("resnet20", blocks=3)


def resnet56() -> Workload:
    """Three stages of nine blocks: 0.85 M parameters, 125 M multiply-accumulates, 0.9037 right on the test file."""
    return workload("resnet56", blocks=9)


def workload(name: str, blocks: int) -> Workload:
    def trained() -> nn.Module:
        from safetensors.torch import load_file

        net = ResNet(blocks)
        net.load_state_dict(load_file(find(f"cifar10-{name}.safetensors")))
        return net.eval()

    train, heldout = Images(find("cifar10-jpeg-train.parquet")), Images(find("cifar10-jpeg-test.parquet"))
    return Workload(name, model=trained, train=train, heldout=heldout, score="accuracy")


def find(file: str) -> Path:
    """The data file of that name; raises DataError where there is none."""
    folder = Path(os.environ.get("PARETUNE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (folder / file).is_file():
        raise DataError(
            f"there is no {file}", where=str(folder), do="set PARETUNE_DATA to the directory that holds the data"
        )
    return folder / file


class Images:
    """JPEG images in a parquet file: item = (float32 [3, 32, 32] normalised, class), decoded when asked for."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._table = parquet.read_table(path, columns=["image", "label"])

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        from PIL import Image

        row = self._table["image"][index].as_py()
        with Image.open(io.BytesIO(row["bytes"])) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32) / 255
        normalised = (pixels - MEAN) / DEVIATION
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)), np.int64(self._table["label"][index].as_py())


class ResNet(nn.Module):
    """float32 [batch, 3, 32, 32] → logits [batch, 10]; three stages of 16, 32 and 64 channels."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks, stride=1)
        self.layer2 = stage(16, 32, blocks, stride=2)
        self.layer3 = stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def stage(channels: int, to: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, to, stride), *(Block(to, to, 1) for _ in range(blocks - 1)))


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut without parameters (the paper's option A)."""

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
