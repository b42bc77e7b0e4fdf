"""Behaviour: unusual but possible inputs, and whether a candidate takes them as the original does.

A row's answer may not depend on what else is in the batch; a legal input must be answered; what is not legal may be
refused, but must not kill the process, and must not be answered wrongly in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, fit_inputs, tile
from paretune.ask.target import Arrays
from paretune.check.probe import Probe, Reply
from paretune.check.stress import LAYOUTS, distance

Array = np.ndarray[Any, Any]
Outcome = Literal["same", "answers", "refuses", "differs", "dies"]
TOLERANCE = 0.01
"""How far an answer may lie from the same row's answer alone, as a share of the range of all answers."""
_RANK = {"same": 0, "answers": 0, "refuses": 1, "differs": 2, "dies": 3}


@dataclass(frozen=True)
class Question:
    """What is asked, and what a right answer equals.

    ``inputs`` is one batch. ``expects``: for each row of the answer its place among the plain rows, -1 where anything
    goes; None when nothing is known but that there is an answer. ``plain`` are other inputs that mean the
    same, which are asked first in the usual way, and whose answer is expected. ``legal`` inputs must be answered.
    """

    name: str
    family: str
    about: str
    inputs: Arrays
    expects: tuple[int, ...] | None = None
    plain: Arrays | None = None
    legal: bool = True
    layout: str = "plain"
    rounds: int = 1


@dataclass(frozen=True)
class Told:
    """How a subject took a question; ``deviation`` is the largest distance from what was expected, as a share of the
    range of its answers (None where nothing is compared)."""

    outcome: Outcome
    deviation: float | None = None
    words: str = ""


@dataclass(frozen=True)
class Judged:
    """One question, both subjects, and what follows."""

    question: Question
    original: Told
    candidate: Told
    verdict: Literal["holds", "breaks"]
    text: str


def rows_of(split: Split, artifact: Artifact, count: int) -> Arrays:
    """The first ``count`` rows of a split as one batch, in the order of the model's inputs."""
    part = next(split.head(count).batches(count))
    fitted = fit_inputs(tuple(tile(array, count) for array in part.inputs), split.keys, artifact, split.name)
    return tuple(np.array(array) for array in fitted)


def questions(rows: Arrays, artifact: Artifact) -> tuple[Question, ...]:
    """All questions for a model opened for batches of ``len(rows) - 1``; ``rows`` are plain rows of its data."""
    fixed = artifact.fixed_batch is not None
    every = [*_batches(rows), *_layouts(rows), *_dtypes(rows), *_shapes(rows), *_edges(rows)]
    size = len(rows[0]) - 1
    # a model with a fixed batch takes no other
    return tuple(one for one in every if not fixed or (one.inputs[0].shape[:1] == (size,) or not one.legal))


def _picked(rows: Arrays, places: Sequence[int]) -> Arrays:
    return tuple(array[list(places)] for array in rows)


def _ask(name: str, about: str, rows: Arrays, places: Sequence[int], **more: Any) -> Question:
    return Question(name, "batch", about, _picked(rows, places), tuple(places), **more)


def _batches(rows: Arrays) -> Iterator[Question]:
    size = len(rows[0]) - 1
    order = [int(place) for place in np.random.default_rng(0).permutation(size)]
    half = size // 2
    yield _ask("batch_of_one", "one row alone", rows, [0])
    yield _ask("full_batch", "the largest batch: each row as alone", rows, range(size))
    yield _ask("one_more", "one row more than the largest batch", rows, range(size + 1))
    yield _ask("ragged_batch", "a last batch that is not full", rows, range(max(1, half + 1)))
    yield _ask("other_place", "the rows of a batch in another order", rows, order)
    yield _ask("asked_again", "the same batch three times over", rows, range(size), rounds=3)
    company = _picked(rows, range(size))
    # neighbours with numbers ten times as large: a scale that is taken over the batch moves everybody
    loud = tuple(
        np.concatenate([
            array[:half],
            array[half:] * array.dtype.type(10) if array.dtype.kind == "f" else array[:1].repeat(size - half, axis=0),
        ])
        for array in company
    )  # fmt: skip
    if half:
        expected = (*range(half), *(-1 for _ in range(size - half)))
        yield Question("loud_company", "batch", "the rest of the batch is ten times as large", loud, expected)
    empty = tuple(array[:0] for array in rows)
    yield Question("empty_batch", "batch", "a batch of no rows", empty, legal=False)


