"""The one training loop. Its steps are methods of a screen at most; what is minimised is given as a function."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.passing import lacks_memory
from paretune.errors import BuildError, ParetuneError, StoppedError
from paretune.forms import torch as form
from paretune.training import random_state
from paretune.training.activation_checkpoint import recomputed
from paretune.training.augmentation import Augmentation
from paretune.training.average import MEASURED, Average
from paretune.training.checkpoint import Checkpoint, Checkpoints, purpose, tensors_of, unsaved_of
from paretune.training.device import accelerator, channels_innermost, repeatable
from paretune.training.learner import Learner, demand_trainable, frozen
from paretune.training.lesson import Lesson, Lessons
from paretune.training.loss import Examine, Step, examine
from paretune.training.optimizer import load_state, made, state_of
from paretune.training.order import Order, Places, parted, parts
from paretune.training.outcome import Epoch, Outcome, progress_line
from paretune.training.plan import Plan
from paretune.training.processes import agreed, demand_agreement, demand_shareable, share_buffers
from paretune.training.schedule import share

SHOWN_EVERY_S = 1.0
ADVICE = "lower learning_rate or clip, or look for examples that are not finite"
SMALLEST_SCALE = 2.0**-14
"""A loss scale below this means that gradients overflow whatever the scale."""

Progress = Callable[[float, str], None]
Each = Callable[[int, int], None]
"""``(steps done, steps in all)``."""


@dataclass(frozen=True)
class Keeping:
    """Where checkpoints go, and how often: at the end of each epoch, and when ``every_s`` seconds have passed."""

    folder: Path
    every_s: float = 60.0


def train(
    module: torch.nn.Module,
    artifact: Artifact,
    data: Split,
    step: Step,
    plan: Plan,
    seed: int,
    *,
    score: Examine = examine,
    keeping: Keeping | None = None,
    progress: Progress = lambda fraction, text: None,
    name: str = "training",
    companion: torch.nn.Module | None = None,
    each: Each = lambda done, total: None,
    about: Sequence[str] = (),
) -> Outcome:
    """Train ``module`` in place, and leave it on the CPU in eval mode.

    The same module, data, plan and seed give the same parameters, bit for bit, on the same machine with as many
    threads, whether or not it was killed and went on from a checkpoint. Started as several processes, by
    ``accelerate launch`` on GPUs or ``torchrun`` on a CPU, each takes its share of each batch, and all end with the
    same parameters; statistics of batch normalisation are those of the first one's share.

    Frozen parameters stay, and so do the statistics of a batch normalisation whose scale and shift are frozen.

    Parameters
    ----------
    module
        A copy of the user's, which may be changed.
    artifact
        Whose inputs the module takes.
    step
        ``(call, lesson)`` → the scalar to be minimised; :func:`~paretune.training.loss.supervised` makes one of a loss.
    score
        What epochs are scored by, when ``plan.validation`` sets data aside.
    keeping
        Where to keep checkpoints; if there are some of this very training, it goes on from the newest.
    name
        What errors call it.
    companion
        What is trained and kept in checkpoints with the module without being part of it: projections between features,
        masks of weights. Its parameters are updated like the module's, its buffers are the caller's to change.
    each
        Called in training mode before the first step, when a checkpoint was taken up, and after every step: it may
        change tensors of the module and of ``companion``, and modules' modes, as a function of them and of its
        arguments alone; so a resumed training does the same.
    about
        What else decides the result (the digests of a loss, of a teacher): checkpoints of a training that was about
        something else are refused.

    Raises
    ------
    BuildError
        If the module cannot learn, the plan contradicts itself, the loss or a gradient is no longer finite (names the
        step, and the last good checkpoint), every step was skipped, memory was not enough, several processes cannot
        share the work, or ``keeping.folder`` holds the checkpoints of another training.
    StoppedError
        If ``progress`` raised it; a checkpoint was written before.
    """
    demand_trainable(module, name)
    plan.demand_sound(name)
    again = recomputed(module, name) if plan.activation_checkpointing else contextlib.nullcontext()
    with accelerator(plan.precision) as device, again:
        trainer = Trainer(
            module, artifact, data, step, plan, seed, score, keeping, progress, name, device, companion, each, about
        )
        try:
            # every process draws its own noise for its own examples
            with repeatable(device.device), random_state.seeded(seed + device.process_index, device.device):
                return trainer.run()
        finally:
            trainer.leave()


class Trainer:
    """A training under way: :meth:`run` is the loop, and the other methods are its parts."""

    def __init__(
        self, module: torch.nn.Module, artifact: Artifact, data: Split, step: Step, plan: Plan, seed: int,
        score: Examine, keeping: Keeping | None, progress: Progress, name: str, device: Accelerator,
        companion: torch.nn.Module | None, each: Each, about: Sequence[str],
    ) -> None:  # fmt: skip
        self.module, self.step, self.plan, self.score = module, step, plan, score
        self.keeping, self.progress, self.name, self.device = keeping, progress, name, device
        self.companion, self.each = companion, each
        self.checkpoints = None if keeping is None else Checkpoints(keeping.folder)
        self.lessons = Lessons(data, artifact, device.device, plan.channels_last)
        self.learnt, self.aside = parted(len(data), plan.validation, seed)
        if not len(self.learnt):
            raise BuildError("leaves nothing to learn from", where=f"{name}.validation", do="set less aside")
        self.order = Order(len(self.learnt), min(plan.batch, len(self.learnt)), seed)
        self.total = self.order.steps * plan.epochs
        self.augmentation = Augmentation.planned(plan, seed, len(data))
        demand_shareable(device, self.order.batch, plan, companion, name)
        if plan.channels_last:
            channels_innermost(module)
        self.learner = device.prepare_model(Learner(module, form.keywords(artifact), companion))
        if plan.compile:
            self.learner.compile()
        self.optimizer = device.prepare_optimizer(made(self._trained(), plan))
        self.purpose = self._purpose(artifact, data, seed, about)
        self.unbounded = _not_finite(self._trained())  # a causal mask's buffer, say
        self.curve: list[Epoch] = []
        self.losses: list[float] = []  # of this epoch's steps
        self.best, self.best_epoch = dict[str, torch.Tensor](), 0
        self.average = Average(module, plan.average, self.total)
        self.passing = unsaved_of(module)
        self.taken = 0  # steps that half precision did not skip

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint on where there is one."""
        begun = self._resume()
        self.learner.train()
        for layer in frozen(self.module):
            layer.eval()
        self.each(begun, self.total)
        self._clock = self._shown = self._saved = time.monotonic()
        for number in range(begun, self.total):
            if self._has_stopped():
                break
            self.losses.append(self._update(number))
            self.each(number + 1, self.total)
            self.average.take(number + 1)
            ends = (number + 1) % self.order.steps == 0
            if ends:
                self._end_epoch(number)
            self._told(begun, number + 1, ends)
            if self._is_due(ends):
                self._keep(number + 1)
        if not self.taken:
            raise self._diverged("gradients overflowed half precision in every step, up to the last,", self.total - 1)
        self._settle()
        return Outcome(tuple(self.curve), self.best_epoch or len(self.curve), begun)

    def leave(self) -> None:
        """Put the module on the CPU, in eval mode, without gradients; also when the training failed."""
        self.module.zero_grad(set_to_none=True)
        self.module.eval().cpu()
        if self.companion is not None:
            self.companion.zero_grad(set_to_none=True)
            self.companion.eval().cpu()

    def _trained(self) -> torch.nn.Module:
        """All that changes: the module, alone or with its companion."""
        if self.companion is None:
            return self.module
        return torch.nn.ModuleDict({"module": self.module, "companion": self.companion})

    def _has_stopped(self) -> bool:
        """Whether no epoch since the best one was better, for as long as patience lasts."""
        return bool(self.plan.patience) and len(self.curve) - self.best_epoch >= self.plan.patience

    # -- one step ----------------------------------------------------------------------------------------------

    def _update(self, number: int) -> float:
        """One step of the optimizer on one batch, part by part; the batch's loss."""
        rate = self.plan.learning_rate * share(number, self.total, self.plan.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.learnt[self.order.places(number)]
        own = np.arange(len(batch))[self.device.process_index :: self.device.num_processes]
        pieces = parts(own, self.plan.micro_batch)
        labels = self.lessons.labels(batch) if len(own) < len(batch) or len(pieces) > 1 else None
        total = torch.zeros((), device=self.device.device)
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            with contextlib.nullcontext() if last else self.device.no_sync(self.learner):
                # parallel wrappers average over processes, whose shares of a batch may differ by an example
                lesson = dataclasses.replace(self._lesson(number, batch[piece]), batch_labels=labels)
                total += self._backward(lesson, len(piece) * self.device.num_processes / len(batch))
        loss = float(self.device.reduce(total, "mean"))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", number)
        self._step(number)
        return loss

    def _lesson(self, number: int, places: Places) -> Lesson:
        """Examples as the epoch of a step sees them."""
        lesson = self.lessons.at(places)
        if not self.augmentation:
            return lesson
        return self.augmentation.of(lesson, self.augmentation.view(number // self.order.steps), self.lessons.at)

    def _backward(self, lesson: Lesson, weight: float) -> torch.Tensor:
        """Add the gradients of some of the batch; its weighted loss."""
        try:
            loss = self.step(self.learner, lesson) * weight
            self.device.backward(loss)
        except ParetuneError:
            raise
        except Exception as error:  # whatever the user's forward or loss raises in training mode
            if lacks_memory(error):
                raise BuildError(
                    f"the memory is not enough for {len(lesson)} examples at once", where=self.name,
                    do="set micro_batch to fewer, or activation_checkpointing",
                ) from error  # fmt: skip
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise BuildError(
                f"the model fails in training: {type(error).__name__}: {reason}", where=self.name,
                do="see that it trains by itself, in train mode, on a batch of this size",
            ) from error  # fmt: skip
        return loss.detach()

    def _step(self, number: int) -> None:
        norm = self.device.clip_grad_norm_(self._trained().parameters(), self.plan.clip or math.inf)
        scaler = self.device.scaler
        if scaler is None and not math.isfinite(float(norm)):
            raise self._diverged("a gradient is not finite", number)
        self.optimizer.step()
        self.taken += not self.optimizer.step_was_skipped
        self.optimizer.zero_grad()
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            raise self._diverged("gradients overflow half precision at any scale", number)

    def _diverged(self, what: str, number: int) -> BuildError:
        """The error; the checkpoint of the parameters that led to it is dropped, the one before is good."""
        where = f"at step {number + 1} of {self.total} (epoch {number // self.order.steps + 1})"
        kept = ""
        if self.checkpoints is not None and self.device.is_main_process:
            self.checkpoints.drop(number)
            good = self.checkpoints.latest()
            if good is not None:
                kept = f"; the last good parameters, after {good.step} steps, are kept in {self.checkpoints.folder}"
        return BuildError(f"{what} {where}{kept}", where=self.name, do=ADVICE)

    # -- one epoch ---------------------------------------------------------------------------------------------

    def _end_epoch(self, number: int) -> None:
        loss = math.fsum(self.losses) / len(self.losses)
        rate = self.plan.learning_rate * share(number, self.total, self.plan.warmup)
        score = self._scored() if len(self.aside) else None
        self.curve.append(Epoch(loss, score, rate))
        self.losses = []
        if self.plan.patience and score is not None and self._is_best(score):
            self.best_epoch = len(self.curve)
            self.best = {name: tensor.detach().clone() for name, tensor in tensors_of(self._trained())}

    def _is_best(self, score: float) -> bool:
        held = self.curve[self.best_epoch - 1].score if self.best_epoch else None
        return not math.isnan(score) and (held is None or score > held)

    def _scored(self) -> float:
        """The mean score of the examples set aside."""
        modes = {part: part.training for part in self.learner.modules()}
        self.learner.eval()
        total = 0.0
        size = self.plan.micro_batch or self.order.batch
        with torch.no_grad():
            for start in range(0, len(self.aside), size):
                lesson = self.lessons.at(self.aside[start : start + size])
                total += float(self.score(self.learner, lesson).cpu().double().sum())
        for part, mode in modes.items():
            part.training = mode
        return agreed(self.device, total / len(self.aside))

    # -- progress and checkpoints ------------------------------------------------------------------------------

    def _told(self, begun: int, done: int, ends: bool) -> None:
        """Show progress; who hears of it may stop the training, which then goes on from here when it is resumed."""
        try:
            self._show(begun, done, ends)
        except StoppedError:
            self._keep(done)
            raise

    def _show(self, begun: int, done: int, ends: bool) -> None:
        now = time.monotonic()
        if not ends and now - self._shown < SHOWN_EVERY_S:
            return
        self._shown = now
        left = (now - self._clock) / (done - begun) * (self.total - done)
        loss = self.curve[-1].loss if ends else math.fsum(self.losses) / len(self.losses)
        score = self.curve[-1].score if self.curve else None
        epoch = (done - 1) // self.order.steps + 1
        self.progress(done / self.total, progress_line(epoch, self.plan.epochs, loss, score, left))

    def _is_due(self, ends: bool) -> bool:
        if self.keeping is None:
            return False
        return ends or time.monotonic() - self._saved >= self.keeping.every_s

    def _keep(self, step: int) -> None:
        if self.checkpoints is None or not self.device.is_main_process:
            return
        model = dict(tensors_of(self._trained()))
        if not _not_finite(self._trained()) <= self.unbounded:
            return  # the next step will say what happened; the checkpoint before this is good
        optimizer, scalars = state_of(self.optimizer)
        drawn, numbers = random_state.capture(self.device.device)
        facts = {
            "purpose": self.purpose, "curve": [dataclasses.astuple(epoch) for epoch in self.curve],
            "losses": self.losses, "best_epoch": self.best_epoch, "taken": self.taken, "averaged": self.average.count,
            "optimizer": scalars, "random": numbers,
            "scaler": None if self.device.scaler is None else self.device.scaler.state_dict(),
        }  # fmt: skip
        tensors = {
            "model": model, "optimizer": optimizer, "random": drawn, "best": self.best,
            "average": self.average.tensors,
        }  # fmt: skip
        self.checkpoints.save(Checkpoint(step, tensors, facts))
        self._saved = time.monotonic()

    def _resume(self) -> int:
        """Take up the newest checkpoint; the step it stands at, 0 where there is none."""
        held = None if self.checkpoints is None else self.checkpoints.of(self.purpose)
        demand_agreement(self.device, 0 if held is None else held.step, self.name)
        if held is None:
            return 0
        with torch.no_grad():
            for name, tensor in tensors_of(self._trained()):
                tensor.copy_(held.tensors["model"][name])
        load_state(self.optimizer, held.tensors["optimizer"], held.facts["optimizer"])
        if self.device.scaler is not None:
            self.device.scaler.load_state_dict(held.facts["scaler"])
        if self.device.is_main_process:
            random_state.restore(held.tensors["random"], held.facts["random"], self.device.device)
        else:
            random_state.sow(int(np.random.default_rng([self.device.process_index, held.step]).integers(2**31)))
        self.curve = [Epoch(*values) for values in held.facts["curve"]]
        self.losses, self.best_epoch = list(held.facts["losses"]), held.facts["best_epoch"]
        self.taken, self.average.count = held.facts["taken"], held.facts["averaged"]
        self.average.tensors = {name: one.to(self.device.device) for name, one in held.tensors["average"].items()}
        self.best = {name: tensor.to(self.device.device) for name, tensor in held.tensors["best"].items()}
        return held.step

    def _settle(self) -> None:
        """With patience the best epoch's parameters are the result, or the mean of the last steps' if that was asked;
        what is never saved is as it was before."""
        with torch.no_grad():
            for name, tensor in tensors_of(self._trained()) if self.best else ():
                tensor.copy_(self.best[name])
        if self.average.count:
            self.average.lay(self._last_inputs(), self.lessons.names, self.name)
        share_buffers(self.device, self._trained())
        for owner, name, value in self.passing:
            owner._buffers[name] = value

    def _last_inputs(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """What the last steps saw, all of it in every process, so that all measure the same."""
        for number in range(max(0, self.total - MEASURED), self.total):
            places = self.learnt[self.order.places(number)]
            for piece in parts(np.arange(len(places)), self.plan.micro_batch):
                yield self._lesson(number, places[piece]).inputs

    def _purpose(self, artifact: Artifact, data: Split, seed: int, about: Sequence[str]) -> str:
        """What must be the same for a checkpoint to be taken up."""
        shapes = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors_of(self._trained())]
        return purpose([
            self.name, dataclasses.asdict(self.plan), seed, artifact.digest, shapes, len(self.lessons),
            self.device.num_processes, data.digest, *about,
        ])  # fmt: skip


def _not_finite(module: torch.nn.Module) -> frozenset[str]:
    """The names of parameters and buffers that hold what is not finite."""
    floats = ((name, tensor) for name, tensor in tensors_of(module) if tensor.is_floating_point())
    return frozenset(name for name, tensor in floats if not bool(tensor.isfinite().all()))
