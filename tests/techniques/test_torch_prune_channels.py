"""Layers get narrower together, are restored in a fresh process, and what hangs together is never believed unproven."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import narrow_nets as nets
import narrow_recurrences as recurrences
import numpy as np
import pytest
import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_count
from paretune.techniques.torch_prune_channels import TorchPruneChannels
from paretune.techniques.torch_to_onnx import TorchToOnnx
from paretune.testing import TechniqueConformance

CUT = TorchPruneChannels(epochs=0, round_to=1, smallest=1, calibration=32, batch=32)
"""Without a training: what is tested is the cut."""


class TestTorchPruneChannels(TechniqueConformance):
    technique = TorchPruneChannels


def widths(module: nn.Module) -> dict[str, int]:
    found = {}
    for path, part in module.named_modules():
        for attribute in ("out_channels", "out_features", "embedding_dim", "hidden_size"):
            if isinstance(getattr(part, attribute, None), int):
                found[path] = getattr(part, attribute)
    return found


def pruned(live: nn.Module, root: Path, technique: TorchPruneChannels = CUT, items=None, **options) -> Artifact:
    artifact = nets.sealed(live, root / "net", None if items is None else items[0][0])
    return technique.apply(artifact, nets.fitted(artifact, root, items, **options))


@pytest.mark.parametrize(
    ("kind", "ratio", "narrow", "same"),
    [
        (nets.Plain, 0.5, {"conv1", "conv2", "fc1"}, {"fc2"}),
        (nets.Padded, 0.5, {"one.conv1", "two.conv1"}, {"stem", "one.conv2", "two.conv2", "head"}),
        (nets.Projected, 0.5, {"stem", "conv1", "conv2", "short"}, {"head"}),
        (nets.Grouped, 0.5, {"first", "groups", "depthwise", "up", "upgroups", "side"}, {"last"}),
        (nets.Rows, 0.5, {"layers.1", "layers.4"}, {"layers.6"}),
        (nets.Fixed, 0.5, {"inner"}, {"conv", "tail.head"}),
        (nets.Gated, 0.5, {"wide", "twice", "hidden"}, {"head", "extra"}),
        (nets.Vector, 0.95, {"conv"}, {"grow", "head"}),
    ],
)
def test_what_can_go_goes_and_the_rest_stays(tmp_path, kind, ratio, narrow, same):
    live = nets.seeded(kind)
    after = pruned(live, tmp_path, dataclasses.replace(CUT, macs_ratio=ratio))
    module = form.restore(after)
    before, now = widths(live), widths(module)
    assert {path for path in before if now[path] < before[path]} == narrow
    assert {path for path in before if now[path] == before[path]} == same
    assert after.macs <= ratio * torch_count.macs(live, None, (nets.images(1)[0][0][None],))
    assert after.parameters < sum(parameter.numel() for parameter in live.parameters())
    x = np.stack([image for image, _ in nets.images(4)])
    assert [answer.shape for answer in form.call(module, after, (x,))] == [
        answer.shape for answer in form.call(live, after, (x,))
    ]
    assert any(f"{after.macs:,} multiply-accumulates" in note for note in after.notes)


def test_dead_channels_go_first_and_what_is_left_is_as_it_was(tmp_path):
    live = nets.seeded(nets.Plain)
    with torch.no_grad():  # half of the channels do nothing
        live.conv1.weight[::2] = 0
        live.bn1.weight[::2] = 0
        live.bn1.bias[::2] = 0
        live.conv2.weight[:, ::2] = 0
    after = pruned(live, tmp_path, dataclasses.replace(CUT, widths=("conv1=4",)))
    module = form.restore(after)
    assert torch.equal(module.conv1.weight, live.conv1.weight[1::2])
    assert torch.equal(module.bn1.weight, live.bn1.weight[1::2])
    assert torch.equal(module.conv2.weight, live.conv2.weight[:, 1::2])
    assert "8 → 4 conv1" in " ".join(after.notes)


def test_tied_weights_stay_tied_and_tokens_go_in(tmp_path):
    live = nets.seeded(nets.Tied)
    after = pruned(live, tmp_path, dataclasses.replace(CUT, widths=("embed=6", "up=10")), nets.words())
    module = form.restore(after)
    assert module.head.weight is module.embed.weight
    assert (module.embed.embedding_dim, module.head.in_features, module.up.out_features) == (6, 6, 10)
    assert live.embed.weight.shape == (7, 12)


def test_frozen_layers_stay_frozen_and_can_go(tmp_path):
    live = nets.seeded(nets.Plain)
    live.conv1.requires_grad_(False)
    module = form.restore(pruned(live, tmp_path, dataclasses.replace(CUT, epochs=1)))
    assert not module.conv1.weight.requires_grad
    assert module.conv1.out_channels < 8
    assert module.fc1.weight.requires_grad


def test_patterns_of_keep_name_layers_and_their_parents(tmp_path):
    told: list[tuple[str, ...]] = []
    after = pruned(
        nets.seeded(nets.Padded), tmp_path, dataclasses.replace(CUT, macs_ratio=0.9), keep=("two", "nowhere.*"),
        unmatched=lambda patterns: told.append(tuple(patterns)),
    )  # fmt: skip
    now = widths(form.restore(after))
    assert now["two.conv1"] == 16
    assert now["one.conv1"] < 8
    assert told == [("nowhere.*",)]
    assert any("two.conv1 stay: they were asked to be kept" in note for note in after.notes)


def test_a_shortcut_that_pads_channels_is_found_out_and_told(tmp_path):
    after = pruned(nets.seeded(nets.Padded), tmp_path)
    assert any("stem stay: the dependency graph does not see rightly" in note for note in after.notes)


@pytest.mark.parametrize("importance", ["l1", "l2", "bn_scale", "taylor", "lamp", "geometric_median"])
@pytest.mark.parametrize("scope", ["per_layer", "global"])
def test_every_importance_and_scope_reaches_the_ratio(tmp_path, importance, scope):
    live = nets.seeded(nets.Padded)
    technique = dataclasses.replace(CUT, importance=importance, scope=scope, macs_ratio=0.6, round_to=2, smallest=2)
    after = pruned(live, tmp_path, technique)
    now = widths(form.restore(after))
    whole = torch_count.macs(live, None, (nets.images(1)[0][0][None],))
    assert 0.4 * whole < after.macs <= 0.6 * whole
    assert {now["one.conv1"] % 2, now["two.conv1"] % 2} == {0}


def test_cycles_reach_the_same_size_step_by_step_and_go_on_after_a_kill(tmp_path):
    live = nets.seeded(nets.Padded)
    artifact = nets.sealed(live, tmp_path / "net")
    technique = dataclasses.replace(
        CUT, epochs=2, iterations=3, schedule="cubic", macs_ratio=0.4, learning_rate=0.01
    )  # fmt: skip
    whole = technique.apply(artifact, nets.fitted(artifact, tmp_path / "a"))
    kept = tmp_path / "kept"

    class KilledError(Exception):
        pass

    def kill(share: float, text: str) -> None:
        if text.startswith("cycle 2 of 3: epoch 2"):
            raise KilledError

    with pytest.raises(KilledError):
        technique.apply(artifact, nets.fitted(artifact, tmp_path / "b", checkpoints=kept, progress=kill))
    assert sorted(path.name for path in kept.iterdir()) == ["cycle-1", "cycle-2"]
    again = technique.apply(artifact, nets.fitted(artifact, tmp_path / "c", checkpoints=kept))
    assert again.digest == whole.digest
    assert again.notes == whole.notes
    ratios = [float(note.split(", ")[1].partition("%")[0]) for note in whole.notes if "cycle " in note]
    assert len(ratios) == 3
    assert ratios[0] > ratios[1] >= ratios[2]
    assert ratios[2] <= 40
    assert ratios[0] < 60  # cubic: most goes in the first cycle


def test_after_the_cut_batch_normalisation_has_the_statistics_of_the_data(tmp_path):
    items = nets.images(32)
    module = form.restore(pruned(nets.seeded(nets.Plain), tmp_path, CUT, items))
    with torch.no_grad():
        seen = module.conv1(torch.from_numpy(np.stack([image for image, _ in items])))
    torch.testing.assert_close(module.bn1.running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.bn1.running_var, seen.var(dim=(0, 2, 3)), rtol=2e-2, atol=1e-4)


def test_healing_brings_back_what_the_cut_took(tmp_path):
    live = nets.seeded(nets.Plain)
    items = nets.images(300)
    artifact = nets.sealed(live, tmp_path / "net")
    data = nets.fitted(artifact, tmp_path / "a", items)
    x = np.stack([image for image, _ in nets.images(200, seed=5)])
    wanted = form.call(live, artifact, (x,))[0]

    def error(technique: TorchPruneChannels, name: str) -> float:
        after = technique.apply(artifact, dataclasses.replace(data, scratch=tmp_path / name))
        return float(np.mean((form.call(form.restore(after), after, (x,))[0] - wanted) ** 2))

    healing = dataclasses.replace(CUT, epochs=8, alpha=1.0, answers="values", learning_rate=0.01)
    assert error(healing, "healed") < 0.5 * error(CUT, "cut")


@pytest.mark.parametrize(
    ("kind", "knobs", "told"),
    [
        (nets.Padded, {"macs_ratio": 0.05}, "at the narrowest .* multiply-accumulates stay"),
        (
            nets.Plain,
            {"widths": ("nowhere=4",)},
            "'nowhere' names no layer that can be made narrower — there are conv1",
        ),
        (nets.Plain, {"widths": ("conv1",)}, "is not PATTERN=WIDTH"),
        (nets.Plain, {"widths": ("conv1=9",)}, "9 is no width for conv1 — give 1 to 8"),
        (nets.Grouped, {"widths": ("first=6",)}, "6 is no width for first — give 1 to 16, a multiple of 4"),
        (nets.Projected, {"widths": ("conv2=8", "short=4")}, "another width was given for a layer of the same group"),
        (nets.Rows, {"importance": "bn_scale"}, "nothing that importance=bn_scale could look at"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(tmp_path, kind, knobs, told):
    with pytest.raises(BuildError, match=told) as caught:
        pruned(nets.seeded(kind), tmp_path, dataclasses.replace(CUT, **knobs))
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_narrowed_names_the_module_that_fails(tmp_path):
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.tail = nets.FixedTail()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.tail(torch.relu(self.conv(image)))

    with pytest.raises(BuildError, match=r"no layer can be made narrower; of conv: tail\.head fails") as caught:
        pruned(nets.seeded(Only), tmp_path)
    assert "\n" not in str(caught.value)


def test_two_layers_of_one_weight_stay_and_the_reason_is_the_weight(tmp_path):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.two.weight = self.one.weight
            self.head = nn.Linear(12, nets.CLASSES)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(image))))))
            return self.head(torch.relu(self.mid(x)).mean((2, 3)))

    after = pruned(nets.seeded(Shared), tmp_path, dataclasses.replace(CUT, macs_ratio=0.97))
    assert any("one, two stay: one shares weights with two, " in note for note in after.notes), after.notes
    assert not any("written into its code" in note for note in after.notes)
    module = form.restore(after)
    assert module.one.weight is module.two.weight
    assert module.mid.out_channels < 12


def test_labels_of_one_class_are_told_before_anything_is_cut(tmp_path):
    items = [(image, np.int64(1)) for image, _ in nets.images(32)]
    said: list[str] = []
    with pytest.raises(BuildError, match="all of its 32 examples are of class 1"):
        pruned(
            nets.seeded(nets.Plain), tmp_path, dataclasses.replace(CUT, epochs=1), items,
            progress=lambda share, text: said.append(text),
        )  # fmt: skip
    assert not said


def test_without_training_data_or_with_all_frozen_it_says_so(tmp_path):
    artifact = nets.sealed(nets.seeded(nets.Plain), tmp_path / "net")
    fit = dataclasses.replace(nets.fitted(artifact, tmp_path), train=None)
    with pytest.raises(BuildError, match="needs training data"):
        CUT.apply(artifact, fit)
    frozen = nets.seeded(nets.Plain).requires_grad_(False)
    with pytest.raises(BuildError, match="parameters of the model are frozen"):
        pruned(frozen, tmp_path / "frozen", dataclasses.replace(CUT, epochs=1))
    # to cut them nothing is learnt
    assert pruned(frozen, tmp_path / "cut").parameters < sum(parameter.numel() for parameter in frozen.parameters())


def test_the_report_gets_a_table_of_widths(tmp_path):
    entries: list[dict] = []
    pruned(nets.seeded(nets.Padded), tmp_path, dataclasses.replace(CUT, widths=("*.conv1=4",)), record=entries.append)
    tables = [entry for entry in entries if entry["kind"] == "table"]
    assert tables[0]["rows"] == [["one.conv1", 8, 4], ["two.conv1", 16, 4]]
    assert tables[1]["title"] == "where parameters and multiply-accumulates went"
    rows = {row[0]: row[1:] for row in tables[1]["rows"]}
    assert rows["one.conv1"] == [8 * 8 * 9, 4 * 8 * 9, 64 * 8 * 8 * 9, 64 * 4 * 8 * 9]
    assert rows["two.conv2"] == [16 * 16 * 9, 16 * 4 * 9, 16 * 16 * 16 * 9, 16 * 16 * 4 * 9]
    assert "stem" not in rows
    live = nets.seeded(nets.Padded)
    assert rows["in all"][0] == torch_count.parameters(live)
    assert rows["in all"][2] == torch_count.macs(live, None, (nets.images(1)[0][0][None],))


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
def test_every_schedule_ends_at_the_asked_share_in_as_many_cycles(tmp_path, schedule):
    technique = dataclasses.replace(CUT, epochs=1, iterations=5, schedule=schedule, macs_ratio=0.4)
    after = pruned(nets.seeded(nets.Padded), tmp_path, technique)
    told = [note for note in after.notes if ": cycle " in note]
    ratios = [float(note.split(", ")[1].partition("%")[0]) for note in told]
    assert len(ratios) == 5
    assert ratios == sorted(ratios, reverse=True)
    assert 30 < ratios[-1] <= 40
    linear = [100 - 60 * cycle / 5 for cycle in range(1, 6)]
    if schedule == "linear":
        assert ratios[1] == pytest.approx(linear[1], abs=4)
    else:  # most goes in the first cycles
        assert ratios[1] < linear[1] - 4


def built(root: Path) -> tuple[str, list[float], list[int]]:
    """The artefact's digest, its answers and widths, as the process at hand restores it onto a model of its own."""
    artifact = dataclasses.replace(Artifact.open(root), origin=nets.seeded(nets.Grouped, seed=1))
    module = form.restore(artifact)
    x = np.stack([image for image, _ in nets.images(3, seed=8)])
    return artifact.digest, form.call(module, artifact, (x,))[0].ravel().tolist(), list(widths(module).values())