def _layouts(rows: Arrays) -> Iterator[Question]:
    size = len(rows[0]) - 1
    for layout in LAYOUTS:
        if layout != "plain":
            batch = _picked(rows, range(size))
            about = f"the same values, {layout} in memory"
            yield Question(f"{layout}_layout", "layout", about, batch, tuple(range(size)), layout=layout)


def _dtypes(rows: Arrays) -> Iterator[Question]:
    batch = _picked(rows, range(len(rows[0]) - 1))
    kinds = {array.dtype.kind for array in batch}
    for name in ("float64", "float16", "uint8", "int32", "int64", "float32"):
        dtype = np.dtype(name)
        if all(array.dtype == dtype for array in batch) or (name == "uint8" and "f" not in kinds):
            continue
        if name in ("int32", "int64") and "i" not in kinds:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            given = tuple(np.clip(array, 0, 255).astype(dtype) if name == "uint8" else array.astype(dtype)
                          for array in batch)  # fmt: skip
            plain = tuple(array.astype(old.dtype) for array, old in zip(given, batch, strict=True))
        yield Question(f"{name}_input", "dtype", f"the inputs as {name}", given, None, plain, legal=False)
    swapped = tuple(array.astype(array.dtype.newbyteorder()) for array in batch)
    yield Question("byteswapped_input", "dtype", "bytes in the other order", swapped, None, batch, legal=False)


def _shapes(rows: Arrays) -> Iterator[Question]:
    batch = _picked(rows, range(len(rows[0]) - 1))
    yield Question("no_batch_axis", "shape", "one row without a batch axis", tuple(a[0] for a in batch), legal=False)
    extra = tuple(array[:, None] for array in batch)
    yield Question("extra_axis", "shape", "one axis too many", extra, legal=False)
    if all(array.ndim > 1 and array.shape[1] > 1 for array in batch):
        fewer = tuple(np.ascontiguousarray(array[:, :-1]) for array in batch)
        yield Question("one_feature_less", "shape", "one channel, feature or word less", fewer, legal=False)


def _edges(rows: Arrays) -> Iterator[Question]:
    size = len(rows[0]) - 1
    batch = _picked(rows, range(size))
    if any(array.dtype.kind == "f" for array in batch):
        yield from _float_edges(batch, size)
    if any(array.dtype.kind in "iu" for array in batch):
        for name, about in (("beyond_the_vocabulary", "a number no word has"), ("negative_word", "a number below 0")):
            odd = tuple(_with_odd(array, name == "negative_word") for array in batch)
            expected = (-1, *range(1, size))
            yield Question(name, "edge", f"{about} in the first row", odd, expected, legal=False)
        zeros = tuple(np.zeros_like(array) if array.dtype.kind in "iu" else array for array in batch)
        yield Question("nothing_but_padding", "edge", "every number is 0", zeros, legal=False)


def _float_edges(batch: Arrays, size: int) -> Iterator[Question]:
    rest = (-1, *range(1, size))
    for name, value in (("nan_in_one_row", np.nan), ("infinity_in_one_row", np.inf)):
        spoilt = tuple(_first(array, value) for array in batch)
        yield Question(name, "edge", "all other rows of the batch are answered as ever", spoilt, rest)
    largest = max(float(np.abs(array).max(initial=0.0)) for array in batch if array.dtype.kind == "f")
    for name, value in (("all_zero", 0.0), ("all_largest", largest), ("all_smallest", -largest), ("tiny", 1e-30)):
        constant = tuple(np.full_like(a, value) if a.dtype.kind == "f" else a for a in batch)
        yield Question(name, "edge", "a constant input, whose answer is finite", constant)
    huge = tuple(_first(array, 1e4 * largest) for array in batch)
    yield Question("huge_in_one_row", "edge", "10,000 times the largest value in the first row", huge, rest)


def _first(array: Array, value: float) -> Array:
    if array.dtype.kind != "f":
        return array
    changed = array.copy()
    changed[0] = value
    return changed


def _with_odd(array: Array, negative: bool) -> Array:
    if array.dtype.kind not in "iu" or array.max(initial=0) <= 1:
        return array
    changed = array.copy()
    changed[0] = -1 if negative and array.dtype.kind == "i" else np.iinfo(array.dtype).max // 2
    return changed


