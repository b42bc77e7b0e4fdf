"""Workload: a model, what it may learn from, what it is judged on, and by which score."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from paretune.ask.data import Collate, Split
from paretune.ask.score import Score, named
from paretune.errors import DataError, WorkloadError

RANKING = 2000
"""Examples of the training data set aside for ranking, at most (and at most a fifth of it)."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is to be made small and fast.

    Parameters
    ----------
    name
        Used in file names and reports.
    model
        Anything a source takes: an ``nn.Module``, a function that returns one, the path of a ``.pt2`` or ``.onnx``.
    train
        What a technique may learn from (calibration, fine-tuning), and what the search ranks on.
    heldout
        What verdicts are made on; no technique and no ranking ever sees it.
    score
        A built-in score by name, a function ``(outputs, labels)`` → one number per example (higher is better), or
        several of them by name.
    loss
        ``(outputs, labels)`` → scalar; None: cross-entropy for class labels, MSE for floats.
    collate
        Makes ``(inputs, labels)`` of a list of items, padding texts, say; None stacks.

    Data is a map-style dataset or a ``DataLoader`` over one. An item is ``(inputs, label)``: inputs are one array or
    tensor, a tuple in the model's order, or a dict by the model's keyword names, all without a batch axis.

    Raises
    ------
    WorkloadError
        If a part is not what it should be.
    """

    name: str
    model: object
    train: Any | None
    heldout: Any
    score: Score | Mapping[str, Score] = "accuracy"
    loss: Callable[..., Any] | None = None
    collate: Collate | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str) or any(c in self.name for c in "/\\\0\n"):
            raise WorkloadError(f"{self.name!r} is not a name", where="Workload.name", do="use letters, digits and -")
        for field, value in (("loss", self.loss), ("collate", self.collate)):
            if value is not None and not callable(value):
                raise WorkloadError(f"is a {type(value).__qualname__}, not a function", where=f"Workload.{field}")
        named(self.score)


@dataclass(frozen=True, eq=False)
class Partition:
    """The examples by what they may be used for, and what was noticed while parting them."""

    fit: Split
    ranking: Split
    heldout: Split
    warnings: tuple[str, ...]


def partition(workload: Workload, seed: int = 0, heldout_limit: int | None = None) -> Partition:
    """Part the data: what techniques learn from, what the search ranks on, what verdicts are made on.

    With training data, a seeded slice of it is set aside for ranking. Without, the held-out data is split by digest:
    a fifth to learn from and rank on, four fifths to confirm.

    Raises
    ------
    DataError
        If a part is empty or has a single example, or labels are missing.
    """
    heldout = Split.whole(workload.heldout, workload.collate, "heldout")
    if heldout_limit is not None and heldout_limit < len(heldout):
        heldout = heldout.take(heldout_limit, seed)
    if len(heldout) < 2:
        raise DataError("holds one example, from which nothing can be concluded", where="heldout")
    if next(heldout.head(1).batches(1)).labels is None:
        raise DataError("has no labels", where="heldout", do="return (inputs, label) items: verdicts need the truth")
    if workload.train is None:
        order = np.argsort(np.array(heldout.digests), kind="stable")
        cut = max(1, len(order) // 5)
        part = Split(heldout.examples, tuple(heldout.indices[i] for i in sorted(order[:cut])))
        rest = Split(heldout.examples, tuple(heldout.indices[i] for i in sorted(order[cut:])))
        if len(rest) < 2:
            raise DataError("is too small to be split into ranking and confirming parts", where="heldout")
        return Partition(
            part, part, rest, ("there is no training data: a fifth of held-out, chosen by digest, is used",)
        )
    train = Split.whole(workload.train, workload.collate, "train")
    order = np.random.default_rng(seed).permutation(len(train))
    cut = min(RANKING, max(1, len(order) // 5))
    ranking = Split(train.examples, tuple(int(i) for i in order[:cut]))
    fit = Split(train.examples, tuple(int(i) for i in order[cut:])) if len(order) > 1 else ranking
    return Partition(fit, ranking, heldout, tuple(_doubts(ranking, heldout)))


def _doubts(ranking: Split, heldout: Split) -> list[str]:
    """Overlap of training and held-out data, and visible differences between them."""
    doubts = []
    shared = len(set(ranking.digests) & set(heldout.digests))
    if shared:
        doubts.append(
            f"{shared} of {len(ranking)} examined training examples also stand in held-out: accuracy there is flattered"
        )
    ours, theirs = next(ranking.head(256).batches(256)), next(heldout.head(256).batches(256))
    for position, (a, b) in enumerate(zip(ours.inputs, theirs.inputs, strict=False)):
        if a.dtype.kind == "f" and b.dtype.kind == "f":
            spread = max(float(np.std(a)), float(np.std(b)), 1e-12)
            shift = abs(float(np.mean(a)) - float(np.mean(b))) / spread
            ratio = max(float(np.std(a)), 1e-12) / max(float(np.std(b)), 1e-12)
            if shift > 0.5 or not 0.5 < ratio < 2:
                doubts.append(
                    f"input {position} differs between train (mean {np.mean(a):.3g}, std {np.std(a):.3g}) and heldout "
                    f"(mean {np.mean(b):.3g}, std {np.std(b):.3g}): is the preprocessing the same?"
                )
    return doubts


def load(where: str) -> Workload:
    """The Workload at ``file.py:name`` or ``package.module:name`` (a Workload, or a function that returns one).

    The user's file is imported, that is, run: it is their own code.

    Raises
    ------
    WorkloadError
        If it does not import, has no such name, or that is not a Workload.
    """
    place, colon, name = where.rpartition(":")
    if not colon or not place or not name:
        raise WorkloadError(
            f"{where!r} does not name a workload",
            do="write file.py:name, package.module:name, or model.onnx --data FILE",
        )
    module = _import(place)
    try:
        found = getattr(module, name)
    except AttributeError:
        known = [key for key, value in vars(module).items() if isinstance(value, Workload)]
        hint = f"it has {', '.join(known)}" if known else "define it, or check the spelling"
        raise WorkloadError(f"has nothing named {name!r}", where=place, do=hint) from None
    if not isinstance(found, Workload) and callable(found):
        try:
            found = found()
        except WorkloadError:
            raise
        except Exception as error:
            raise WorkloadError(f"{name}() failed: {error!r}", where=place) from error
    if not isinstance(found, Workload):
        raise WorkloadError(
            f"{name} is a {type(found).__qualname__}, not a paretune.Workload", where=place,
            do="make it a Workload, or a function that returns one",
        )  # fmt: skip
    return found


def _import(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            with contextlib.suppress(ValueError):
                sys.path.remove("")
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(place)
        path = Path(place).resolve()
        if not path.is_file():
            raise WorkloadError("there is no such file", where=place)
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        # a child process cannot import this file under its name, so its classes travel whole
        cloudpickle.register_pickle_by_value(module)
    except WorkloadError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise WorkloadError(f"does not import: {type(error).__name__}: {error}", where=place) from error
    return module
