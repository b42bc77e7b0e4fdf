"""What every source must keep to."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np

from paretune.ask import plugin
from paretune.ask.artifact import Artifact, sha256_of
from paretune.errors import ArtifactError, WorkloadError
from paretune.testing import declaration, network, samples

PICKLED = b"\x80\x04N."
"""A pickle, of None, under another format's name."""


class SourceConformance:
    """Subclass it and set ``source``; override :meth:`models` with what it takes, and ``examples`` if need be."""

    source: Any

    def models(self, into: Path) -> list[object]:
        """Candidates, at least one of which the source takes."""
        return samples.models(into)

    def examples(self) -> Any:
        """Decoded examples that fit the models."""
        return samples.examples()

    def taken(self, tmp_path: Path) -> list[tuple[object, Artifact]]:
        """(model, artefact) of each model that the source takes."""
        if missing := plugin.missing(self.source):
            raise SkipTest(f"{', '.join(missing)} not installed: {plugin.install_command(self.source)}")
        found = []
        for index, model in enumerate(self.models(tmp_path)):
            into = tmp_path / f"into-{index}"
            into.mkdir()
            before = fingerprint(model)
            artifact = self.source().read(model, self.examples(), into)
            assert fingerprint(model) == before, "reading changed the user's model"
            if artifact is None:
                assert not list(into.iterdir()), "a model that is not this source's kind left files"
            else:
                found.append((model, artifact))
        assert found, f"{self.source.__name__} takes none of the models"
        return found

    def test_declares_itself(self) -> None:
        declaration.check_variables(self.source, {"name": str, "gives": str, "home": str})

    def test_home_is_a_target_that_accepts_its_form(self) -> None:
        home = plugin.load("targets", self.source.home)
        assert self.source.gives in home.accepts

    def test_imports_without_its_framework(self) -> None:
        declaration.check_cheap_import(self.source)

    def test_refuses_what_is_not_its_kind(self, tmp_path: Path) -> None:
        text = tmp_path / "letter.txt"
        text.write_text("this is no model")
        into = tmp_path / "into"
        into.mkdir()
        for stranger in (42, object(), {"weights": [1, 2]}, text, str(text), b"bytes"):
            assert self.source().read(stranger, self.examples(), into) is None
        assert list(into.iterdir()) == []

    def test_seals_what_it_takes_and_leaves_it_unchanged(self, tmp_path: Path) -> None:
        for _, artifact in self.taken(tmp_path):
            assert artifact.form == self.source.gives
            assert artifact.inputs
            assert artifact.outputs
            assert Artifact.open(artifact.root).digest == artifact.digest

    def test_a_damaged_file_is_told_from_a_missing_one(self, tmp_path: Path) -> None:
        files = [Path(model) for model, _ in self.taken(tmp_path) if isinstance(model, str | Path)]
        for index, file in enumerate(files):
            into = tmp_path / f"damaged-{index}"
            into.mkdir()
            whole = file.read_bytes()
            for damaged in (b"", b"this is no model", PICKLED, whole[: len(whole) // 2], whole[:-1]):
                copy = into / file.name
                copy.write_bytes(damaged)
                read = partial(self.source().read, copy, self.examples(), into)
                assert declaration.complaint(read, ArtifactError), "a damaged file was read without a word"
            missing = partial(self.source().read, into / f"none{file.suffix}", self.examples(), into)
            assert declaration.complaint(missing, WorkloadError), "a file that is not there was read without a word"

    def test_does_not_reach_for_the_network(self, tmp_path: Path) -> None:
        with network.refused() as attempts:
            self.taken(tmp_path)
        assert attempts == []

    def test_without_examples_works_or_says_so(self, tmp_path: Path) -> None:
        for index, (model, _) in enumerate(self.taken(tmp_path)):
            into = tmp_path / f"bare-{index}"
            into.mkdir()
            read = partial(self.source().read, model, None, into)
            assert declaration.complaint(read, WorkloadError) or Artifact.open(into).form == self.source.gives

    def test_native_keeps_the_numbers(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        native = self.source().native(array)
        assert np.array_equal(np.asarray(native), array)


def fingerprint(model: object) -> str | None:
    """sha256 of a file, or of a module's parameters and modes; None for anything else."""
    if isinstance(model, str | Path):
        return sha256_of(Path(model))
    if not hasattr(model, "state_dict"):
        return None
    total = hashlib.sha256(repr([(name, part.training) for name, part in model.named_modules()]).encode())  # type: ignore[attr-defined]
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.requires_grad}".encode())
        total.update(value.detach().cpu().numpy().tobytes())
    return total.hexdigest()
