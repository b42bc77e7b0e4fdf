"""Trained results that are kept beside the code, so that nothing is trained twice: workloads whose student is one.

    paretune optimize benchmarks/kept.py:resnet56_blocks --recipe benchmarks/recipes/resnet56_blocks_more.json \\
        --budget "drop<=1pp" --batch 1,32 --time 10h

`benchmarks/weights/README.md` names the command that made each, and the licence of the weights it began with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from paretune import Workload
from paretune.ask.artifact import Artifact
from paretune.ask.workload import load
from paretune.forms import torch as form

ROOT = Path(__file__).resolve().parents[1]


def resnet56_blocks() -> Workload:
    """ResNet-56 on CIFAR-10; the student is what is left of it without 16 of its 25 blocks that can go."""
    return with_student("cifar10.py:resnet56", "resnet56_blocks_2.5x")


def with_student(example: str, kept: str) -> Workload:
    """An example's workload, and the kept result that was made of its model."""
    work = load(f"{ROOT / 'examples' / example}")

    def student() -> nn.Module:
        artifact = Artifact.open(ROOT / "benchmarks" / "weights" / kept)
        return form.restore(dataclasses.replace(artifact, origin=work.model()))

    return dataclasses.replace(work, student=student)
