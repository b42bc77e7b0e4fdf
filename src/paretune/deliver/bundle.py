"""Bundle: a directory with the artefact, how it was made, and the evidence; its digests are checked first."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paretune.ask import plugin
from paretune.ask.artifact import META, Artifact, sha256_of, verify_files
from paretune.ask.knob import make
from paretune.ask.target import Target
from paretune.build.candidate import Candidate
from paretune.build.store import write_whole, writing
from paretune.check.answers import Answers
from paretune.check.measurement import Subject
from paretune.errors import ArtifactError, BuildError

MANIFEST = "bundle.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its artefact, the target it is meant for, and its manifest."""

    root: Path
    artifact: Artifact
    target: Target
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<Bundle {self.root}: {self.manifest['title']}>"

    @classmethod
    def open(cls, root: Path) -> Bundle:
        """Read a bundle, checking the digest of every file first; nothing is unpickled.

        Raises
        ------
        ArtifactError
            If it is not a bundle, is of a later format, or a file is missing, was changed or was put beside the others.
        PluginError
            If its target is not installed.
        """
        try:
            manifest = json.loads((root / MANIFEST).read_text())
            version, files = manifest["format"], dict(manifest["files"])
            artifact = Artifact.describe_from(manifest["artifact"], root)
            digest = manifest["artifact"]["digest"]
            name, options = manifest["target"]["name"], manifest["target"]["options"]
            _ = manifest["id"], manifest["title"], manifest["machine"]["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"is not a bundle: {error}", where=str(root), do="`paretune pack` makes one") from error
        if version != FORMAT:
            raise ArtifactError(f"has format {version}, this version reads {FORMAT}", where=str(root / MANIFEST))
        _verify(root, files, artifact, digest)
        kind = plugin.load("targets", name)
        plugin.require(kind, name)
        if artifact.form not in kind.accepts:
            raise ArtifactError(f"{name} does not open form {artifact.form}", where=str(root / MANIFEST))
        return cls(root, artifact, make(kind, options, name), manifest)

    def attach(self, report: str) -> None:
        """Put ``report.html`` into the bundle and its digest into the manifest."""
        write_whole(self.root / "report.html", report)
        files = {**self.manifest["files"], "report.html": sha256_of(self.root / "report.html")}
        write_whole(self.root / MANIFEST, json.dumps({**self.manifest, "files": files}, indent=1))

    @property
    def subject(self) -> Subject:
        """What can be measured."""
        return Subject(str(self.manifest["id"]), self.artifact, self.target)


def pack(
    candidate: Candidate,
    artifact: Artifact,
    into: Path,
    *,
    machine: Mapping[str, Any],
    workload: Mapping[str, Any],
    evidence: Mapping[str, Any],
    answers: Answers | None = None,
    report: str | None = None,
) -> Bundle:
    """Write a bundle whole: an earlier one at ``into`` is replaced only when the new one is complete.

    Raises
    ------
    OutputError
        If the place cannot be written or the disk is full.
    BuildError
        If the model has no file that the runtime's own loader can open.
    """
    with writing(into):
        into.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=into.parent, prefix=f".{into.name}."))
        try:
            model = _place(candidate, artifact, fresh)
            if answers is not None:
                np.savez(fresh / "reference.npz", **reference(answers))  # type: ignore[arg-type]
            if report is not None:
                (fresh / "report.html").write_text(report)
            files = {name: sha256_of(fresh / name) for name in _files(fresh)}
            manifest = {
                "format": FORMAT,
                "id": candidate.id,
                "form": model.form,
                "title": candidate.title,
                **candidate.describe(),
                "settings": {"threads": machine["threads"]},
                "artifact": model.describe(),
                "files": files,
                "workload": workload,
                "machine": machine,
                "evidence": evidence,
            }
            write_whole(fresh / MANIFEST, json.dumps(manifest, indent=1))
            fresh.chmod(0o755)
            _swap(fresh, into)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Bundle.open(into)


def _files(root: Path) -> list[str]:
    """The relative paths of all files but the manifest; hidden ones are the system's, not the bundle's."""
    found = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    return [name for name in found if name != MANIFEST and not name.rpartition("/")[2].startswith(".")]


def _verify(root: Path, files: Mapping[str, str], artifact: Artifact, digest: str) -> None:
    where = str(root / MANIFEST)
    verify_files(root, files)
    if any(files.get(name) != stated for name, stated in artifact.files.items()):
        raise ArtifactError("lists a model file without its digest, or with two that differ", where=where)
    if artifact.digest != digest:
        raise ArtifactError("describes another model than the one it was packed with", where=where)
    stray = sorted(set(_files(root)) - set(files))
    if stray:
        raise ArtifactError("holds a file that its manifest does not list", where=str(root / stray[0]), do="remove it")


def reference(answers: Answers) -> dict[str, np.ndarray[Any, Any]]:
    """Statistics of answers and confidence to hold live ones against: no example can be read out of them."""
    counts, edges = np.histogram(answers.confidence, bins=50)
    found = {"examples": np.array(len(answers)), "confidence_counts": counts, "confidence_edges": edges}
    if answers.compared.dtype.kind in "iub":
        values, frequency = np.unique(answers.compared, return_counts=True)
        return {**found, "classes": values, "class_counts": frequency}
    flat = answers.compared.reshape(len(answers), -1)
    return {**found, "output_mean": flat.mean(axis=0), "output_std": flat.std(axis=0)}


def _place(candidate: Candidate, artifact: Artifact, into: Path) -> Artifact:
    """Put the files that the runtime's own loader opens into the bundle."""
    portable = getattr(candidate.target, "portable", None)
    if portable is not None and artifact.origin is not None:
        made: Artifact | None = portable(artifact, into)
        if made is None:
            raise BuildError(
                "this model cannot be saved in a form that opens without its own code", where=candidate.title
            )
        (into / META).unlink(missing_ok=True)
        return made
    for name in artifact.files:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.root / name, into / name)
    return dataclasses.replace(artifact, root=into)


def _swap(fresh: Path, into: Path) -> None:
    """Put the new directory in the old one's place. Where the system cannot exchange two, the old one steps aside."""
    if not into.exists():
        fresh.rename(into)
    elif not _exchange(fresh, into):
        old = fresh.with_name(f"{fresh.name}.old")
        into.rename(old)
        fresh.rename(into)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places in one step (renameat2(2), Linux); whether it could be done."""
    import ctypes

    at_cwd, exchange = -100, 2
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an older C library
        return False
    return bool(call(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)
