"""A small trained-looking model and its data, in every form that the installed plug-ins can reach."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask import plugin, source
from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.target import Arrays
from paretune.build.technique import Fit
from paretune.errors import PluginError

SHAPE = (3, 12, 12)
CLASSES = 4


class Images:
    """Seeded images of four classes, each class brighter than the last; labels are the classes."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(7)
        self._labels = np.arange(count) % CLASSES
        noise = rng.standard_normal((count, *SHAPE))
        self._images = (noise + 0.5 * self._labels[:, None, None, None]).astype(np.float32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        return self._images[index], int(self._labels[index])


@cache
def examples() -> Split:
    """Training examples for the sample model: images of shape (3, 12, 12), float32, and labels 0 … 3."""
    return Split.whole(Images(40), None, "train")


def module() -> Any:
    """The sample model, a seeded ``torch.nn.Module`` in eval mode: (batch, 3, 12, 12) float32 → (batch, 4)."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
        )  # fmt: skip
    return net.eval()


def models(into: Path) -> list[object]:
    """The sample model as a person may have it: a module, a function, a ``.pt2`` and a ``.onnx`` file."""
    import torch

    net = module()
    program = into / "sample.pt2"
    batch = (torch.zeros(2, *SHAPE),)
    torch.export.save(torch.export.export(net, batch, dynamic_shapes=({0: torch.export.Dim("batch")},)), program)
    shutil.copyfile(artifact("onnx").path(".onnx"), graph := into / "sample.onnx")
    return [net, module, program, graph]


@cache
def artifact(form: str) -> Artifact:
    """The sample model in a form, made by the installed source and conversions; one copy per process, for reading.

    Raises
    ------
    PluginError
        If no chain of installed conversions leads to this form.
    """
    made, _ = source.find(module(), examples(), _place("source"))
    paths: deque[tuple[str, ...]] = deque([()])
    known = {made.form}
    kinds = {name: kind for name, kind in plugin.usable("techniques").items() if kind.kind == "convert"}
    while paths:
        path = paths.popleft()
        here = kinds[path[-1]].gives if path else made.form
        if here == form:
            for name in path:
                made = kinds[name]().apply(made, fit(made, _place(name)))
            return made
        for name, kind in kinds.items():
            if here in kind.takes and kind.gives not in known:
                known.add(kind.gives)
                paths.append((*path, name))
    raise PluginError(f"no installed conversion leads to the form {form!r}", do="override the suite's `artifact`")


def fit(artifact: Artifact, scratch: Path, train: bool = True) -> Fit:
    """What a technique may learn from: the examples (or none), seed 0, the artefact itself as teacher."""
    return Fit(examples() if train else None, None, artifact, 0, scratch)


def inputs(artifact: Artifact, batch: int, seed: int = 0) -> Arrays:
    """Seeded inputs that fit the artefact: floats are standard normal, integers 0 or 1, free axes but the first 8."""
    rng = np.random.default_rng(seed)
    made = []
    for spec in artifact.inputs:
        shape = [axis if isinstance(axis, int) else 8 if place else batch for place, axis in enumerate(spec.shape)]
        kind = np.dtype(spec.dtype)
        values = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        made.append(np.asarray(values).astype(kind))
    return tuple(made)


def _place(name: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix=f"paretune-{name}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root
