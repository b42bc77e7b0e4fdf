"""A multilayer perceptron for regression.

    paretune optimize examples/regression.py:friedman --budget "drop<=2%" --batch 1,32

The data is scikit-learn's ``make_friedman1`` (Friedman 1991, "Multivariate Adaptive Regression Splines"): a seeded
synthetic function of ten uniform numbers, five of which count, with noise of variance 1. Real tables that ship with
scikit-learn have a few hundred rows, too few to prove anything about a drop of a per cent or two.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from torch import nn
from torch.nn import functional

from paretune import Workload

ROWS = 6000
SEED = 0


def friedman() -> Workload:
    """3,000 rows to train on and 3,000 held out; the score is the mean squared error: a drop is in per cent of it."""
    rows = examples()
    train, heldout = rows[: ROWS // 2], rows[ROWS // 2 :]
    return Workload(
        "friedman", model=lambda: fit(train), train=train, heldout=heldout, score="mse", loss=functional.mse_loss
    )


def examples() -> list[tuple[np.ndarray, np.ndarray]]:
    """Items (float32 [10] with mean 0 and deviation 1, float32 [1])."""
    inputs, targets = make_friedman1(n_samples=ROWS, n_features=10, noise=1.0, random_state=SEED)
    inputs = ((inputs - 0.5) * np.sqrt(12)).astype(np.float32)
    return list(zip(inputs, targets.astype(np.float32)[:, None], strict=True))


def fit(rows: list[tuple[np.ndarray, np.ndarray]], epochs: int = 40, size: int = 100) -> nn.Module:
    """float32 [batch, 10] → [batch, 1]; seeded, on one thread, and without a trace on the caller's generator."""
    inputs = torch.from_numpy(np.stack([row for row, _ in rows]))
    targets = torch.from_numpy(np.stack([target for _, target in rows]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            hidden = [part for width in (10, 256, 256) for part in (nn.Linear(width, 256), nn.ReLU())]
            net = nn.Sequential(*hidden, nn.Linear(256, 1))
            train(net, inputs, targets, epochs, size)
    finally:
        torch.set_num_threads(threads)
    return net.eval()


def train(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int, size: int) -> None:
    """AdamW on one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    steps = epochs * -(-len(inputs) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(size):
            loss = functional.mse_loss(net(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
