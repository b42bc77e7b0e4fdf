"""Pupil: what a technique teaches, the model as it comes or the workload's student in its place."""

from __future__ import annotations

import dataclasses

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import BuildError


def pupil(student: str, artifact: Artifact, fit: Fit, name: str) -> Artifact:
    """What is to learn, called by the names that its own ``forward`` has.

    Raises
    ------
    BuildError
        If the workload has no student, or the model was changed before the student is to take its place.
    """
    if student == "artifact":
        return artifact
    if fit.student is None:
        raise BuildError(
            "the workload has no student", where=f"{name}.student",
            do="give Workload(student=…) a smaller module, or use student=artifact",
        )  # fmt: skip
    if artifact.digest != fit.teacher.digest:
        raise BuildError(
            "a student given by the workload cannot take the place of a model that was changed before",
            where=f"{name}.student", do="make this the first step, or use student=artifact",
        )  # fmt: skip
    return dataclasses.replace(fit.student, base="student")
