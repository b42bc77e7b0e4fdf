"""What several tests share: a small trained classifier as a user would have it, in a file and live."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

WORKLOADS = '''
"""Small workloads, good and bad, as a user might write them."""
import numpy as np
import torch
from paretune import Workload


def _net():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)]
    return torch.nn.Sequential(*layers).eval()


net = _net()
_random = np.random.default_rng(0)
images = _random.normal(size=(1600, 1, 8, 8)).astype("float32")
with torch.inference_mode():
    labels = net(torch.from_numpy(images)).argmax(1).numpy()
items = list(zip(images, labels))
good = Workload("good", net, train=items[:700], heldout=items[700:])
one = Workload("one", net, train=items[:700], heldout=items[:1])
empty = Workload("empty", net, train=items[:700], heldout=[])
unlabelled = Workload("unlabelled", net, train=None, heldout=[(x, None) for x in images])
double = Workload("double", net, train=None, heldout=[(x.astype("float64"), y) for x, y in items])
shaped = Workload("shaped", net, train=None, heldout=[(x[:, :7], y) for x, y in items])
missing = Workload("missing", net, train=items[:700], heldout=items[700:900] + [(items[0][0] * np.nan, 1)])
wrong = Workload("wrong", net, train=items[:700], heldout=[(x[:, :, :5], y) for x, y in items[700:]])
overlapping = Workload("overlapping", net, train=items[:400], heldout=items[:1200])
not_a_score = Workload("nan", net, None, items, score=lambda out, y: torch.full((len(y),), float("nan")))
set_level = Workload("set", net, None, items, score=lambda out, y: 1.0)
raising = Workload("raising", net, None, items, score=lambda out, y: out.nonsense)
pickled = Workload("pickled", "model.pt", None, items)
number = 3


class Branching(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4] if x.sum().item() > 0 else -x.flatten(1)[:, :4]


branching = Workload("branching", Branching(), None, items)


def broken():
    raise RuntimeError("no data today")
'''


@pytest.fixture
def workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds ``works.py``."""
    (tmp_path / "works.py").write_text(WORKLOADS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
