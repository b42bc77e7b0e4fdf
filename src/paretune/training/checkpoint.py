"""Checkpoints: tensors in safetensors and facts in JSON, written whole or not at all, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paretune.ask.artifact import sha256_of, verify_files
from paretune.build.store import sync, writing
from paretune.errors import BuildError, ParetuneError

FACTS = "checkpoint.json"
KEPT = 2
"""Checkpoints that are kept: when the parameters of the newest prove bad, the one before is still there."""


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps.

    Attributes
    ----------
    step
        How many steps were done.
    tensors
        File (``model``, ``optimizer`` …) → name → tensor.
    facts
        Everything else, as plain JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """A directory of checkpoints, ``step-NNNNNNNNN`` each: ``FILE.safetensors``, and ``checkpoint.json`` with digests.

    What a killed process left half-written is never taken for one, and goes with the directory.
    """

    folder: Path

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it beside the others, flush it to the disk, put it in place by one rename, drop old ones.

        Raises
        ------
        OutputError
            If the directory cannot be written, or the disk is full.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".writing-"))
            try:
                self._write(checkpoint, scratch)
                place = self._place(checkpoint.step)
                shutil.rmtree(place, ignore_errors=True)  # of this step, and found not to be whole: see latest()
                scratch.rename(place)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        for old in self._found()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Checkpoint | None:
        """The newest that is whole; None when there is none."""
        for place in self._found():
            checkpoint = _read(place)
            if checkpoint is not None:
                return checkpoint
        return None

    def of(self, purpose: str) -> Checkpoint | None:
        """The newest, if its fact ``purpose`` is this one; None when there is none.

        Raises
        ------
        BuildError
            If the directory holds the checkpoints of something else.
        """
        held = self.latest()
        if held is not None and held.facts.get("purpose") != purpose:
            raise BuildError(
                "holds the checkpoints of another training", where=str(self.folder),
                do="give another directory, or delete it",
            )  # fmt: skip
        return held

    def drop(self, step: int) -> None:
        """Remove the checkpoint after ``step`` steps, where there is one."""
        shutil.rmtree(self._place(step), ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _write(self, checkpoint: Checkpoint, scratch: Path) -> None:
        for name, tensors in checkpoint.tensors.items():
            # copies: safetensors refuses tensors that share memory, as a device's recurrent weights do
            kept = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
            save_file(kept, scratch / f"{name}.safetensors")
        files = {path.name: sha256_of(path) for path in sorted(scratch.iterdir())}
        described = {"step": checkpoint.step, "files": files, "facts": dict(checkpoint.facts)}
        (scratch / FACTS).write_text(json.dumps(described))
        sync(scratch)


def purpose(described: Sequence[Any]) -> str:
    """A digest of what must be the same for a checkpoint to be taken up: plain JSON values."""
    return hashlib.sha256(json.dumps(list(described), sort_keys=True).encode()).hexdigest()


def tensors_of(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and all buffers, those that ``state_dict`` leaves out too; each once, tied or not."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def unsaved_of(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.Tensor]]:
    """The buffers that ``state_dict`` leaves out: (whose, name, a copy)."""
    return [
        (owner, name, held.detach().clone())
        for owner in module.modules()
        for name in sorted(owner._non_persistent_buffers_set)
        if (held := owner._buffers.get(name)) is not None
    ]


def _read(place: Path) -> Checkpoint | None:
    try:
        described = json.loads((place / FACTS).read_text())
        verify_files(place, described["files"])
        tensors = {Path(name).stem: load_file(place / name) for name in described["files"]}
        return Checkpoint(int(described["step"]), tensors, described["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError, ParetuneError):
        return None  # somebody changed or removed it: an older one, or none, leads to the same result
