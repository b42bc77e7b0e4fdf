"""The embedded default: a small convolutional network for handwritten digits, trained where it is called.

The data is scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits" (Alpaydin, Kaynak 1998,
UCI Machine Learning Repository): 1,797 real digits of 8 × 8 pixels, shipped with the library. The network is plain:
3 × 3 convolutions, each followed by batch normalisation and ReLU, then global average pooling and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.ask.workload import Workload

if TYPE_CHECKING:
    import torch

BUDGET = "drop<=1pp"
"""What ``paretune demo`` asks for: at most one point of accuracy lost, shown on the whole of held-out."""
HELDOUT = 1000
SIDE = 16
WIDTH = 32
EPOCHS = 20
BATCH = 64
SEED = 0

Array = np.ndarray[Any, Any]
Examples = list[tuple[Array, np.int64]]


def digits() -> Workload:
    """Handwritten digits: 797 to train on and 1,000 held out, stratified by class and seeded.

    The network is trained when the model is asked for: about five seconds, 99 % right on held-out, and
    the same weights each time on the same machine.
    """
    train, heldout = examples()
    return Workload("digits", model=network, train=train, heldout=heldout, score="accuracy")


def examples() -> tuple[Examples, Examples]:
    """Training and held-out examples: float32 [1, 16, 16] with mean 0 and deviation 1 over the data, and a class 0 … 9.

    The 8 × 8 pixels are enlarged bilinearly, so that the network has something to do.
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    factor = SIDE // digits.images.shape[1]
    images = zoom(digits.images.astype(np.float32), (1, factor, factor), order=1, grid_mode=True, mode="nearest")
    images = ((images - images.mean()) / images.std())[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    train, heldout, train_labels, heldout_labels = train_test_split(
        images, labels, test_size=HELDOUT, stratify=labels, random_state=SEED
    )
    return list(zip(train, train_labels, strict=True)), list(zip(heldout, heldout_labels, strict=True))


def network() -> torch.nn.Module:
    """The trained network in eval mode: float32 [batch, 1, 16, 16] → logits float32 [batch, 10]."""
    import torch

    train, _ = examples()
    images = torch.from_numpy(np.stack([image for image, _ in train]))
    labels = torch.from_numpy(np.array([label for _, label in train]))
    with _reproducible():
        net = _layers()
        _train(net, images, labels)
    return net.eval()


def _layers() -> torch.nn.Sequential:
    from torch import nn

    def block(channels: int, to: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(channels, to, 3, stride, 1, bias=False), nn.BatchNorm2d(to), nn.ReLU()]

    return nn.Sequential(
        *block(1, WIDTH),
        *block(WIDTH, WIDTH),
        *block(WIDTH, 2 * WIDTH, stride=2),
        *block(2 * WIDTH, 2 * WIDTH),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * WIDTH, 10),
    )


def _train(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW on one cycle of the learning rate, with shifts of up to two pixels as the only augmentation."""
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    starts = range(0, len(images) - BATCH + 1, BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=EPOCHS * len(starts))
    paper = float(images.min())
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in starts:
            chosen = order[start : start + BATCH]
            down, right = torch.randint(0, 5, (2,)).tolist()
            padded = functional.pad(images[chosen], (2, 2, 2, 2), value=paper)
            shifted = padded[:, :, down : down + SIDE, right : right + SIDE]
            loss = functional.cross_entropy(net(shifted), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@contextmanager
def _reproducible() -> Iterator[None]:
    """Seeded, on one thread: how sums are split between several shows in the last bits, and in the model's digest."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)
