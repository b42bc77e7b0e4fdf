"""A third of the heads and two fifths of the feed-forward units go, whatever the transformer is called."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import attention_nets as attention
import numpy as np
import onnx
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, feeds
from paretune.ask.own_step import OwnStep
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_hidden import Hidden
from paretune.techniques.torch_prune_heads import TorchPruneHeads
from paretune.techniques.torch_to_onnx import TorchToOnnx
from paretune.testing import TechniqueConformance

CUT = TorchPruneHeads(epochs=0, sample=64)
QUICK = dataclasses.replace(CUT, epochs=8, batch=32, learning_rate=5e-3)
KINDS = {"named": attention.Named, "projected": attention.Projected, "torch": None}


class TestConformance(TechniqueConformance):
    technique = TorchPruneHeads

    def artifact(self) -> Artifact:
        return attention.pictures()


def answers(artifact: Artifact, seed: int = 9) -> np.ndarray:
    module, data = form.restore(artifact), attention.split(200, seed)
    return np.concatenate([form.call(module, artifact, arrays)[0] for arrays in feeds(data, artifact, 50)])


def test_a_layer_that_shall_lose_nothing_loses_nothing_by_rounding():
    wide = [Hidden(path, (), 1, 20) for path in ("first", "second")]
    scores = {wide[0]: [10.0] * 20, wide[1]: [1.0] * 4 + [100.0] * 16}
    kept = dataclasses.replace(CUT, scope="global")._kept(wide, scores, 0.1, 8)
    assert [len(kept[one]) for one in wide] == [20, 16]


def test_after_the_cut_batch_normalisation_is_measured_anew_if_it_shall(tmp_path):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(nets.FEATURES, 32), nn.Linear(32, 8)
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.norm(self.down(torch.relu(self.up(x))))))

    original = nets.sealed(nets.net(0, Normed), tmp_path / "model")
    fit = Fit(nets.split(nets.rows(64)), None, original, 0, tmp_path / "scratch")
    cut = dataclasses.replace(CUT, round_to=1)
    module = form.restore(cut.apply(original, fit))
    with torch.no_grad():
        seen = module.down(torch.relu(module.up(torch.from_numpy(np.stack([x for x, _ in nets.rows(64)])))))
    torch.testing.assert_close(module.norm.running_mean, seen.mean(0), rtol=1e-3, atol=1e-4)
    stale = dataclasses.replace(fit, scratch=tmp_path / "stale")
    as_it_was = form.restore(dataclasses.replace(cut, recalibration=0).apply(original, stale))
    assert not as_it_was.norm.running_mean.any()


def test_heads_are_ranked_by_the_users_own_step(tmp_path):
    def step(model, inputs, labels):
        return nn.functional.cross_entropy(model(**inputs), labels)

    original = attention.sealed(attention.encoder(None), tmp_path / "model")
    fit = attention.fitted(original, tmp_path)
    own, usual = (CUT.apply(original, dataclasses.replace(fit, loss=loss)) for loss in (OwnStep(step), None))
    assert own.digest == usual.digest


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_units_go_restore_and_export(tmp_path, kind):
    original = attention.sealed(attention.encoder(KINDS[kind]), tmp_path / "model")
    entries: list[dict] = []
    fit = dataclasses.replace(attention.fitted(original, tmp_path / "a"), record=entries.append)
    pruned = CUT.apply(original, fit)
    (rows,) = [entry["rows"] for entry in entries if entry["title"] == "widths"]
    assert sorted(row[1:] for row in rows) == [[3, 2, "heads"]] * 2 + [[48, 32, "units"]] * 2
    first, inner = attention.WIDTH - attention.WIDTH // attention.HEADS, 32
    shapes = {tuple(part.weight.shape) for part in form.restore(pruned).modules() if type(part) is nn.Linear}
    assert {(first, attention.WIDTH), (attention.WIDTH, first), (inner, attention.WIDTH)} <= shapes
    assert not {(attention.WIDTH, attention.WIDTH), (attention.INNER, attention.WIDTH)} & shapes
    assert pruned.notes[0].startswith("torch_prune_heads: heads 6 → 4 (")
    assert "feed-forward units 96 → 64 (" in pruned.notes[0]
    exported = TorchToOnnx().apply(pruned, dataclasses.replace(fit, scratch=tmp_path / "b"))  # compares the answers
    weights = onnx.load(exported.path(".onnx")).graph.initializer
    held = sum(int(np.prod(one.dims)) for one in weights if one.data_type == onnx.TensorProto.FLOAT)
    assert held <= pruned.parameters + 20


@cache
def trained() -> nn.Module:
    """An encoder that knows its classes mostly."""
    module = attention.encoder(attention.Projected).train()
    optimizer = torch.optim.AdamW(module.parameters(), 5e-3)
    for step in range(150):
        inputs, labels = attention.collate(attention.sentences(64, seed=step % 10))
        logits = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.eval()


def away(found: np.ndarray, wanted: np.ndarray) -> float:
    """How far the first answers' probabilities are from the others', in nats."""
    ours, theirs = (nn.functional.log_softmax(torch.from_numpy(one), 1) for one in (found, wanted))
    return float(nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True))


def test_the_important_units_stay_and_the_rest_is_healed(tmp_path):
    module = trained()
    with torch.no_grad():
        spare = list(range(0, attention.INNER, 2))  # these do nothing
        for layer in module.layers:
            layer.down.weight[:, spare] = 0
            layer.o_proj.weight[:, 8:16] = 0
    original = attention.sealed(module, tmp_path / "model")
    wanted = answers(original)
    for number, options in enumerate([{}, {"scope": "global"}]):
        plan = dataclasses.replace(CUT, feedforward_ratio=0.5, round_to=1, **options)
        pruned = plan.apply(original, attention.fitted(original, tmp_path / f"spare-{number}"))
        np.testing.assert_allclose(answers(pruned), wanted, rtol=1e-3, atol=1e-4)
    plan = dataclasses.replace(QUICK, heads_ratio=0.6, feedforward_ratio=0.9, importance="weight")
    cut = dataclasses.replace(plan, epochs=0).apply(original, attention.fitted(original, tmp_path / "cut"))
    healed = plan.apply(original, attention.fitted(original, tmp_path / "healed"))
    assert healed.parameters == cut.parameters < sum(parameter.numel() for parameter in module.parameters())
    assert away(answers(healed), wanted) < 0.6 * away(answers(cut), wanted)
    assert "after the cut" in healed.notes[-1]
    assert "after healing (8 epochs: loss" in healed.notes[-1]


def test_the_hidden_units_of_an_mlp_go_too(tmp_path):
    class Mlp(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(nets.FEATURES, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3))

    original = nets.sealed(nets.net(0, Mlp), tmp_path / "mlp")
    fit = Fit(nets.split(nets.rows(80)), None, original, 0, tmp_path / "scratch")
    pruned = dataclasses.replace(CUT, feedforward_ratio=0.5).apply(original, fit)
    assert [part.out_features for part in form.restore(pruned) if isinstance(part, nn.Linear)] == [16, 8, 3]


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (lambda: attention.encoder(attention.Fixed), "layers.0.o_proj counts on the number of its heads"),
        (lambda: nets.net(0, lambda: attention.Encoder(attention.Named, layers=0)), "found no heads"),
    ],
)
def test_what_cannot_be_narrowed_is_told_in_a_line(tmp_path, module, told):
    original = attention.sealed(module(), tmp_path / "model")
    with pytest.raises(BuildError, match=told) as caught:
        CUT.apply(original, attention.fitted(original, tmp_path))
    assert "\n" not in str(caught.value)


def test_taylor_needs_labels_and_weights_do_not(tmp_path):
    original = attention.sealed(attention.encoder(attention.Named), tmp_path / "model")
    items = [(inputs, None) for inputs, _ in attention.sentences(30)]

    def unlabelled(batch: list) -> tuple:
        return attention.collate([(inputs, 0) for inputs, _ in batch])[0], None

    fit = Fit(Split.whole(items, unlabelled, "train"), None, original, 0, tmp_path)
    plan = dataclasses.replace(CUT, alpha=1.0, answers="classes")
    with pytest.raises(BuildError, match="importance=taylor needs them"):
        plan.apply(original, fit)
    pruned = dataclasses.replace(plan, importance="weight").apply(original, fit)
    assert "heads 6 → 4" in pruned.notes[0]


def test_without_a_share_of_heads_torchs_own_attention_stays(tmp_path: Path):
    original = attention.sealed(attention.encoder(None), tmp_path / "model")
    pruned = dataclasses.replace(CUT, heads_ratio=0.0).apply(original, attention.fitted(original, tmp_path))
    module = form.restore(pruned)
    assert type(module.layers.layers[0].self_attn) is nn.MultiheadAttention
    assert module.layers.layers[0].linear1.out_features == 32