@dataclass
class Examination:
    """One subject under questions: what it answers to every plain row alone, and its range, is known first."""

    probe: Probe
    rows: Arrays
    alone: tuple[Array, ...]
    spans: tuple[float, ...]

    @classmethod
    def begin(cls, probe: Probe, rows: Arrays, artifact: Artifact) -> Examination:
        """Ask each row alone; with a fixed batch, in full plain batches.

        Raises
        ------
        MeasureError
            If the subject cannot be opened, or does not answer plain rows.
        """
        fixed = artifact.fixed_batch is not None
        size = len(rows[0]) - 1
        plain = [_picked(rows, range(size))] if fixed else [_picked(rows, [place]) for place in range(size + 1)]
        reply = probe.demand(plain)
        alone = tuple(np.concatenate(parts) for parts in zip(*_ragged(reply.answers), strict=True))
        spans = tuple(float(np.ptp(part[np.isfinite(part)])) if np.isfinite(part).any() else 0.0 for part in alone)
        return cls(probe, rows, alone, tuple(span or 1.0 for span in spans))

    def put(self, question: Question) -> Told:
        """Put one question, then a plain row, which must be answered as before."""
        expected = self._expected(question)
        if isinstance(expected, Told):
            return expected
        reply = self.probe.ask([question.inputs], layout=question.layout, rounds=question.rounds)
        told = self._told(question, reply, expected)
        if told.outcome == "dies":
            return told
        size = len(self.rows[0]) - 1
        after = self.probe.ask([_picked(self.rows, range(size))])
        if after.ending != "answers" or self._apart(after.answers[0], tuple(a[:size] for a in self.alone)) > TOLERANCE:
            return Told("differs", None, "plain rows are answered otherwise after it")
        return told

    def _expected(self, question: Question) -> Arrays | Told | None:
        if question.plain is None:
            return self.alone
        reply = self.probe.ask([question.plain])
        if reply.ending != "answers":
            return Told("answers", None, "the same values cannot be asked in the usual dtype")
        return reply.answers[0]

    def _told(self, question: Question, reply: Reply, expected: Any) -> Told:
        if reply.ending != "answers":
            return Told(reply.ending, None, reply.words)
        answer = reply.answers[0]
        if question.expects is None and question.plain is None:
            finite = all(np.isfinite(part).all() for part in answer)
            return Told("answers" if finite else "differs", None, "" if finite else "the answer is not finite")
        rows = range(len(expected[0])) if question.expects is None else question.expects
        compared = [place for place, row in enumerate(rows) if row >= 0]
        if any(len(part) != len(rows) for part in answer):
            return Told("differs", None, f"{len(answer[0])} answers to {len(rows)} rows")
        wanted = tuple(part[[rows[place] for place in compared]] for part in expected)
        deviation = self._apart(tuple(part[compared] for part in answer), wanted)
        deviation = max(deviation, reply.worst / min(self.spans))
        return Told("same" if deviation <= TOLERANCE else "differs", deviation)

    def _apart(self, ones: Arrays, others: Arrays) -> float:
        if len(ones) != len(others):
            return float("inf")
        return max(distance([one], [other]) / span for one, other, span in zip(ones, others, self.spans, strict=True))


def judged(question: Question, original: Told, candidate: Told) -> Judged:
    """``breaks`` where the candidate does what it must not, and the original does not do the same or worse."""
    allowed = candidate.outcome in ("same", "answers") or (candidate.outcome == "refuses" and not question.legal)
    excused = not allowed and _RANK[original.outcome] >= _RANK[candidate.outcome]
    text = f"{question.about}: the candidate {_words(candidate)}"
    if excused:
        text += "; so does the original"
    elif candidate.outcome != original.outcome:
        text += f"; the original {_words(original)}"
    return Judged(question, original, candidate, "holds" if allowed or excused else "breaks", text)


def _words(told: Told) -> str:
    if told.outcome == "differs" and told.deviation is not None:
        return f"answers otherwise, by {told.deviation:.2g} of the range of its answers (at most {TOLERANCE:g} may be)"
    said = {"same": "answers the same", "answers": "answers", "refuses": "refuses", "dies": "dies or hangs"}
    short = said.get(told.outcome, "answers otherwise")
    return f"{short} ({told.words[:160]})" if told.words and told.outcome not in ("same", "answers") else short


def _ragged(answers: Sequence[Arrays]) -> list[Arrays]:
    """Answers to rows asked alone, every output as long as the longest."""
    shapes = [np.max([answer[at].shape[1:] for answer in answers], axis=0).astype(int) for at in range(len(answers[0]))]
    return [
        tuple(
            np.pad(part, [(0, 0), *((0, int(want) - have) for want, have in zip(shape, part.shape[1:], strict=True))])
            for part, shape in zip(answer, shapes, strict=True)
        )
        for answer in answers
    ]
