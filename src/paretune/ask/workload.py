"""Workload: a model, what it may learn from, what it is judged on, and by which score."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from paretune.ask.data import Collate, Split
from paretune.ask.own_step import OwnStep
from paretune.ask.score import Score, named
from paretune.errors import DataError, WorkloadError

_MORE = "give more examples; some hundreds are needed for a verdict"
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
        A built-in score by name, a function ``(outputs, labels)`` → one number per example (higher is better), a
        :class:`~paretune.ask.set_score.SetScore` of the whole set (F1, AUC), or several of them by name.
    loss
        ``(outputs, labels)`` → scalar; None: cross-entropy for class labels, MSE for floats.
    step
        ``(model, inputs, labels)`` → scalar, in the place of ``loss``, for tasks whose loss is no function of outputs
        and labels: it calls the model itself. Inputs and labels are a batch, as the data's items have them.
    collate
        Makes ``(inputs, labels)`` of a list of items, padding texts, say; None stacks.
    slices
        Parts of the held-out data that must not be worse than the average hides, by name: functions ``(inputs, label)``
        of one item → whether it belongs. Classes are looked at in any case.
    student
        A smaller model that is to answer as ``model`` does, for techniques that teach one: a module, or a function that
        returns one, with the same inputs and outputs. Trained or not.

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
    slices: Mapping[str, Callable[[Any, Any], Any]] | None = None
    student: object | None = None
    step: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str) or any(c in self.name for c in "/\\\0\n"):
            raise WorkloadError(f"{self.name!r} is not a name", where="Workload.name", do="use letters, digits and -")
        for field, value in (("loss", self.loss), ("step", self.step), ("collate", self.collate)):
            if value is not None and not callable(value):
                raise WorkloadError(
                    f"is a {type(value).__qualname__}, not a function", where=f"Workload.{field}",
                    do="give a function, or leave it out",
                )  # fmt: skip
        if self.loss is not None and self.step is not None:
            raise WorkloadError("takes the place of the loss", where="Workload.step", do="leave one of them out")
        for name, belongs in (self.slices or {}).items():
            if not callable(belongs):
                raise WorkloadError(
                    f"is a {type(belongs).__qualname__}, not a function", where=f"Workload.slices[{name!r}]",
                    do="give a function of (inputs, label) that says whether an item belongs",
                )  # fmt: skip
        named(self.score)

    @property
    def minimised(self) -> Callable[..., Any] | None:
        """What training minimises: the loss, or the step in its place."""
        return self.loss if self.step is None else OwnStep(self.step)


def members(split: Split, name: str, belongs: Callable[[Any, Any], Any]) -> np.ndarray[Any, Any]:
    """Which examples of ``split`` belong to a user's slice: booleans [n].

    Raises
    ------
    DataError
        If the user's function fails on an item, or its answer is neither true nor false.
    """
    try:
        return np.array([bool(belongs(*split.examples.item(index))) for index in split.indices])
    except Exception as error:  # whatever the user's function raises
        raise DataError(
            f"failed: {error!r}", where=f"Workload.slices[{name!r}]",
            do="give a function of (inputs, label) of one item that answers true or false",
        ) from error  # fmt: skip


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
    if heldout_limit is not None and heldout_limit < 2:
        raise DataError(f"{heldout_limit} is too few held-out examples", where="heldout_limit", do="allow at least 2")
    heldout = Split.whole(workload.heldout, workload.collate, "heldout")
    if heldout_limit is not None and heldout_limit < len(heldout):
        heldout = heldout.take(heldout_limit, seed)
    if len(heldout) < 2:
        raise DataError("holds one example, from which nothing can be concluded", where="heldout", do=_MORE)
    _demand_labels(heldout)
    if workload.train is None:
        order = np.argsort(np.array(heldout.digests), kind="stable")
        cut = max(1, len(order) // 5)
        part = Split(heldout.examples, tuple(heldout.indices[i] for i in sorted(order[:cut])))
        rest = Split(heldout.examples, tuple(heldout.indices[i] for i in sorted(order[cut:])))
        if len(rest) < 2:
            raise DataError("is too small to be split into ranking and confirming parts", where="heldout", do=_MORE)
        return Partition(
            part, part, rest, ("there is no training data: a fifth of held-out, chosen by digest, is used",)
        )
    train = Split.whole(workload.train, workload.collate, "train")
    _demand_labels(train)
    order = np.random.default_rng(seed).permutation(len(train))
    cut = min(RANKING, max(1, len(order) // 5))
    ranking = Split(train.examples, tuple(int(i) for i in order[:cut]))
    fit = Split(train.examples, tuple(int(i) for i in order[cut:])) if len(order) > 1 else ranking
    return Partition(fit, ranking, heldout, tuple(_doubts(ranking, heldout, seed)))


def _demand_labels(split: Split) -> None:
    if next(split.head(1).batches(1)).labels is None:
        raise DataError("has no labels", where=split.name, do="return (inputs, label) items: scores need the truth")


def _doubts(ranking: Split, heldout: Split, seed: int) -> list[str]:
    """Overlap of training and held-out data, and visible differences between them."""
    doubts = []
    shared = len(set(ranking.digests) & set(heldout.digests))
    if shared:
        doubts.append(
            f"{shared} of {len(ranking)} examined training examples also stand in held-out: accuracy there is flattered"
        )
    one = Split(ranking.examples, ranking.indices[:1])
    anew = copy.copy(ranking.examples)
    anew.forget()
    if Split(anew, one.indices).digest != one.digest:
        doubts.append(
            "reading a training example twice gives two: augmentation moves what the search ranks on, and --resume "
            "finds no finished step; leave it out of Workload.train"
        )
    # drawn, not the first: held-out data is often sorted by class
    ours, theirs = next(ranking.head(256).batches(256)), next(heldout.take(256, seed).batches(256))
    names, others = ranking.keys or (), heldout.keys or ()
    alike = bool(names) and set(names) == set(others)
    beside = [theirs.inputs[others.index(name)] for name in names] if alike else list(theirs.inputs)
    for position, (a, b) in enumerate(zip(ours.inputs, beside, strict=False)):
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
        raise WorkloadError(f"has nothing named {name!r}", where=place, do=_suggestion(vars(module), name)) from None
    if not isinstance(found, Workload) and (inspect.isroutine(found) or isinstance(found, functools.partial)):
        try:
            found = found()
        except WorkloadError:
            raise
        except (Exception, SystemExit) as error:
            raise WorkloadError(
                f"{name}() failed: {error!r}", where=place, do="call it in Python to see the whole traceback"
            ) from error
    if not isinstance(found, Workload):
        raise WorkloadError(
            f"{name} is a {type(found).__qualname__}, not a paretune.Workload", where=place,
            do="make it a Workload, or a function that returns one",
        )  # fmt: skip
    return found


def _suggestion(defined: Mapping[str, Any], name: str) -> str:
    workloads = [key for key, value in defined.items() if isinstance(value, Workload)]
    if workloads:
        return f"it has {', '.join(workloads)}"
    near = difflib.get_close_matches(name, [key for key in defined if not key.startswith("_")], 1)
    return f"did you mean {near[0]}?" if near else "define it, or check the spelling"


def _import(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            with contextlib.suppress(ValueError):
                sys.path.remove("")
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(place)
        path = Path(place).resolve()
        if not path.is_file():
            raise WorkloadError("there is no such file", where=place, do="check the path")
        _demand_free(path)
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(path.stem, None)
            raise
        # a child process cannot import this file under its name, so its classes travel whole
        cloudpickle.register_pickle_by_value(module)
    except WorkloadError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        asked = place if place.endswith(".py") else f"-c 'import {place}'"
        raise WorkloadError(
            f"does not import: {type(error).__name__}: {error}", where=place, do=f"see that `python {asked}` runs"
        ) from error
    return module


def _demand_free(path: Path) -> None:
    """A file named like a module that others have imported (json.py, say) must not take that module's place."""
    held = sys.modules.get(path.stem)
    ours = path.stem in cloudpickle.list_registry_pickle_by_value()
    if held is not None and not ours and getattr(held, "__file__", None) != str(path):
        raise WorkloadError(f"is named like the module {path.stem!r} in use", where=str(path), do="rename the file")
