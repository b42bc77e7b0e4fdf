"""Batch size: how many examples at once a training should take on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.ask import plugin
from paretune.ask.knob import make
from paretune.ask.workload import Workload, partition
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.errors import CallError
from paretune.original import read, read_student

if TYPE_CHECKING:
    from paretune.training.batch_size import BatchSize


def batch_size(
    workload: Workload,
    technique: str = "torch_finetune",
    knobs: Mapping[str, Any] | None = None,
    *,
    up_to: int = 1024,
    seed: int = 0,
) -> BatchSize:
    """Time steps of a training with 2, 4, 8 … examples at once, and see how many fit into memory.

    Nothing is trained: the steps are thrown away. What is timed is the model as the technique begins with it, before
    anything is cut or quantised, and where it heals, with the original's answers.

    Parameters
    ----------
    technique, knobs
        One that trains, and its knobs: ``precision``, ``channels_last``, ``compile``, ``activation_checkpointing`` and
        ``augment`` decide what a step takes, ``batch`` what the parts make up.
    up_to
        The largest number to try.

    Returns
    -------
    BatchSize
        The quickest number up to ``batch``, as a value of ``micro_batch``; how many such parts make up ``batch``; the
        largest number that fits; the throughput at each; and how many times quicker ``channels_last`` and ``compile``
        make a step.

    Raises
    ------
    ParetuneError
        If the technique does not train, nothing fits into memory, or the model cannot learn.
    """
    from paretune.training.batch_size import proposed
    from paretune.training.plan import Plan

    kind = plugin.load("techniques", technique)
    plugin.require(kind, technique)
    step = make(kind, dict(knobs or {}), technique)
    if not isinstance(step, Plan):
        raise CallError(
            f"{technique} does not train", where="technique", do="name one that does, such as torch_distill"
        )
    scratch = Path(tempfile.mkdtemp(prefix="paretune-batch-size-"))
    try:
        store = Store(scratch / "store")
        data = partition(workload, seed, None)
        original, _ = read(workload.model, data.fit, store)
        student = read_student(workload, original, data.fit, store)
        fit = Fit(data.fit, workload.minimised, original, seed, scratch / "fit", student=student)
        return proposed(step, technique, original, fit, up_to)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
