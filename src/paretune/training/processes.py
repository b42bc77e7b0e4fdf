"""Several processes that train one module: what they cannot share is refused, and they decide alike."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState

from paretune.errors import BuildError
from paretune.training.device import on_cpu
from paretune.training.plan import Plan


class Processes:
    """The crew (see :mod:`paretune.build.crew`) of the processes that ``accelerate launch`` or ``torchrun`` started."""

    def __init__(self) -> None:
        self._state = PartialState()

    @property
    def first(self) -> bool:
        first: bool = self._state.is_main_process
        return first

    def agree(self, yes: bool) -> bool:
        return bool(self._of_first([int(yes)])[0])

    def alike(self, key: str) -> bool:
        mine = list(bytes.fromhex(key))
        differs = torch.tensor([int(self._of_first(mine) != mine)], device=self._state.device)
        torch.distributed.all_reduce(differs)
        return not int(differs)

    def wait(self) -> None:
        self._state.wait_for_everyone()

    def _of_first(self, numbers: list[int]) -> list[int]:
        tensor = torch.tensor(numbers, device=self._state.device)
        torch.distributed.broadcast(tensor, src=0)
        found: list[int] = tensor.tolist()
        return found


@contextlib.contextmanager
def joined() -> Iterator[Processes | None]:
    """The processes that were started together, joined for as long as it lasts; None where this one is alone.

    They wait for each other for up to a day: the first may wait for another program that makes the same.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    begun = not PartialState._shared_state
    PartialState(cpu=on_cpu(), timeout=timedelta(days=1)) if begun else PartialState()
    try:
        yield Processes()
    finally:
        if begun:
            PartialState().destroy_process_group()
            PartialState._reset_state()  # what comes after is not to think that it is one of several


def is_first() -> bool:
    """Whether this is the only process, or the one of several that writes for all."""
    first: bool = PartialState().is_main_process
    return first


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


def share_buffers(device: Accelerator, module: torch.nn.Module) -> None:
    """Give every process the buffers of the first, in place: each has measured those of its own examples alone."""
    if device.num_processes > 1:
        for _, buffer in module.named_buffers():
            torch.distributed.broadcast(buffer, src=0)


def agreed(device: Accelerator, value: float) -> float:
    """The mean over processes of what each found: they stop at the same time then."""
    if device.num_processes == 1:
        return value
    return float(device.reduce(torch.tensor(value, dtype=torch.float32, device=device.device), "mean"))
