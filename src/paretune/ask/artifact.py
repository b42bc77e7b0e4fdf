"""Artifact: a model in one form, a directory of files known by its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paretune.errors import ArtifactError

META = "artifact.json"
_MEND = "delete the directory it lies in and build it again, or restore it from a copy you trust"


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output; a string in the shape is a free (dynamic) axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> TensorSpec:
        return cls(value["name"], value["dtype"], tuple(value["shape"]))


@dataclass(frozen=True)
class Artifact:
    """A model in one form.

    Attributes
    ----------
    form
        ``torch``, ``onnx``, ``openvino`` …
    root
        The directory that holds the files.
    files
        Relative path → sha256 of every file that belongs to the model.
    inputs, outputs
        In the order in which a runner takes and returns them.
    keyword_inputs
        The model is called with keyword arguments named like the inputs.
    output_kind
        What the model returns: one tensor, a tuple, or a dict keyed by the outputs' names.
    precision
        The dominant arithmetic: ``fp32``, ``fp16``, ``bf16``, ``int8``.
    parameters, macs
        Number of parameters; multiply-accumulates for one example (None when unknown).
    notes
        Findings that belong to the artefact, in words.
    base
        Whose live module ``torch`` parameters are laid onto: the workload's ``model`` or its ``student``.
    history
        What the steps that made it did, for the report (see ``build/history.py``); kept beside them, not in it.
    origin
        A live handle of the user's own model, where there is one; never stored.
    """

    form: str
    root: Path
    files: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    keyword_inputs: bool = False
    output_kind: Literal["single", "tuple", "dict"] = "single"
    precision: str = "fp32"
    parameters: int | None = None
    macs: int | None = None
    notes: tuple[str, ...] = ()
    base: Literal["model", "student"] = "model"
    history: tuple[Mapping[str, Any], ...] = field(default=(), compare=False, repr=False)
    origin: object | None = field(default=None, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """sha256 over the form, the specs and the digests of the files: independent of where they lie."""
        described = [self.form, sorted(self.files.items()), self._described()]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The size of the model's files on disk."""
        return sum((self.root / name).stat().st_size for name in self.files)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that the model takes: the first axis of an input where that is not free; else None."""
        first = (spec.shape[0] for spec in self.inputs if spec.shape)
        return next((axis for axis in first if isinstance(axis, int)), None)

    def path(self, suffix: str) -> Path:
        """The one file with this suffix (``.onnx``, ``.xml``, …)."""
        found = [self.root / name for name in self.files if name.endswith(suffix)]
        if len(found) != 1:
            raise ArtifactError(f"expected one {suffix} file and found {len(found)}", where=str(self.root))
        return found[0]

    def _described(self) -> dict[str, Any]:
        return {
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs],
            "outputs": [dataclasses.asdict(spec) for spec in self.outputs],
            "keyword_inputs": self.keyword_inputs,
            "output_kind": self.output_kind,
        }

    def describe(self) -> dict[str, Any]:
        """Everything but the live handle and the place, as plain JSON values."""
        return {
            "form": self.form,
            "digest": self.digest,
            "files": dict(sorted(self.files.items())),
            **self._described(),
            "precision": self.precision,
            "parameters": self.parameters,
            "macs": self.macs,
            "notes": list(self.notes),
            "base": self.base,
        }

    @classmethod
    def seal(
        cls,
        form: str,
        root: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        **facts: Any,
    ) -> Artifact:
        """Hash every file below ``root``, write ``artifact.json`` beside them and return the artefact."""
        files = {
            path.relative_to(root).as_posix(): sha256_of(path)
            for path in sorted(root.rglob("*"))
            if path.is_file() and path != root / META
        }
        artifact = cls(form, root, files, inputs, outputs, **facts)
        (root / META).write_text(json.dumps(artifact.describe(), indent=1))
        return artifact

    @classmethod
    def describe_from(cls, value: Mapping[str, Any], root: Path) -> Artifact:
        """The artefact that :meth:`describe` described, at ``root``; nothing is checked."""
        return cls(
            form=value["form"],
            root=root,
            files=dict(value["files"]),
            inputs=tuple(TensorSpec.of(spec) for spec in value["inputs"]),
            outputs=tuple(TensorSpec.of(spec) for spec in value["outputs"]),
            keyword_inputs=value["keyword_inputs"],
            output_kind=value["output_kind"],
            precision=value["precision"],
            parameters=value["parameters"],
            macs=value["macs"],
            notes=tuple(value["notes"]),
            base=value.get("base", "model"),
        )

    @classmethod
    def open(cls, root: Path) -> Artifact:
        """Read a sealed artefact, checking the digest of every file first.

        Raises
        ------
        ArtifactError
            If a file is missing, or its content or the description of its interface is not what was sealed.
        """
        try:
            described = json.loads((root / META).read_text())
            artifact = cls.describe_from(described, root)
            sealed = described["digest"] == artifact.digest
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"cannot be read as an artefact: {error}", where=str(root), do=_MEND) from error
        if not sealed:
            raise ArtifactError("was changed: its digest is not the recorded one", where=str(root / META), do=_MEND)
        verify_files(root, artifact.files)
        return artifact


def unlike(student: Artifact, original: Artifact) -> str:
    """How one model's interface differs from another's, in words; empty when one can answer in the other's place.

    The names of inputs and outputs count only where a model is called or answers by them.
    """
    if student.form != original.form:
        return f"is of form {student.form}, and the model of form {original.form}"
    if student.output_kind != original.output_kind:
        return f"returns a {student.output_kind}, and the model a {original.output_kind}"
    for verb, ours, theirs, named in (
        ("takes", student.inputs, original.inputs, original.keyword_inputs),
        ("answers", student.outputs, original.outputs, original.output_kind == "dict"),
    ):
        if [_told(spec, named) for spec in ours] != [_told(spec, named) for spec in theirs]:
            told = [", ".join(_told(spec, named) for spec in specs) for specs in (ours, theirs)]
            return f"{verb} {told[0]}, and the model {told[1]}"
    return ""


def _told(spec: TensorSpec, named: bool) -> str:
    shape = ", ".join(map(str, spec.shape))
    return f"{spec.name} {spec.dtype}[{shape}]" if named else f"{spec.dtype}[{shape}]"


def verify_files(root: Path, files: Mapping[str, str]) -> None:
    """Raise :class:`ArtifactError` unless every file lies inside ``root`` and has the stated sha256."""
    base = root.resolve()
    for name, digest in files.items():
        try:
            path = (root / name).resolve()
            inside, there = base in path.parents, path.is_file()
            found = sha256_of(path) if inside and there else None
        except (OSError, ValueError, RuntimeError) as error:  # a null byte, a ring of links, no permission
            raise ArtifactError(f"cannot be read: {error}", where=f"{root}: {name!r}", do=_MEND) from error
        if not inside:
            raise ArtifactError("names a file outside its directory", where=f"{root}: {name!r}", do="do not trust it")
        if not there:
            raise ArtifactError("is missing", where=str(root / name), do="restore it, or build it again")
        if found != digest:
            raise ArtifactError(
                "is corrupt or was changed: its sha256 is not the recorded one", where=str(root / name), do=_MEND
            )


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