def test_it_opens_in_a_fresh_process_without_pickle_and_as_onnx(tmp_path):
    live = nets.seeded(nets.Grouped)
    before = nets.sealed(live, tmp_path / "net")
    after = CUT.apply(before, nets.fitted(before, tmp_path))
    assert {Path(name).suffix for name in after.files} == {".safetensors", ".json"}
    code = "import json, sys; from pathlib import Path; import test_torch_prune_channels as t; "
    code += "print(json.dumps(t.built(Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}; {code}", str(after.root)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found[0], found[2]) == (after.digest, list(widths(form.restore(after)).values()))
    np.testing.assert_allclose(found[1], built(after.root)[1], rtol=1e-5, atol=1e-6)

    from paretune.forms import onnx

    graphs = [
        TorchToOnnx().apply(artifact, nets.fitted(artifact, tmp_path / str(place)))
        for place, artifact in enumerate((before, after))
    ]
    x = np.stack([image for image, _ in nets.images(3, seed=8)])
    answers = onnx.session(graphs[1].path(".onnx"), 1).run(None, {graphs[1].inputs[0].name: x})[0]
    np.testing.assert_allclose(answers.ravel(), found[1], rtol=1e-3, atol=1e-4)
    assert graphs[1].size_bytes < graphs[0].size_bytes
    assert graphs[1].parameters < graphs[0].parameters
    assert graphs[1].macs < 0.6 * graphs[0].macs


