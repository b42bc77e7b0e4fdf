"""Several processes that train one module: what they cannot share is refused, and they decide alike."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState

from paretune.errors import BuildError
from paretune.training.plan import Plan


def demand_shareable(
    device: Accelerator, batch: int, plan: Plan, companion: torch.nn.Module | None, where: str
) -> None:
    """Refuse what several processes cannot share.

    Raises
    ------
    BuildError
        If there are fewer examples to a step than processes, or something learns that is not within the module.
    """
    many = device.num_processes
    if many == 1:
        return
    if batch < many:
        raise BuildError(
            f"{batch} examples to a step cannot be shared by {many} processes", where=f"{where}.batch",
            do=f"set batch to {many} or more, or start fewer processes",
        )  # fmt: skip
    learns = companion is not None and any(one.requires_grad for one in companion.parameters())
    if learns or plan.compile:
        demand_single("compile" if plan.compile else "what learns beside the module", where)


def demand_single(what: str, where: str) -> None:
    """Refuse what only a single process can do, in the midst of a training.

    Raises
    ------
    BuildError
        If there are several.
    """
    if PartialState().num_processes > 1:
        raise BuildError(f"{what} needs a single process", where=where, do="start it without accelerate launch")


def demand_agreement(device: Accelerator, step: int, where: str) -> None:
    """Processes that go on from different checkpoints would wait for each other for ever.

    Raises
    ------
    BuildError
        If they do.
    """
    if device.num_processes == 1:
        return
    steps = device.gather(torch.tensor([step], device=device.device)).tolist()
    if len(set(steps)) > 1:
        raise BuildError(
            f"processes find checkpoints of different steps: {', '.join(map(str, steps))}", where=where,
            do="give all of them one directory",
        )  # fmt: skip


def agreed(device: Accelerator, value: float) -> float:
    """The mean over processes of what each found: they stop at the same time then."""
    if device.num_processes == 1:
        return value
    return float(device.reduce(torch.tensor(value, dtype=torch.float32, device=device.device), "mean"))
