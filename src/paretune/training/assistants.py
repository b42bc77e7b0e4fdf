"""Assistants: models between a teacher and a student in size, each taught by the one before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from paretune.ask.artifact import Artifact
from paretune.build.history import Entry
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_count
from paretune.training.healing import heal, sealed
from paretune.training.plan import Teaching
from paretune.training.student import Size, made


def sizes(texts: Sequence[str], where: str) -> tuple[Size, ...]:
    """``WIDTHxDEPTH`` of each assistant, both above 0 and at most 1.

    Raises
    ------
    BuildError
        If a text is no such pair.
    """
    found = []
    for text in texts:
        try:
            width, depth = (float(part) for part in text.split("x"))
        except ValueError:
            width = depth = math.nan
        if not (0 < width <= 1 and 0 < depth <= 1):
            raise BuildError(
                f"{text!r} is no WIDTHxDEPTH between 0 and 1", where=where, do="write 0.75x0.5, say; 1x0.5: depth alone"
            )
        found.append(Size(width, depth))
    return tuple(found)


def ladder(texts: Sequence[str], student: Artifact, fit: Fit, name: str) -> tuple[tuple[Artifact, str], ...]:
    """The assistants, made of the original and not yet taught, the largest first, each with a note.

    Without ``texts`` there is one, with half-way between the parameters of both: by blocks where the original has some,
    else by channels.

    Raises
    ------
    BuildError
        If one cannot be made, or is not smaller than the one before it and larger than the student.
    """
    where = f"{name}.assistants"
    if not texts:
        rungs = [_half_way(student, fit, where)]
    else:
        rungs = [
            made(fit.teacher, size, "kept", fit, where, f"assistant-{number + 1}")
            for number, size in enumerate(sizes(texts, where))
        ]
    counts = [_parameters(fit.teacher), *(_parameters(rung) for rung, _ in rungs), _parameters(student)]
    if any(one <= other for one, other in pairwise(counts)):
        raise BuildError(
            "teacher, assistants and student have " + ", ".join(map(str, counts)) + " parameters: each must have fewer "
            "than the one before", where=where, do="give other WIDTHxDEPTH, the largest first, or a smaller student",
        )  # fmt: skip
    return tuple(rungs)


def taught(
    assistant: Artifact, teacher: Artifact, fit: Fit, plan: Teaching, name: str, part: str
) -> tuple[Artifact, str]:
    """The assistant after its training, sealed in a directory of ``fit.scratch``, and what it learnt, in words.

    Raises
    ------
    BuildError
        As :func:`~paretune.training.healing.heal`.
    """
    module = form.restore(assistant)
    outcome = heal(module, assistant, fit, plan, name=name, part=part, teacher=teacher)
    place = dataclasses.replace(fit, scratch=fit.scratch / f"{part}-taught")
    return sealed(module, assistant, assistant, place, form.edits_of(assistant)), f"{part}: {outcome.line}"


def stage(fit: Fit, number: int, total: int) -> Fit:
    """The fit of one training of several, which take equal shares of the progress."""
    return dataclasses.replace(
        fit, progress=lambda share, text: fit.progress((number + share) / total, f"{number + 1} of {total}: {text}")
    )


def _half_way(student: Artifact, fit: Fit, where: str) -> tuple[Artifact, str]:
    """An assistant with the geometric mean of both sizes, or near it."""
    most, least = _parameters(fit.teacher), _parameters(student)
    share = math.sqrt(min(1.0, least / most))
    reason = ""
    for size in (Size(1.0, share), Size(math.sqrt(share), 1.0)):
        told: list[Entry] = []
        try:
            rung, note = made(
                fit.teacher, size, "kept", dataclasses.replace(fit, record=told.append), where, "assistant-1"
            )
        except BuildError as error:
            reason = error.what
            continue
        if most > _parameters(rung) > least:
            for entry in told:
                fit.record(entry)
            return rung, note
        reason = f"with {size} it has {_parameters(rung)} parameters"
    raise BuildError(
        f"no assistant between {most} and {least} parameters was found: {reason}", where=where,
        do="give WIDTHxDEPTH of assistants, a smaller student, or use torch_distill",
    )  # fmt: skip


def _parameters(artifact: Artifact) -> int:
    return artifact.parameters or torch_count.parameters(form.restore(artifact))
