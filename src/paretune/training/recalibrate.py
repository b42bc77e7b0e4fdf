"""Recalibration: batch normalisation measures its inputs anew, after what comes before it was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.training.device import home, repeatable
from paretune.training.lesson import Lessons
from paretune.training.order import Order


def recalibrate(
    module: torch.nn.Module,
    artifact: Artifact,
    data: Split,
    examples: int,
    batch: int,
    seed: int,
    *,
    name: str = "recalibration",
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> int:
    """Gather every running mean and variance anew, in place; the number of examples looked at.

    All batches count alike, and the statistics are their mean. Every other layer stays in eval mode: nothing is dropped
    or learnt, and no random number is drawn but the examples' order. A module without running statistics is left as it
    is, and 0 returned; so are the statistics of a branch that no example takes. The module is on the CPU in eval mode
    afterwards.

    (Ioffe & Szegedy 2015, "Batch Normalization", section 3.1, take the statistics of inference over whole batches; that
    a pruned network wants them anew is from Li et al. 2020, "EagleEye".)

    Parameters
    ----------
    artifact
        Whose inputs the module takes.
    examples
        How many of ``data`` to look at, at most; whole batches of them, and at least one batch.
    batch
        Examples at once; all of ``data`` where there are fewer.
    name
        What errors call it.

    Raises
    ------
    BuildError
        If there are no examples, the module fails on a batch, or a statistic is not finite.
    """
    layers = dict(measuring(module))
    if not layers:
        return 0
    if not len(data):
        raise BuildError("needs training data to gather statistics from", where=name, do="give the workload train=")
    device = home()
    order = Order(len(data), min(batch, len(data)), seed)
    steps = min(order.steps, max(1, examples // order.batch))
    lessons, names = Lessons(data, artifact, device), form.keywords(artifact)

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for step in range(steps):
            progress(step / steps, "measuring batch normalisation anew")
            yield lessons.at(order.places(step)).inputs

    module.to(device)
    try:
        with repeatable(device):
            gather(module, layers, names, batches(), name)
    finally:
        module.cpu()
    return steps * order.batch


def gather(
    module: torch.nn.Module,
    layers: Mapping[str, _BatchNorm],
    names: tuple[str, ...] | None,
    batches: Iterable[tuple[torch.Tensor, ...]],
    where: str,
) -> None:
    """Let some of a module's batch normalisations gather their statistics anew, in place, while it answers batches.

    It is in eval mode afterwards. For the rest, and for what is raised, see :func:`recalibrate`.
    """
    pace = {path: layer.momentum for path, layer in layers.items()}
    before = {path: {key: one.clone() for key, one in layer.named_buffers()} for path, layer in layers.items()}
    module.eval()
    try:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for the plain mean over batches
            layer.train()
        with torch.no_grad():
            for inputs in batches:
                _forward(module, names, inputs, where)
    finally:
        for path, layer in layers.items():
            layer.momentum = pace[path]
            if not int(layer.num_batches_tracked or 0):  # a branch that no example took measured nothing
                for key, buffer in layer.named_buffers():
                    buffer.copy_(before[path][key])
        module.eval()
    for path, layer in layers.items():
        if not all(bool(kept.isfinite().all()) for kept in (layer.running_mean, layer.running_var) if kept is not None):
            raise BuildError(
                f"the inputs of {path or 'the model'} are not finite", where=where,
                do="look for training examples that are not finite, or prune less",
            )  # fmt: skip


def measuring(module: torch.nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """The batch normalisations that keep running statistics, by path; those used twice once."""
    for path, part in module.named_modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats and part.running_mean is not None:
            yield path, part


def _forward(
    module: torch.nn.Module, names: tuple[str, ...] | None, inputs: tuple[torch.Tensor, ...], where: str
) -> None:
    try:
        form.call_flat(module, names, inputs)
    except ParetuneError:
        raise
    except Exception as error:  # whatever the user's forward raises
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise BuildError(
            f"the model fails where batch normalisation measures: {type(error).__name__}: {reason}", where=where,
            do="see that it runs in train mode on a batch of this size",
        ) from error  # fmt: skip
