"""How many examples at once: the largest number that fits into memory, and the one that is quickest.

What it finds depends on the machine and its load, so no technique asks it by itself: its answers are knobs' values.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.passing import lacks_memory
from paretune.build.technique import Fit
from paretune.check import cgroup
from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.training import random_state
from paretune.training.activation_checkpoint import recomputed
from paretune.training.device import accelerator, channels_innermost, home, repeatable
from paretune.training.distillation import Teacher, distilling
from paretune.training.healing import answers_classes
from paretune.training.learner import Learner, demand_trainable
from paretune.training.lesson import Lesson, Lessons, demand_lessons
from paretune.training.loss import Step, supervised
from paretune.training.optimizer import made
from paretune.training.plan import Healing, Plan, Teaching
from paretune.training.pupil import pupil
from paretune.training.student import student_of

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
    batch
        The plan's, which the parts make up.
    examples_per_s
        The throughput at every number tried that fits.
    ways
        The throughput at ``micro_batch`` by what else was set: ``as asked``, ``channels_last``, ``compile``, both.
    """

    micro_batch: int
    accumulation: int
    largest: int
    batch: int
    examples_per_s: Mapping[int, float]
    ways: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "micro_batch": self.micro_batch, "accumulation": self.accumulation, "largest": self.largest,
            "batch": self.batch, "examples_per_s": {str(size): speed for size, speed in self.examples_per_s.items()},
            "ways": dict(self.ways),
        }  # fmt: skip


def proposed(plan: Plan, name: str, artifact: Artifact, fit: Fit, up_to: int) -> BatchSize:
    """What suits a technique's training on this machine: :func:`find`, and whether ``channels_last`` and ``compile``
    pay.

    Parameters
    ----------
    plan, name
        The technique and its name.
    artifact, fit
        As for the technique's ``apply``; what learns is the technique's student where it has one.

    Raises
    ------
    BuildError
        As :func:`find`; or if there is no training data, or no student can be made.
    """
    data = demand_lessons(fit.train, name)
    data = data.head(min(up_to, len(data)))
    learner = artifact
    if isinstance(plan, Teaching):
        learner, _ = student_of(plan, artifact, fit, name)
    elif hasattr(plan, "student"):
        learner = pupil(plan.student, artifact, fit, name)
    step = supervised(fit.loss)
    if isinstance(plan, Healing):
        waits = plan.augment != "none" and not plan.views  # else the original answers beforehand
        teacher = Teacher(
            fit.teacher, data, home(), remember=not waits, precision=plan.teacher_precision,
            channels_last=plan.channels_last, name=name,
        )  # fmt: skip
        step = distilling(teacher, fit.loss, plan.alpha, plan.temperature, answers_classes(data, fit, plan))

    def tell(text: str) -> None:
        fit.progress(0.0, text)

    module = form.restore(learner)
    found = find(module, learner, data, step, plan, fit.seed, up_to=up_to, name=name, tell=tell)
    pictures = any(len(spec.shape) == 4 for spec in learner.inputs)
    ways = {"as asked": found.examples_per_s[found.micro_batch]}
    for label, asked in _ways(plan, pictures).items():
        tell(f"{found.micro_batch} at once, {label}")
        try:
            with _trying(module, learner, data, step, asked, fit.seed, name) as trial:
                ways[label] = trial.speed(found.micro_batch)
        except ParetuneError:
            raise
        except Exception:  # no compiler, or a model that cannot be compiled: then it does not pay
            continue
    return dataclasses.replace(found, ways=ways)


def _ways(plan: Plan, pictures: bool) -> dict[str, Plan]:
    """What else may pay, and the plan with it."""
    able = {
        "channels_last": pictures and not plan.channels_last,
        "compile": not plan.compile and not plan.activation_checkpointing,
    }
    names = [name for name, yes in able.items() if yes]
    sets = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
    return {" and ".join(some): dataclasses.replace(plan, **dict.fromkeys(some, True)) for some in sets}  # type: ignore[arg-type]


