"""What a model has right of images as they are, mirrored and moved: whether augmentation teaches images nobody shows.

    python benchmarks/moved.py benchmarks/kept.py:resnet56_blocks_2_1x

Images that were compressed in squares at fixed places are others once they are moved. One row each for the workload's
model and, where it has one, its student, on the whole of the held-out data, in PyTorch. The last column is of the mean
of the answers to an image and its mirror image, which the knob `consensus` teaches with `augment=flip` where an image's
views hold both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn

from paretune.ask.data import Split
from paretune.ask.workload import Workload, load
from paretune.training.augmentation import Augmentation
from paretune.training.lesson import Lesson

BATCH = 256
LOOKS = ("as they are", "mirrored", "moved, half mirrored", "as they are and mirrored, mean answer")


def lessons(workload: Workload) -> Iterator[Lesson]:
    split, start = Split.whole(workload.heldout, workload.collate, "heldout"), 0
    for batch in split.batches(BATCH):
        images, *more = batch.inputs
        if more or batch.labels is None:
            raise SystemExit(f"{workload.name} does not give one image and a class: those alone are looked at here")
        yield Lesson(
            (torch.from_numpy(images),), torch.from_numpy(batch.labels), torch.arange(start, start + len(batch))
        )
        start += len(batch)


def right(module: nn.Module, workload: Workload, seed: int) -> dict[str, float]:
    """Per cent of the held-out images, by how they are looked at."""
    moving = Augmentation("shift_flip", seed, len(workload.heldout))
    found = dict.fromkeys(LOOKS, 0)
    with torch.no_grad():
        for lesson in lessons(workload):
            (images,) = lesson.inputs
            answers = [module(one) for one in (images, images.flip(-1), moving.of(lesson, 1).inputs[0])]
            for look, answer in zip(LOOKS, (*answers, answers[0] + answers[1]), strict=True):
                found[look] += int((answer.argmax(dim=1) == lesson.labels).sum())
    return {look: 100 * count / len(workload.heldout) for look, count in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--seed", type=int, default=0, help="of what is moved where")
    asked = parser.parse_args()
    workload = load(asked.workload)
    modules = {"model": workload.model(), "student": workload.student() if workload.student else None}
    print("| right, % | " + " | ".join(LOOKS) + " |\n" + "|---" * (1 + len(LOOKS)) + "|")
    for name, module in modules.items():
        if module is not None:
            found = right(module.eval(), workload, asked.seed)
            print(f"| {name} | " + " | ".join(f"{found[look]:.2f}" for look in LOOKS) + " |", flush=True)


if __name__ == "__main__":
    main()
