"""Whole blocks go: the ones that matter least, for good, and what is left answers as the original does."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import residual_nets as residual
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_export
from paretune.forms.torch_edits import Remove
from paretune.techniques.torch_prune_blocks import TorchPruneBlocks
from paretune.techniques.torch_to_onnx import TorchToOnnx
from paretune.testing import TechniqueConformance

BARE = TorchPruneBlocks(epochs=0, sample=64, macs_ratio=0.7)
QUICK = dataclasses.replace(BARE, epochs=15, batch=32, learning_rate=0.01, macs_ratio=0.5)


class TestConformance(TechniqueConformance):
    technique = TorchPruneBlocks

    def artifact(self) -> Artifact:
        return residual.pictures()


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


def test_no_stage_gives_more_than_its_share(tmp_path):
    original = residual.sealed(tmp_path)
    fit = residual.fitted(original, tmp_path)
    even = dataclasses.replace(BARE, macs_ratio=0.4, most=2 / 3, recalibration=0)
    assert sorted(path[:8] for path in gone(even.apply(original, fit))) == ["stages.0"] * 2 + ["stages.1"] * 2
    with pytest.raises(BuildError, match=r"all of the 4 blocks that can go, 38.9% .* raise most"):
        dataclasses.replace(even, macs_ratio=0.3).apply(original, fit)


def test_what_is_left_is_healed(tmp_path):
    original = residual.sealed(tmp_path)
    cut = dataclasses.replace(BARE, macs_ratio=0.3, recalibration=0).apply(
        original, residual.fitted(original, tmp_path / "a")
    )
    healed = dataclasses.replace(QUICK, macs_ratio=0.3).apply(original, residual.fitted(original, tmp_path / "b"))
    assert healed.macs == cut.macs <= 0.3 * original.macs
    assert agreement(healed, original) > max(0.75, agreement(cut, original) + 0.1)


def test_after_the_cut_batch_normalisation_is_measured_anew_if_it_shall(tmp_path):
    original = residual.sealed(tmp_path)
    live = form.restore(original)
    for examples in (0, 64):
        cut = dataclasses.replace(BARE, remove=("stages.0.0",), recalibration=examples)
        left = cut.apply(original, residual.fitted(original, tmp_path / str(examples)))
        after = form.restore(left).stages[0][0].norm  # what was the second
        assert torch.equal(after.running_mean, live.stages[0][1].norm.running_mean) == (examples == 0)
        assert any("with batch normalisation measured anew" in note for note in left.notes) == (examples > 0)


def test_named_blocks_go_and_nothing_else(tmp_path):
    original = residual.sealed(tmp_path)
    plan = dataclasses.replace(BARE, remove=("stages.1.2", "stages.0.0"), recalibration=0)
    entries: list[dict] = []
    pruned = plan.apply(original, dataclasses.replace(residual.fitted(original, tmp_path), record=entries.append))
    assert gone(pruned) == {"stages.1.2", "stages.0.0"}
    tables = [entry["rows"] for entry in entries if entry["kind"] == "table"]
    assert tables[0] == [["stages.1.2", 1, 0], ["stages.0.0", 1, 0]]
    assert "2 of 2 blocks left out: stages.1.2, stages.0.0" in pruned.notes[0]


def test_cycles_share_the_cut_and_the_epochs(tmp_path):
    plan = dataclasses.replace(QUICK, epochs=11, iterations=3, macs_ratio=0.4, batch=64)
    assert plan.shares() == (3, 2, 6)
    assert dataclasses.replace(plan, iterations=1).shares() == (11,)
    original = residual.sealed(tmp_path)
    pruned = plan.apply(original, residual.fitted(original, tmp_path))
    assert pruned.macs <= 0.4 * original.macs
    lines = [note for note in pruned.notes if ": cycle " in note]
    assert [line.split(",")[0] for line in lines] == [f"torch_prune_blocks: cycle {n} of 3" for n in (1, 2, 3)]
    left_out = [int(line.split(", ")[1].split()[0]) for line in lines]
    assert left_out == sorted(set(left_out))
    assert agreement(pruned, original) > 0.75


def test_epochs_of_cycles_that_cut_nothing_are_kept_for_the_next(tmp_path):
    original = residual.sealed(tmp_path)
    plan = dataclasses.replace(QUICK, epochs=8, iterations=4, macs_ratio=0.9, batch=128)
    pruned = plan.apply(original, residual.fitted(original, tmp_path))
    assert len(gone(pruned)) == 1
    told = [note.split("(")[1].split(":")[0] for note in pruned.notes if ": cycle " in note]
    assert told == ["2 epochs", "6 epochs"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import residual_nets as residual, test_torch_prune_blocks as here
def progress(share, text):
    if share > {share}:
        os.kill(os.getpid(), signal.SIGKILL)
root = Path({root!r})
original = residual.sealed(root)
fit = residual.fitted(original, root / "killed", progress=progress, checkpoints=root / "checkpoints")
here.CYCLES.apply(original, fit)
"""
CYCLES = dataclasses.replace(QUICK, epochs=4, iterations=2, macs_ratio=0.5, batch=64)


