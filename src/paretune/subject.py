"""What a person names to be measured, a bundle or a model file; at which batch sizes, on which data, on which bench."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask import plugin, source
from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.event import Broadcast, Observer
from paretune.ask.score import named
from paretune.ask.workload import Workload
from paretune.build.store import Store
from paretune.check.bench import FEED_BATCHES, Bench
from paretune.check.measurement import Subject
from paretune.deliver.bundle import MANIFEST, Bundle
from paretune.errors import CallError, PluginError

ANSWER_BATCH = 32
"""Batch size for scores where the model leaves it free and only batch 1 is asked."""
FREE_AXIS = 16
"""Length given to a free axis other than the batch where no data says one."""


def subject_of(
    what: Path, target: str | None, heldout: Split | None, scratch: Path, machine: dict[str, Any]
) -> tuple[Subject, str, Any, tuple[str, ...]]:
    """What a person named on the command line, ready to be measured.

    Parameters
    ----------
    what
        A bundle's directory, an ``.onnx`` or a ``.pt2`` file.
    target
        Overrules the bundle's target, or the home of the model's source.
    heldout
        Examples that the model's source may look at; None where there is no data.
    scratch
        An existing directory for the model's artefact.

    Returns
    -------
    tuple
        The subject, its title, what makes tensors of arrays for a user's scores, and warnings.

    Raises
    ------
    CallError, PluginError, ArtifactError
        If it does not exist, cannot be opened, or the target does not take its form.
    """
    if not what.exists():
        raise CallError("does not exist", where=str(what), do="name a bundle's directory, or an .onnx or .pt2 file")
    if what.is_dir():
        bundle = bundle_of(what)
        subject, title = bundle.subject, str(bundle.manifest["title"])
        warnings = made_elsewhere(bundle, machine)
        native: Any = native_of(bundle)
    else:
        into = scratch / "model"
        into.mkdir()
        artifact, door = source.find(str(what), heldout, into)
        kind = plugin.usable("targets", [door.home])[door.home]
        subject, title, warnings, native = Subject("model", artifact, kind.light(False)[0]), what.name, (), door.native
    if target is not None:
        kind = plugin.usable("targets", [target])[target]
        if subject.artifact.form not in kind.accepts:
            raise PluginError(
                f"{target} does not open form {subject.artifact.form}", where=str(what),
                do="use `paretune optimize` to carry the model there",
            )  # fmt: skip
        subject = dataclasses.replace(subject, target=kind.light(False)[0])
    return subject, title, native, warnings


def bundle_of(place: Path) -> Bundle:
    """The bundle in a directory.

    Raises
    ------
    CallError, ArtifactError
        If there is none, or it was changed.
    """
    if not (place / MANIFEST).is_file():
        raise CallError("is no bundle", where=str(place), do="name a directory that `paretune pack` or a run wrote")
    return Bundle.open(place)


def native_of(bundle: Bundle) -> Callable[[Any], Any]:
    """The tensors that the user's scores expect: those of the model that the bundle was made of."""
    return source.native_of(bundle.manifest["workload"].get("form", bundle.artifact.form))


def made_elsewhere(bundle: Bundle, machine: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning where a bundle's evidence is of another machine, or of other versions."""
    there = bundle.manifest["machine"]
    if there["digest"] == machine["digest"]:
        return ()
    name = there.get("cpu", "another machine")
    return (f"the bundle's evidence was made on another machine or with other versions ({name})",)


def batch_sizes(batch: Sequence[int] | int) -> tuple[int, ...]:
    """The batch sizes to measure, ascending, each once.

    Raises
    ------
    CallError
        If there is none, or one is no whole number from 1.
    """
    sizes = (batch,) if isinstance(batch, int) else tuple(batch)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise CallError(f"{batch!r} are no batch sizes", where="batch", do="give whole numbers from 1, such as 1,32")
    return tuple(sorted(set(sizes)))


def answer_rows(artifact: Artifact, sizes: Sequence[int]) -> int:
    """The batch size in which data is answered for scores: the model's own where it is fixed, else the largest asked,
    or :data:`ANSWER_BATCH` where that is 1."""
    largest = max(sizes)
    return artifact.fixed_batch or (largest if largest > 1 else ANSWER_BATCH)


def heldout_of(workload: Workload | None) -> Split | None:
    """All held-out data of a workload, where there is one."""
    return None if workload is None else Split.whole(workload.heldout, workload.collate, "heldout")


def bench_of(
    workload: Workload | None,
    native: Callable[[Any], Any],
    machine: Mapping[str, Any],
    seed: int,
    observers: Sequence[Observer],
    scratch: Path,
) -> Bench:
    """A bench that keeps its steps in ``scratch`` and takes the workload's scores, where there is one."""
    scores = {} if workload is None else named(workload.score)
    return Bench(Store(scratch / "store"), machine, seed, Broadcast.to(observers), native, scores)


def sample_of(heldout: Split | None, artifact: Artifact, rows: int, seed: int) -> Split:
    """What latencies are taken on: held-out data, else as many synthetic batches of ``rows`` as are fed in turn."""
    return heldout or synthetic(artifact, FEED_BATCHES * rows, seed)


def synthetic(artifact: Artifact, count: int, seed: int) -> Split:
    """Seeded random inputs of the right shape and dtype: normal floats, and zeros and ones for whole numbers."""
    random = np.random.default_rng(seed)

    def one() -> tuple[Any, None]:
        arrays = []
        for spec in artifact.inputs:
            shape = [size if isinstance(size, int) else FREE_AXIS for size in spec.shape[1:]]
            whole = np.dtype(spec.dtype).kind in "iub"
            arrays.append((random.integers(0, 2, shape) if whole else random.normal(size=shape)).astype(spec.dtype))
        return tuple(arrays), None

    return Split.whole([one() for _ in range(count)], None, "synthetic")
