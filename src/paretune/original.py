"""Original: the workload's model and its student, read through their front doors and kept in a store."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from paretune.ask import source
from paretune.ask.artifact import META, Artifact, unlike
from paretune.ask.data import Split
from paretune.ask.workload import Workload
from paretune.build.store import Store, key_of
from paretune.errors import WorkloadError


def read(model: object, examples: Split, store: Store) -> tuple[Artifact, source.Source]:
    """The artefact of what a user has, in the store, and the front door that it came through.

    Raises
    ------
    WorkloadError, DataError, PluginError
        If no front door takes it, or it does not take the examples.
    """
    scratch = store.scratch()
    try:
        into = scratch / "original"
        into.mkdir()
        artifact, door = source.find(model, examples, into)
        key = key_of("original", {"digest": artifact.digest})
        place = store.get(key)
        if place is None:
            place = store.put(key, "original", lambda at: _copy(artifact.root, at))
        return dataclasses.replace(Artifact.open(place), origin=artifact.origin), door
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_student(workload: Workload, original: Artifact, examples: Split, store: Store) -> Artifact | None:
    """The model that is to be taught; None where there is none.

    Raises
    ------
    WorkloadError
        If it cannot be read, or does not take and return what the original does.
    """
    if workload.student is None:
        return None
    try:
        student, _ = read(workload.student, examples, store)
    except WorkloadError as error:
        where = error.where.replace("Workload.model", "Workload.student")
        raise type(error)(error.what, where=where, do=error.do) from error
    differs = unlike(student, original)
    if differs:
        do = "give one that takes and returns what the model does"
        raise WorkloadError(differs, where="Workload.student", do=do)
    return dataclasses.replace(student, base="student")


def _copy(root: Path, into: Path) -> None:
    shutil.copytree(root, into, dirs_exist_ok=True)
    assert (into / META).is_file()