def find(
    module: torch.nn.Module,
    artifact: Artifact,
    data: Split,
    step: Step,
    plan: Plan,
    seed: int,
    *,
    up_to: int | None = None,
    limit_bytes: int | None = None,
    name: str = "training",
    tell: Callable[[str], None] = lambda text: None,
) -> BatchSize:
    """Try 2, 4, 8 … examples at once by real steps on a copy, until a number does not fit; then some between the last
    two, to an eighth.

    A GPU is asked by filling it. A CPU is not: Linux would grant the memory, and end the process when it is used. There
    what the backward pass holds is counted first, and what needs more than ``limit_bytes`` is not tried.

    Parameters
    ----------
    up_to
        The largest number to try; None: ``plan.batch``.
    limit_bytes
        What training may use; None: half of what is free now, within the limits of the control group.

    Raises
    ------
    BuildError
        If not even the smallest number fits, or the module cannot learn.
    """
    demand_trainable(module, name)
    top = min(up_to or plan.batch, len(data))
    batch = min(plan.batch, top)
    speeds: dict[int, float] = {}
    with _trying(module, artifact, data, step, plan, seed, name) as trial:
        limit = _free(trial.device.device) if limit_bytes is None else limit_bytes

        def fits(size: int) -> bool:
            tell(f"{size} at once")
            try:
                if not trial.may_fit(size, limit):
                    return False
                speeds[size] = trial.speed(size)
            except ParetuneError:
                raise
            except Exception as error:  # whatever the user's forward or loss raises, or an allocator
                if not lacks_memory(error):
                    raise BuildError(
                        f"the model fails in training: {error!r}", where=name,
                        do="see that it trains by itself, in train mode, on a batch of this size",
                    ) from error  # fmt: skip
                return False
            return True

        misfit = next((size for size in _sizes(top, batch) if not fits(size)), None)
        while speeds and misfit is not None and misfit - max(speeds) > max(1, max(speeds) // 8):
            between = (max(speeds) + misfit) // 2
            misfit = misfit if fits(between) else between
    if not speeds:
        raise BuildError(
            f"not even {min(2, top)} examples at once fit into memory",
            where=name,
            do="free some, or use a smaller model",
        )
    within = [size for size in speeds if size <= batch] or [min(speeds)]
    quickest = max(within, key=lambda size: speeds[size])
    return BatchSize(quickest, math.ceil(batch / quickest), max(speeds), batch, dict(sorted(speeds.items())))


@contextlib.contextmanager
def _trying(
    module: torch.nn.Module, artifact: Artifact, data: Split, step: Step, plan: Plan, seed: int, name: str
) -> Iterator[_Trial]:
    """A trial on a copy, in the plan's arithmetic."""
    tried = copy.deepcopy(module)
    again = recomputed(tried, name) if plan.activation_checkpointing else contextlib.nullcontext()
    with (
        accelerator(plan.precision) as device, again, repeatable(device.device),
        random_state.seeded(seed, device.device),
    ):  # fmt: skip
        yield _Trial(tried, artifact, data, step, plan, device)


class _Trial:
    """Steps of training that are thrown away."""

    def __init__(
        self, module: torch.nn.Module, artifact: Artifact, data: Split, step: Step, plan: Plan, device: Accelerator
    ) -> None:
        if plan.channels_last:
            channels_innermost(module)
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


def _sizes(top: int, batch: int) -> list[int]:
    """2, 4, 8 … below ``top``, ``batch`` and ``top``; not 1, with which batch normalisation cannot learn."""
    size, found = 2, {batch, top}
    while size < top:
        found.add(size)
        size *= 2
    return sorted(found)


def _free(device: torch.device) -> int | None:
    """Half of the memory that is free on a CPU; None on other devices, which say so themselves."""
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    group = cgroup.limits()["memory_bytes"]
    if group is not None:
        free = min(free, max(0, group - psutil.Process().memory_info().rss))
    return free // 2
