"""Whole blocks go: the ones that matter least, for good, and what is left answers as the original does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import residual_nets as residual
import torch
import training_nets as nets

from paretune.ask.artifact import Artifact
from paretune.forms import torch as form
from paretune.forms.torch_edits import Remove
from paretune.techniques.torch_prune_blocks import TorchPruneBlocks
from paretune.testing import TechniqueConformance

BARE = TorchPruneBlocks(epochs=0, sample=64, macs_ratio=0.7)
QUICK = dataclasses.replace(BARE, epochs=15, batch=32, learning_rate=0.01, macs_ratio=0.5)


class TestConformance(TechniqueConformance):
    technique = TorchPruneBlocks

    def artifact(self) -> Artifact:
        return residual.pictures()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agreement(one: Artifact, other: Artifact) -> float:
    x = np.stack([x for x, _ in nets.rows(400, seed=99)])
    answers = [form.call(form.restore(artifact), artifact, (x,))[0].argmax(1) for artifact in (one, other)]
    return float(np.mean(answers[0] == answers[1]))


def gone(artifact: Artifact) -> set[str]:
    return {path for edit in form.edits_of(artifact) for path in edit.paths}


@pytest.mark.parametrize("ranking", ["greedy", "single"])
def test_blocks_that_add_nothing_go_first_and_are_really_gone(tmp_path, ranking):
    original = residual.sealed(tmp_path)
    pruned = dataclasses.replace(BARE, ranking=ranking, recalibration=0).apply(
        original, residual.fitted(original, tmp_path)
    )
    assert gone(pruned) == set(residual.DULL)
    assert [type(edit) for edit in form.edits_of(pruned)] == [Remove]
    assert pruned.macs <= 0.7 * original.macs
    assert pruned.macs == original.macs - 2 * residual.WIDTH**2 - 2 * (2 * residual.WIDTH) ** 2
    assert [len(stage) for stage in form.restore(pruned).stages] == [2, 2]
    assert agreement(pruned, original) > 0.97
    assert pruned.notes[-3].startswith(
        "torch_prune_blocks: 2 of 6 blocks left out: stages.1.1, stages.0.2; parameters "
    )


def test_what_is_left_is_healed(tmp_path):
    original = residual.sealed(tmp_path)
    cut = dataclasses.replace(BARE, macs_ratio=0.3, recalibration=0).apply(
        original, residual.fitted(original, tmp_path / "a")
    )
    healed = dataclasses.replace(QUICK, macs_ratio=0.3).apply(original, residual.fitted(original, tmp_path / "b"))
    assert healed.macs == cut.macs <= 0.3 * original.macs
    assert agreement(healed, original) > max(0.75, agreement(cut, original) + 0.1)
