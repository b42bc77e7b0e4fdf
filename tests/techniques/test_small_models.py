"""An LSTM, an MLP and a regression: every technique that applies keeps what they know, and gives what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import narrow_recurrences as recurrences
import numpy as np
import onnxruntime
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.knob import make
from paretune.ask.plugin import load
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_fake_quant import quantisers


class Mlp(nn.Module):
    def __init__(self, answers: int = nets.CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(nets.FEATURES, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, answers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def rows(count: int, seed: int) -> list[tuple[np.ndarray, Any]]:
    return nets.rows(count, seed)


def curve(count: int, seed: int) -> list[tuple[np.ndarray, Any]]:
    return [(x, np.sin(x[:1]) + x[1:2]) for x, _ in nets.rows(count, seed)]


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], list[tuple[np.ndarray, Any]]]]] = {
    "LSTM": (recurrences.LastStep, recurrences.series),
    "MLP": (Mlp, rows),
    "regression": (lambda: Mlp(1), curve),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Each kind, trained."""
    torch.set_num_threads(1)
    return {kind: sealed(kind, trained(kind), tmp_path_factory.mktemp(kind)) for kind in KINDS}


def tensors(items: list[tuple[np.ndarray, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.stack([x for x, _ in items])), torch.from_numpy(np.stack([y for _, y in items]))


def trained(kind: str) -> nn.Module:
    make_net, items = KINDS[kind]
    x, y = tensors(items(400, 0))
    loss = nn.functional.mse_loss if kind == "regression" else nn.functional.cross_entropy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make_net()
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    return net.eval()


def sealed(kind: str, live: nn.Module, root: Path) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    form.save(live, root)
    (x, _), *_ = KINDS[kind][1](1, 0)
    answers = 1 if kind == "regression" else nets.CLASSES
    inputs = (TensorSpec("x", "float32", ("batch", *x.shape)),)
    return Artifact.seal(
        "torch", root, inputs, (TensorSpec("output", "float32", ("batch", answers)),), origin=live,
        parameters=sum(parameter.numel() for parameter in live.parameters()),
    )  # fmt: skip


def fitted(kind: str, artifact: Artifact, scratch: Path, teacher: Artifact | None = None) -> Fit:
    scratch.mkdir(exist_ok=True)
    return Fit(Split.whole(KINDS[kind][1](400, 0), None, "train"), None, teacher or artifact, 0, scratch)


def wrong(kind: str, artifact: Artifact) -> float:
    """Of unseen examples: the share of wrong classes, or of the variance that is not explained."""
    x, y = tensors(KINDS[kind][1](400, 9))
    (found,) = form.call(form.restore(artifact), artifact, (x.numpy(),))
    if kind == "regression":
        return float(np.mean((found - y.numpy()) ** 2) / y.numpy().var())
    return float(np.mean(found.argmax(1) != y.numpy()))


def zeros(artifact: Artifact) -> float:
    weights = [one for name, one in form.restore(artifact).named_parameters() if one.ndim > 1]
    return sum(int((one == 0).sum()) for one in weights) / sum(one.numel() for one in weights)


def is_smaller(before: Artifact, after: Artifact) -> bool:
    assert before.parameters is not None
    assert after.parameters is not None
    return after.parameters < 0.9 * before.parameters


TEACH = {"epochs": 8, "batch": 32, "learning_rate": 0.01}
TECHNIQUES: dict[str, tuple[dict[str, Any], Callable[[Artifact, Artifact], bool]]] = {
    "torch_finetune": ({}, lambda before, after: before.digest != after.digest),
    "torch_distill": ({"student": "made", "width": 0.6}, is_smaller),
    "torch_distill_progressive": ({"student": "made", "width": 0.4, "assistants": ["0.7x1"]}, is_smaller),
    "torch_prune_channels": ({"macs_ratio": 0.6, "round_to": 1, "smallest": 2}, is_smaller),
    "torch_sparsify_magnitude": ({"sparsity": 0.5}, lambda before, after: 0.49 < zeros(after) < 0.51),
    "torch_sparsify_n_m": ({"n": 1, "m": 2}, lambda before, after: 0.2 < zeros(after) <= 0.5),
    "torch_lottery_ticket": ({"rounds": 2, "rate": 0.3}, lambda before, after: 0.5 < zeros(after) < 0.52),
    "torch_qat": (
        {"learning_rate": 0.005}, lambda before, after: next(quantisers(form.restore(after)), None) is not None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_what_is_known_stays_known_and_the_graph_answers_alike(originals, tmp_path, kind, name):
    knobs, holds = TECHNIQUES[name]
    original = originals[kind]
    technique = make(load("techniques", name), {**TEACH, **knobs}, name)
    made = technique.apply(original, fitted(kind, original, tmp_path / "made"))
    assert holds(original, made)
    assert wrong(kind, original) < 0.15
    assert wrong(kind, made) < wrong(kind, original) + 0.1
    graph = load("techniques", "torch_to_onnx")().apply(made, fitted(kind, made, tmp_path / "graph"))
    x, _ = tensors(KINDS[kind][1](50, 9))
    (found,) = onnxruntime.InferenceSession(graph.path(".onnx")).run(None, {"x": x.numpy()})
    (wanted,) = form.call(form.restore(made), made, (x.numpy(),))
    spread = float(wanted.std())
    assert np.abs(found - wanted).max() < (0.05 if name == "torch_qat" else 1e-4) * spread


def test_the_hidden_units_of_an_mlp_can_go_by_the_pruning_of_heads(originals, tmp_path):
    step = make(load("techniques", "torch_prune_heads"), {**TEACH, "round_to": 1}, "torch_prune_heads")
    made = step.apply(originals["MLP"], fitted("MLP", originals["MLP"], tmp_path))
    assert is_smaller(originals["MLP"], made)
    assert wrong("MLP", made) < 0.15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["torch_qat", "onnx_int8_dynamic", "onnx_int8_static"])
def test_what_was_distilled_is_quantised(originals, tmp_path, kind, how):
    original = originals[kind]
    step = make(load("techniques", "torch_distill"), {**TEACH, "student": "made", "width": 0.75}, "torch_distill")
    taught = step.apply(original, fitted(kind, original, tmp_path / "taught"))
    carry = load("techniques", "torch_to_onnx")()
    if how == "torch_qat":
        last = make(load("techniques", how), {"epochs": 2, "batch": 32}, how)
        made = last.apply(taught, fitted(kind, taught, tmp_path / "made", original))
        graph = carry.apply(made, fitted(kind, made, tmp_path / "graph"))
    else:
        floats = carry.apply(taught, fitted(kind, taught, tmp_path / "floats"))
        graph = load("techniques", how)().apply(floats, fitted(kind, floats, tmp_path / "graph"))
    assert graph.precision == "int8"
    x, y = tensors(KINDS[kind][1](400, 9))
    (found,) = onnxruntime.InferenceSession(graph.path(".onnx")).run(None, {"x": x.numpy()})
    if kind == "regression":
        assert np.mean((found - y.numpy()) ** 2) / y.numpy().var() < 0.15
    else:
        assert np.mean(found.argmax(1) != y.numpy()) < 0.2


def test_blocks_stay_where_there_is_none(originals, tmp_path):
    technique = load("techniques", "torch_prune_blocks")(epochs=0)
    with pytest.raises(BuildError, match="name modules by remove, or prune channels"):
        technique.apply(originals["LSTM"], fitted("LSTM", originals["LSTM"], tmp_path))
