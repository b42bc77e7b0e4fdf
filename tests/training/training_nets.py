"""Small models and data to train; run as a program, it trains one, pausing in every step so that it can be killed.

    python training_nets.py FOLDER PAUSE_S [taught]

Checkpoints go to FOLDER/checkpoints, after every step if there is a pause, else after every epoch; the parameters at
the end go to FOLDER/end.safetensors. With ``taught`` another net is imitated.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.forms import torch as form
from paretune.training.distillation import Teacher, distilling
from paretune.training.loss import supervised
from paretune.training.plan import Plan
from paretune.training.trainer import Keeping, train

FEATURES, CLASSES = 6, 3
PLAN = Plan(epochs=6, batch=16, micro_batch=8, learning_rate=0.02, validation=0.2, patience=5)


class Net(nn.Module):
    """Everything that has a state of its own in training: batch normalisation, dropout, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES)
        )
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += x.mean().detach()
        return self.layers(x) + 0 * self.seen


def net(seed: int = 0, kind: type[nn.Module] = Net) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind().eval()


def rows(count: int = 120, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Three classes, told apart by three of the six features."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((count, FEATURES)).astype(np.float32)
    return [(x, np.int64(np.argmax(x[:CLASSES]))) for x in inputs]


def split(items: list) -> Split:
    return Split.whole(items, None, "train")


def sealed(module: nn.Module, root: Path, outputs: int = CLASSES, features: int = FEATURES, **facts) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    form.save(module, root)
    inputs = (TensorSpec("x", "float32", ("batch", features)),)
    answers = (TensorSpec("output", "float32", ("batch", outputs)),)
    return Artifact.seal("torch", root, inputs, answers, origin=module, **facts)


def main(folder: Path, pause_s: float, taught: bool = False) -> None:
    plain = supervised(None)
    if taught:
        teacher = Teacher(sealed(net(7), folder / "teacher"), split(rows()), torch.device("cpu"))
        plain = distilling(teacher, None, 0.7, 4.0, True)

    def slow(call, lesson):
        time.sleep(pause_s)
        return plain(call, lesson)

    live = net()
    artifact = sealed(live, folder / "model")
    module = form.restore(artifact)
    keeping = Keeping(folder / "checkpoints", 0.0 if pause_s else 60.0)
    outcome = train(module, artifact, split(rows()), slow, PLAN, 3, keeping=keeping)
    state = {name: tensor.clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    save_file(state, folder / "end.safetensors", {"curve": repr(outcome.epochs), "resumed": str(outcome.resumed)})


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums of another order are other bits
    main(Path(sys.argv[1]), float(sys.argv[2]), "taught" in sys.argv)