def test_a_pruned_model_can_be_pruned_again(tmp_path):
    live = nets.seeded(nets.Padded)
    once = pruned(live, tmp_path / "once", dataclasses.replace(CUT, widths=("one.conv1=6",)))
    twice = dataclasses.replace(CUT, widths=("two.conv1=8",)).apply(once, nets.fitted(once, tmp_path / "twice"))
    now = widths(form.restore(twice))
    assert (now["one.conv1"], now["two.conv1"]) == (6, 8)
    assert len(twice.notes) == len(once.notes) + 3


@pytest.mark.parametrize(
    ("kind", "items", "asked", "wanted"),
    [
        (recurrences.LastStep, recurrences.series(), ("lstm=5",), {"lstm": 5, "head": 3}),
        (recurrences.BothWays, recurrences.series(), ("gru=3", "embed=6"), {"embed": 6, "gru": 3, "head": 3}),
        (
            recurrences.Attended, recurrences.tokens(), ("lstm=4", "embed=6", "second=3"),
            {"embed": 6, "lstm": 4, "score": 1, "second": 3, "head": 3},
        ),
    ],
)  # fmt: skip
def test_hidden_units_of_recurrent_layers_go_with_all_that_reads_them(tmp_path, kind, items, asked, wanted):
    live = nets.seeded(kind)
    after = pruned(live, tmp_path, dataclasses.replace(CUT, widths=asked, epochs=1), items)
    module = form.restore(after)
    assert widths(module) == wanted
    assert after.parameters < sum(parameter.numel() for parameter in live.parameters())
    assert all(weight.shape[1] == wanted[path] for path, weight in (  # the state is read within the layer, too
        (name.partition(".")[0], weight) for name, weight in module.named_parameters() if "weight_hh" in name
    ))  # fmt: skip


def test_a_ratio_is_reached_on_recurrent_layers_by_the_loss_too(tmp_path):
    technique = dataclasses.replace(CUT, importance="taylor", macs_ratio=0.5)
    after = pruned(nets.seeded(recurrences.LastStep), tmp_path, technique, recurrences.series())
    assert form.restore(after).lstm.hidden_size < 7


def test_a_hidden_state_that_the_model_answers_keeps_its_width(tmp_path):
    after = pruned(
        nets.seeded(recurrences.Stateful), tmp_path, dataclasses.replace(CUT, macs_ratio=0.97), recurrences.series()
    )
    module = form.restore(after)
    assert module.lstm.hidden_size == 8
    assert module.up.out_features < 12
