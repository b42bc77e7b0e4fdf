"""What every technique must keep to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import SkipTest

from paretune.ask import plugin
from paretune.ask.artifact import META, Artifact
from paretune.build.technique import KINDS
from paretune.errors import BuildError, ParetuneError
from paretune.testing import declaration, network, samples

_BUILT: dict[type[Any], tuple[Artifact, Artifact]] = {}


class TechniqueConformance:
    """Subclass it and set ``technique``; override :meth:`artifact` if the sample model cannot be treated by it."""

    technique: Any

    def artifact(self) -> Artifact:
        """What the technique is applied to: the sample model in the first form it takes."""
        return samples.artifact(min(self.technique.takes))

    def once(self, scratch: Path) -> tuple[Artifact, Artifact]:
        """The technique applied to :meth:`artifact`, once for all tests: (before, after)."""
        if missing := plugin.missing(self.technique):
            raise SkipTest(f"{', '.join(missing)} not installed: {plugin.install_command(self.technique)}")
        if type(self) not in _BUILT:
            before = self.artifact()
            _BUILT[type(self)] = before, self.technique().apply(before, samples.fit(before, samples._place("built")))
        return _BUILT[type(self)]

    def test_declares_itself(self) -> None:
        wanted = {"name": str, "takes": frozenset, "gives": str, "kind": str, "use": str, "cost": float}
        declaration.check_variables(self.technique, wanted)
        assert self.technique.takes
        assert self.technique.kind in KINDS
        assert self.technique.cost > 0
        assert self.technique.use.strip()
        assert not self.technique.use.endswith("."), "it ends a sentence: use it when …"

    def test_knobs_have_ranges_and_legal_defaults(self) -> None:
        declaration.check_knobs(self.technique)

    def test_refuses_knobs_outside_their_ranges(self) -> None:
        declaration.check_refusals(self.technique)

    def test_light_proposals_are_legal_and_distinct(self) -> None:
        declaration.check_light(self.technique, self.technique.light())

    def test_imports_without_its_framework(self) -> None:
        declaration.check_cheap_import(self.technique)

    def test_gives_its_form_with_the_same_interface(self, tmp_path: Path) -> None:
        before, after = self.once(tmp_path)
        assert after.form == self.technique.gives
        assert [spec.name for spec in after.inputs] == [spec.name for spec in before.inputs]
        assert [spec.name for spec in after.outputs] == [spec.name for spec in before.outputs]
        assert (after.keyword_inputs, after.output_kind) == (before.keyword_inputs, before.output_kind)

    def test_result_is_sealed_and_opens_again(self, tmp_path: Path) -> None:
        _, after = self.once(tmp_path)
        assert after.files
        again = Artifact.open(after.root)
        assert again.digest == after.digest
        assert again == after

    def test_same_input_gives_same_digest_in_its_own_directory(self, tmp_path: Path) -> None:
        before, after = self.once(tmp_path)
        fit = samples.fit(before, tmp_path)
        again = self.technique().apply(before, fit)
        assert again.root == fit.out
        assert again.digest == after.digest

    def test_leaves_its_input_as_it_was(self, tmp_path: Path) -> None:
        before, _ = self.once(tmp_path)
        listing = sorted(path.relative_to(before.root).as_posix() for path in before.root.rglob("*") if path.is_file())
        assert listing == sorted([*before.files, META])
        assert Artifact.open(before.root).digest == before.digest

    def test_does_not_reach_for_the_network(self, tmp_path: Path) -> None:
        before, _ = self.once(tmp_path)
        with network.refused() as attempts:
            self.technique().apply(before, samples.fit(before, tmp_path))
        assert attempts == []

    def test_without_training_data_works_or_says_so(self, tmp_path: Path) -> None:
        before, _ = self.once(tmp_path)
        fit = samples.fit(before, tmp_path, train=False)
        complaint = declaration.complaint(lambda: self.technique().apply(before, fit), BuildError)
        assert complaint or Artifact.open(fit.out).form == self.technique.gives

    def test_refuses_a_broken_model_in_one_line(self, tmp_path: Path) -> None:
        before, _ = self.once(tmp_path)
        broken = tmp_path / "broken"
        shutil.copytree(before.root, broken)
        for name in before.files:
            (broken / name).write_bytes(b"\0 this is no model \0")
        wrong = Artifact.describe_from(before.describe(), broken)
        fit = samples.fit(before, tmp_path / "scratch")
        complaint = declaration.complaint(lambda: self.technique().apply(wrong, fit), ParetuneError)
        assert complaint, "a broken model was treated without a word"
