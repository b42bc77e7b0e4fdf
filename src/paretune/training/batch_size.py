"""How many examples at once: the largest number that fits into memory, and the one that is quickest.

What it finds depends on the machine and its load, so no technique asks it by itself: its answer is a knob's value.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.passing import lacks_memory
from paretune.check import cgroup
from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.training import random_state
from paretune.training.activation_checkpoint import recomputed
from paretune.training.device import accelerator, repeatable
from paretune.training.learner import Learner, demand_trainable
from paretune.training.lesson import Lesson, Lessons
from paretune.training.loss import Step
from paretune.training.optimizer import made
from paretune.training.plan import Plan

TIMED = 3
"""Steps that are timed at each size, after one that is not; their median counts."""
HELD = 2.0
"""On a CPU a step is taken to need so many times the bytes that its backward pass holds: gradients and work space come
on top."""


@dataclass(frozen=True)
class BatchSize:
    """What was found.

    Attributes
    ----------
    micro_batch
        The quickest number of examples at once, a value for the knob of that name.
    accumulation
        How many such parts make up the plan's batch.
    largest
        The largest number at once, of those tried, that fits into memory.
    examples_per_s
        The throughput at every number tried that fits.
    """

    micro_batch: int
    accumulation: int
    largest: int
    examples_per_s: Mapping[int, float]


def find(
    module: torch.nn.Module,
    artifact: Artifact,
    data: Split,
    step: Step,
    plan: Plan,
    seed: int,
    *,
    limit_bytes: int | None = None,
    name: str = "training",
) -> BatchSize:
    """Try 2, 4, 8 … examples at once, up to ``plan.batch``, by real steps on a copy, until a number does not fit.

    A GPU is asked by filling it. A CPU is not: Linux would grant the memory, and end the process when it is used. There
    what the backward pass holds is counted first, and what needs more than ``limit_bytes`` is not tried.

    Parameters
    ----------
    limit_bytes
        What training may use; None: half of what is free now, within the limits of the control group.

    Raises
    ------
    BuildError
        If not even the smallest number fits, or the module cannot learn.
    """
    demand_trainable(module, name)
    top = min(plan.batch, len(data))
    speeds: dict[int, float] = {}
    tried = copy.deepcopy(module)
    again = recomputed(tried, name) if plan.activation_checkpointing else contextlib.nullcontext()
    with (
        accelerator(plan.precision) as device, again, repeatable(device.device),
        random_state.seeded(seed, device.device),
    ):  # fmt: skip
        trial = _Trial(tried, artifact, data, step, plan, device)
        limit = _free(device.device) if limit_bytes is None else limit_bytes
        for size in _sizes(top):
            try:
                if not trial.may_fit(size, limit):
                    break
                speeds[size] = trial.speed(size)
            except ParetuneError:
                raise
            except Exception as error:  # whatever the user's forward or loss raises, or an allocator
                if not lacks_memory(error):
                    raise BuildError(
                        f"the model fails in training: {error!r}", where=name,
                        do="see that it trains by itself, in train mode, on a batch of this size",
                    ) from error  # fmt: skip
                break
    if not speeds:
        raise BuildError(
            f"not even {min(2, top)} examples at once fit into memory",
            where=name,
            do="free some, or use a smaller model",
        )
    quickest = max(speeds, key=lambda size: speeds[size])
    return BatchSize(quickest, math.ceil(top / quickest), max(speeds), speeds)


class _Trial:
    """Steps of training that are thrown away."""

    def __init__(
        self, module: torch.nn.Module, artifact: Artifact, data: Split, step: Step, plan: Plan, device: Accelerator
    ) -> None:
        if plan.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module, self.step, self.device = module.train(), step, device
        self.lessons = Lessons(data, artifact, device.device, plan.channels_last)
        self.learner = device.prepare_model(Learner(module, form.keywords(artifact)))
        if plan.compile:
            self.learner.compile()
        self.optimizer = device.prepare_optimizer(made(module, plan))

    def may_fit(self, size: int, limit_bytes: int | None) -> bool:
        """Whether a step of that size may be tried: on a GPU always, on a CPU by what half the size holds."""
        if limit_bytes is None:
            return True
        smaller = min(size, max(2, size // 2))
        return HELD * self._held(self._lesson(smaller)) * size / smaller <= limit_bytes

    def speed(self, size: int) -> float:
        """Examples a second."""
        lesson = self._lesson(size)
        seconds = []
        for number in range(1 + TIMED):
            begun = time.perf_counter()
            self.device.backward(self.step(self.learner, lesson))
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.device.device.type == "cuda":
                torch.cuda.synchronize(self.device.device)
            if number:
                seconds.append(time.perf_counter() - begun)
        return size / statistics.median(seconds)

    def _lesson(self, size: int) -> Lesson:
        return self.lessons.at(np.arange(size))

    def _held(self, lesson: Lesson) -> int:
        """Bytes that the forward pass leaves for the backward pass, without parameters and inputs."""
        known = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*self.module.parameters(), *self.module.buffers(), *lesson.inputs)
        }
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.step(self.learner, lesson)
        return sum(found.values())


def _sizes(top: int) -> Iterator[int]:
    """2, 4, 8 … below ``top``, and ``top``; not 1, with which batch normalisation cannot learn."""
    size = 2
    while size < top:
        yield size
        size *= 2
    yield top


def _free(device: torch.device) -> int | None:
    """Half of the memory that is free on a CPU; None on other devices, which say so themselves."""
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    group = cgroup.limits()["memory_bytes"]
    if group is not None:
        free = min(free, max(0, group - psutil.Process().memory_info().rss))
    return free // 2