def test_a_killed_pruning_goes_on_to_the_same_end(tmp_path):
    original = residual.sealed(tmp_path / "one")
    undisturbed = CYCLES.apply(original, residual.fitted(original, tmp_path / "undisturbed"))

    def stop(share: float, text: str) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    kept = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):  # while the first cycle heals
        CYCLES.apply(original, residual.fitted(original, tmp_path / "stopped", checkpoints=kept, progress=stop))
    paths = [str(Path(__file__).parent), str(Path(nets.__file__).parent)]
    code = KILLED.format(paths=paths, root=str(tmp_path), share=0.9)  # while the second does
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    texts: list[str] = []
    fit = residual.fitted(
        original, tmp_path / "again", checkpoints=kept, progress=lambda share, text: texts.append(text)
    )
    again = CYCLES.apply(original, fit)
    assert again.digest == undisturbed.digest
    assert again.notes == undisturbed.notes
    assert all(text.startswith("cycle 2 of 2: ") and "ranking" not in text for text in texts)
    other = dataclasses.replace(CYCLES, ranking="single")
    with pytest.raises(BuildError, match="checkpoints of another training"):
        other.apply(original, residual.fitted(original, tmp_path / "other", checkpoints=kept))


def test_the_shallower_model_exports_and_opens_in_a_fresh_process(tmp_path):
    original = residual.sealed(tmp_path)
    fit = residual.fitted(original, tmp_path / "a")
    pruned = QUICK.apply(original, fit)
    exported = TorchToOnnx().apply(pruned, dataclasses.replace(fit, scratch=tmp_path / "b"))  # compares the answers
    held = sum(int(np.prod(one.dims)) for one in onnx.load(exported.path(".onnx")).graph.initializer)
    assert held < 0.6 * sum(parameter.numel() for parameter in residual.residual().parameters())
    x = np.stack([x for x, _ in nets.rows(3, seed=5)])
    wanted = form.call(form.restore(pruned), pruned, (x,))[0]
    code = f"""
import sys, json
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(nets.__file__).parent)]!r}
import dataclasses, numpy as np, torch, residual_nets, training_nets as nets
torch.set_num_threads(1)
from paretune.ask.artifact import Artifact
from paretune.forms import torch as form
artifact = dataclasses.replace(Artifact.open(Path({str(pruned.root)!r})), origin=residual_nets.residual())
x = np.stack([x for x, _ in nets.rows(3, seed=5)])
print(json.dumps(form.call(form.restore(artifact), artifact, (x,))[0].tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.array(json.loads(done.stdout), np.float32), wanted)


def test_a_second_pruning_goes_on_from_the_first(tmp_path):
    original = residual.sealed(tmp_path)
    once = BARE.apply(original, residual.fitted(original, tmp_path / "a"))
    fit = dataclasses.replace(residual.fitted(original, tmp_path / "b"), teacher=original)
    twice = dataclasses.replace(BARE, macs_ratio=0.6).apply(once, fit)
    assert len(form.edits_of(twice)) > len(form.edits_of(once))
    assert twice.macs <= 0.6 * once.macs
    assert twice.notes[: len(once.notes)] == once.notes


def test_a_regression_is_ranked_by_its_values(tmp_path):
    original = residual.sealed(tmp_path)
    items = [(x, np.float32([0, 0, 0])) for x, _ in nets.rows(100)]
    pruned = dataclasses.replace(BARE, recalibration=0).apply(original, residual.fitted(original, tmp_path, items))
    assert gone(pruned) == set(residual.DULL)
    assert "mean squared difference" in pruned.notes[-1]


class Doubled(nn.Module):
    """Three blocks, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        one, other, third = residual.Block(6, 1), residual.Block(6, 0.01), residual.Block(6, 1)
        self.blocks = nn.Sequential(one, other, one, third)
        self.head = nn.Linear(6, nets.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


def test_a_block_that_stands_in_two_places_is_counted_by_what_it_costs(tmp_path):
    original = nets.sealed(nets.net(0, Doubled), tmp_path / "doubled")
    pruned = dataclasses.replace(BARE, macs_ratio=0.8, recalibration=0).apply(
        original, residual.fitted(original, tmp_path, nets.rows(100))
    )
    assert gone(pruned) == {"blocks.1"}
    left = form.restore(pruned)
    assert left.blocks[0] is left.blocks[1]


@pytest.mark.parametrize(
    ("knobs", "module", "told"),
    [
        ({"macs_ratio": 0.05}, residual.Residual, "without all of the 6 blocks that can go, 8.4% of the multiply"),
        ({}, lambda: nn.Sequential(nn.Linear(6, 3)), "no member of a Sequential or ModuleList"),
        ({"remove": ("stages.7",)}, residual.Residual, "torch_prune_blocks.remove: the model has no module 'stages.7'"),
        ({"remove": ("head",)}, residual.Residual, "head does not answer in the shape of its first input"),
        ({"epochs": 3}, lambda: residual.Residual().requires_grad_(False), "parameters of the model are frozen"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(tmp_path, knobs, module, told):
    original = nets.sealed(nets.net(0, module), tmp_path / "net")
    with pytest.raises(BuildError, match=told) as caught:
        dataclasses.replace(BARE, **knobs).apply(original, residual.fitted(original, tmp_path))
    assert "\n" not in str(caught.value)


def test_labels_of_one_class_are_told_before_blocks_are_ranked(tmp_path):
    original = residual.sealed(tmp_path)
    items, said = [(x, np.int64(1)) for x, _ in nets.rows(64)], []
    fit = residual.fitted(original, tmp_path, items, progress=lambda share, text: said.append(text))
    with pytest.raises(BuildError, match="all of its 64 examples are of class 1"):
        QUICK.apply(original, fit)
    assert not said


def test_the_report_is_told_where_the_work_went(tmp_path):
    original, entries = residual.sealed(tmp_path), []
    BARE.apply(original, residual.fitted(original, tmp_path, record=entries.append))
    (rows,) = [entry["rows"] for entry in entries if entry["title"].startswith("where ")]
    found = {row[0]: row[1:] for row in rows}
    width = residual.WIDTH
    whole = nets.FEATURES * width + 6 * width**2 + 2 * width**2 + 6 * (2 * width) ** 2 + 2 * width * nets.CLASSES
    assert found["stages.0 (3 → 2 members)"][2:] == [6 * width**2, 4 * width**2]
    assert found["stages.1 (3 → 2 members)"][2:] == [6 * (2 * width) ** 2, 4 * (2 * width) ** 2]
    assert found["in all"][2:] == [whole, whole - 2 * width**2 - 2 * (2 * width) ** 2]
    assert set(found) == {"stages.0 (3 → 2 members)", "stages.1 (3 → 2 members)", "all others", "in all"}


def test_an_exported_program_has_no_blocks(tmp_path):
    program = torch_export.export_program(residual.sealed(tmp_path), tmp_path / "program")
    with pytest.raises(BuildError, match="exported program, which has no blocks"):
        BARE.apply(program, residual.fitted(residual.sealed(tmp_path / "b"), tmp_path))


def test_a_frozen_model_is_cut_without_healing(tmp_path):
    original = nets.sealed(nets.net(0, lambda: residual.Residual().requires_grad_(False)), tmp_path / "net")
    pruned = BARE.apply(original, residual.fitted(original, tmp_path))
    assert not any(parameter.requires_grad for parameter in form.restore(pruned).parameters())
    assert pruned.parameters < sum(parameter.numel() for parameter in residual.Residual().parameters())
