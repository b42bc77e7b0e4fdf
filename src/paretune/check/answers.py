"""Answers: what is kept of a model's outputs: its scores, and what is compared with the original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.outputs import classes, first_tensor
from paretune.ask.score import PerExample
from paretune.ask.set_score import SetScore
from paretune.ask.target import Arrays
from paretune.ask.values import as_array
from paretune.check.jackknife import Whole, leave_out, whole_drop
from paretune.check.statistics import Estimate, drop
from paretune.errors import DataError, MeasureError, ParetuneError

Array = np.ndarray[Any, Any]
Native = Callable[[Array], Any]


@dataclass(frozen=True)
class Answers:
    """Per-example scores [n] by name, what is compared with the original (classes, or the first output), and the
    confidence [n] in each answer: the largest softmax probability, or the first output's mean where it is no class.
    ``wholes`` are the scores that only the whole set has."""

    scores: Mapping[str, Array]
    compared: Array
    confidence: Array
    data: str
    wholes: Mapping[str, Whole] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.compared)

    def save(self, path: Path) -> None:
        """Write all but ``data`` as one ``.npz`` file of plain arrays."""
        columns: dict[str, Array] = dict(self.scores)
        columns |= {name: np.array([found.value, found.spoilt, *found.without]) for name, found in self.wholes.items()}
        saved = {f"score_{place}": columns[name] for place, name in enumerate(sorted(columns))}
        np.savez(path, compared=self.compared, confidence=self.confidence, **saved)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path, scores: Mapping[str, PerExample | SetScore], data: str) -> Answers:
        """What :meth:`save` wrote of answers to these scores."""
        each: dict[str, Array] = {}
        wholes: dict[str, Whole] = {}
        with np.load(path, allow_pickle=False) as saved:
            compared, confidence = saved["compared"], saved["confidence"]
            for place, name in enumerate(sorted(scores)):
                found = saved[f"score_{place}"]
                score = scores[name]
                if isinstance(score, SetScore):
                    value, spoilt = map(float, found[:2])
                    wholes[name] = Whole(value, found[2:], len(compared), spoilt, score.best)
                else:
                    each[name] = found
        # in the workload's order
        order = [name for name in scores if name in each]
        return cls({name: each[name] for name in order}, compared, confidence, data, wholes)


def drop_of(ours: Answers, theirs: Answers, score: str, unit: str, confidence: float = 0.95) -> Estimate:
    """How much less ``theirs`` score than ``ours`` on the same examples, in ``unit`` (pp or %), with its interval."""
    if score in theirs.wholes:
        return whole_drop(ours.wholes[score], theirs.wholes[score], unit, confidence)
    return drop(ours.scores[score], theirs.scores[score], unit, confidence)


def gathered(
    batches: Iterable[tuple[Arrays, Any]],
    scores: Mapping[str, PerExample | SetScore],
    artifact: Artifact,
    native: Native,
    where: str,
) -> Answers:
    """All batches of (outputs, labels), scored.

    Raises
    ------
    MeasureError
        If an answer or a score is not finite.
    DataError
        If a score fails, or gives something of another shape than it should.
    """
    collected: dict[str, list[Array]] = {name: [] for name in scores}
    compared, confidence, truth = [], [], []
    for arrays, labels in batches:
        answer = first_tensor(as_returned(arrays, artifact))
        compared.append(compared_with(answer, labels))
        confidence.append(confidence_of(answer, compared[-1]))
        if not np.isfinite(confidence[-1]).all():
            continue  # refused below; a score need not cope with it
        truth.append(np.asarray(labels))
        for name, score in scores.items():
            if isinstance(score, SetScore):
                collected[name].append(kept(name, score, arrays, artifact, native))
            else:
                collected[name].append(scored(name, score, arrays, labels, artifact, native))
    certain = np.concatenate(confidence)
    if wrong := int((~np.isfinite(certain)).sum()):
        raise MeasureError(
            f"answers are not finite for {wrong} of {len(certain)} examples", where=where,
            do="look for an overflow: a wider precision may help",
        )  # fmt: skip
    each = {name: np.concatenate(collected[name]) for name, score in scores.items() if not isinstance(score, SetScore)}
    wholes = {
        name: leave_out(score.metric, *_alike(collected[name], truth, f"score {name}"), f"score {name}", score.best)
        for name, score in scores.items()
        if isinstance(score, SetScore)
    }
    return Answers(each, concatenated(compared), certain, "", wholes)


def _alike(kept: list[Array], labels: list[Array], where: str) -> tuple[Array, Array]:
    """What was kept and the labels of all batches; labels of texts padded batch by batch are filled up with -1."""
    if any(part.ndim == 0 for part in labels):
        raise DataError("has no labels", where=where, do="return (inputs, label) items, or leave that score out")
    padded = len({part.shape[1:] for part in kept}) > 1 or len({part.shape[1:] for part in labels}) > 1
    if padded and labels[0].dtype.kind != "i":
        raise DataError(
            "batches differ in length, and what fills them up cannot be told apart", where=where,
            do="keep one row an example, or give signed class numbers as labels, where negative ones do not count",
        )  # fmt: skip
    return concatenated(kept), concatenated(labels)


def as_returned(arrays: tuple[Any, ...], artifact: Artifact) -> Any:
    """Flat outputs as the model returned them: one tensor, a tuple, or a dict."""
    if artifact.output_kind == "single":
        return arrays[0]
    if artifact.output_kind == "dict":
        return dict(zip((spec.name for spec in artifact.outputs), arrays, strict=True))
    return arrays


def _plain(values: Any, where: str) -> Array | None:
    """What a score returned as float64; None when it is no array of numbers."""
    with contextlib.suppress(DataError):
        found = as_array(values, where)
        return found.astype(np.float64) if found.dtype.kind in "biuf" else None
    return None


def scored(
    name: str, score: Callable[[Any, Any], Any], arrays: Arrays, labels: Any, artifact: Artifact, native: Native
) -> Array:
    """One number for every example of a batch [n]; a user's own score sees the framework's tensors.

    Raises
    ------
    DataError
        If the score fails, or gives something else than one number for every example.
    MeasureError
        If a number is not finite.
    """
    where = f"score {name}"
    own = getattr(score, "__module__", None) != "paretune.ask.score"
    wrap = native if own else (lambda array: array)
    try:
        truth = None if labels is None else wrap(labels)
        values = score(as_returned(tuple(map(wrap, arrays)), artifact), truth)
    except ParetuneError:
        raise
    except Exception as error:
        raise DataError(f"failed: {error!r}", where=where) from error
    found, do = _plain(values, where), "return one number for every example"
    if found is None:
        raise DataError(f"returned a {type(values).__qualname__}, not numbers", where=where, do=do)
    if found.ndim == 0 or found.size != len(arrays[0]):
        raise DataError(f"returned shape {found.shape} for {len(arrays[0])} examples", where=where, do=do)
    if not np.isfinite(found).all():
        raise MeasureError(f"is not finite for {int((~np.isfinite(found)).sum())} examples of a batch", where=where)
    return found.reshape(-1)


def kept(name: str, score: SetScore, arrays: Arrays, artifact: Artifact, native: Native) -> Array:
    """What a score of the whole set keeps of a batch [n, ...]; a user's own function sees the framework's tensors.

    Raises
    ------
    DataError
        If the user's function fails, or gives something else than an array with a row for every example.
    """
    where = f"score {name}"
    if score.keep is None:
        return first_tensor(as_returned(arrays, artifact))
    own = getattr(score.keep, "__module__", None) != "paretune.ask.set_score"
    try:
        found = as_array(score.keep(as_returned(tuple(map(native, arrays)) if own else arrays, artifact)), where)
    except ParetuneError:
        raise
    except Exception as error:
        raise DataError(f"failed: {error!r}", where=where) from error
    if found.ndim == 0 or len(found) != len(arrays[0]):
        raise DataError(
            f"keep returned shape {found.shape} for {len(arrays[0])} examples", where=where,
            do="return an array with a row for every example",
        )  # fmt: skip
    return found


def concatenated(parts: list[Array]) -> Array:
    """Batches end to end; axes that differ in length (texts padded batch by batch) are filled up with -1."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    filled = [
        np.pad(part, [(0, 0), *((0, want - have) for want, have in zip(shape, part.shape[1:], strict=True))],
               constant_values=-1)
        for part in parts
    ]  # fmt: skip
    return np.concatenate(filled)


def compared_with(answers: Array, labels: Any) -> Array:
    """Classes where labels are classes, else the first output itself."""
    labels = np.asarray(labels)
    binary = answers.ndim == 1 or (answers.ndim == 2 and answers.shape[1] == 1)
    per_class = answers.ndim >= 2 and labels.size * answers.shape[1] == answers.size
    if labels.dtype.kind in "iub" and answers.dtype.kind == "f" and (binary or per_class):
        return classes(answers)
    return answers.astype(np.float32) if answers.dtype.kind == "f" else answers


def confidence_of(answers: Array, compared: Array) -> Array:
    """The largest softmax probability [n], or the first output's mean where it is no class."""
    if compared.dtype.kind == "i" and answers.ndim >= 2 and answers.shape[1] > 1:
        with np.errstate(invalid="ignore"):  # infinities become NaN, which the caller refuses
            shifted = answers.astype(np.float64) - answers.max(axis=1, keepdims=True)
            best = 1 / np.exp(shifted).sum(axis=1)
        return np.asarray(best.reshape(len(best), -1).mean(axis=1))
    means: Array = answers.astype(np.float64).reshape(len(answers), -1).mean(axis=1)
    return means
