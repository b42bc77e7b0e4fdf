"""Trained results that are kept beside the code, so that nothing is trained twice: workloads whose student is one.

    paretune optimize benchmarks/kept.py:resnet56_blocks_2_5x --recipe benchmarks/recipes/resnet56_blocks_more.json \\
        --budget "drop<=1pp" --batch 1,32 --time 10h

`benchmarks/weights/README.md` names the command that made each, and the licence of the weights it began with.

    python benchmarks/kept.py runs/more/store/4f/4f0…/out resnet56_blocks_2.5x

puts what such a training ended with in the place of what it began with: the directory is that in the run's store whose
`artifact.json` tells of the training.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from torch import nn

from paretune import Workload
from paretune.ask.artifact import Artifact
from paretune.ask.workload import load
from paretune.forms import torch as form

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "benchmarks" / "weights"


def resnet56_blocks_2_5x() -> Workload:
    """ResNet-56 on CIFAR-10; the student is what is left of it without 16 of its 25 blocks that can go."""
    return with_student("cifar10.py:resnet56", "resnet56_blocks_2.5x")


def resnet56_blocks_2_1x() -> Workload:
    """ResNet-56 on CIFAR-10; the student is what is left of it without 14 of its 25 blocks that can go."""
    return with_student("cifar10.py:resnet56", "resnet56_blocks_2.1x")


def with_student(example: str, kept: str) -> Workload:
    """An example's workload, and the kept result that was made of its model."""
    work = load(f"{ROOT / 'examples' / example}")

    def student() -> nn.Module:
        artifact = Artifact.open(WEIGHTS / kept)
        return form.restore(dataclasses.replace(artifact, origin=work.model()))

    return dataclasses.replace(work, student=student)


def keep(trained: Artifact, kept: Path) -> Artifact:
    """The kept result with the parameters of a training of it, and the notes of both; written over it."""
    before = Artifact.open(kept)
    if trained.base != "student" or trained.parameters != before.parameters:
        raise SystemExit(f"{trained.root} is no training of {kept.name}")
    shutil.copyfile(trained.path(".safetensors"), kept / form.WEIGHTS)
    return Artifact.seal(
        "torch", kept, before.inputs, before.outputs,
        keyword_inputs=before.keyword_inputs, output_kind=before.output_kind, precision=before.precision,
        parameters=before.parameters, macs=before.macs, base=before.base, notes=(*before.notes, *trained.notes),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("kept")
    asked = parser.parse_args()
    print(keep(Artifact.open(asked.trained), WEIGHTS / asked.kept).digest)
