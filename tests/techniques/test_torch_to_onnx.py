"""Exported graphs answer as torch does, for every kind of input and output, or one line says why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as onnx_form
from paretune.forms import torch as form
from paretune.sources.torch_module import TorchModule
from paretune.sources.torch_program import TorchProgram
from paretune.techniques.torch_to_onnx import TorchToOnnx

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))
        return out


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, *, pixels: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor | None]:
        y = self.linear(pixels) * scale
        return {"logits": y, "cache": None, "norm": y.norm(dim=1)}


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, **given: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(given["pixels"]) * given["scale"]
        return out


class Several(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return a @ b.transpose(1, 2), [a.argmax(-1), b.sum(-1) > 0]


class Tokens(nn.Module):
    """A transformer with tied weights, on ids of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layer(self.embed(ids), src_key_padding_mask=mask == 0))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, (last, _) = self.rnn(x)
        return self.head(states[:, -1]), last


class Words(nn.Module):
    """A recurrent model of token ids: the length of a sentence is not fixed by its export."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(self.embed(ids))
        seen = mask[..., None].to(states.dtype)
        return self.head((states * seen).sum(1) / seen.sum(1).clamp(min=1))


class Overwriting(nn.Module):
    """It writes into what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 1.0
        out: torch.Tensor = self.linear(x)
        return out


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x)
        if out.sum() > 0:
            return out
        return -out


def pad(items: list[Any]) -> tuple[Any, Any]:
    longest = max(len(item[0]) for item, _ in items)
    arrays = [np.zeros((len(items), longest), np.int64) for _ in range(2)]
    for row, (item, _) in enumerate(items):
        for array, values in zip(arrays, item, strict=True):
            array[row, : len(values)] = values
    return tuple(arrays), np.zeros(len(items))


def sentences() -> list[Any]:
    return [(RNG.integers(0, 20, length), np.ones(length, np.int64)) for length in (5, 7, 6, 9, 5, 4)]


CASES: dict[str, tuple[type[nn.Module], list[Any], Any]] = {
    "image": (Image, [floats(3, 8, 8) for _ in range(6)], None),
    "dict": (Named, [{"scale": floats(3), "pixels": floats(4)} for _ in range(6)], None),
    "kwargs": (Loose, [{"scale": floats(3), "pixels": floats(4)} for _ in range(6)], None),
    "several": (Several, [(floats(3, 4), floats(2, 4)) for _ in range(6)], None),
    "tokens": (Tokens, sentences(), pad),
    "words": (Words, sentences(), pad),
    "recurrent": (Recurrent, [floats(7, 5) for _ in range(6)], None),
    "overwriting": (Overwriting, [floats(4) for _ in range(6)], None),
}


def artifact_of(model: object, items: list[Any], collate: Any, into: Path) -> tuple[Artifact, Split]:
    into.mkdir(parents=True)
    split = Split.whole([(item, 0) for item in items], collate, "train")
    artifact = TorchModule().read(model, split, into)
    assert artifact is not None
    return artifact, split


def fit(artifact: Artifact, train: Split | None, scratch: Path) -> Fit:
    return Fit(train=train, loss=None, teacher=artifact, seed=0, scratch=scratch)


def compare(artifact: Artifact, exported: Artifact, batch: int, length: int) -> None:
    inputs = form.sample_inputs(artifact.inputs, batch, length, seed=3)
    session = onnx_form.session(exported.path(".onnx"), threads=1)
    feed = {spec.name: array for spec, array in zip(artifact.inputs, inputs, strict=True)}
    got = session.run([spec.name for spec in exported.outputs], feed)
    with form.plain_attention():
        wanted = form.call(form.restore(artifact), artifact, inputs)
    for ours, theirs in zip(wanted, got, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model_answers_alike_at_any_batch_and_length(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind, items, collate = CASES[case]
    torch.manual_seed(0)
    live = kind()
    artifact, split = artifact_of(live, items, collate, tmp_path / "a")
    exported = TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))
    assert exported.form == "onnx"
    assert [(spec.name, spec.dtype, spec.shape) for spec in exported.inputs] == [
        (spec.name, spec.dtype, spec.shape) for spec in artifact.inputs
    ]
    assert exported.outputs == artifact.outputs
    assert (exported.keyword_inputs, exported.output_kind) == (artifact.keyword_inputs, artifact.output_kind)
    for batch, length in ((1, 4), (7, 12)):
        compare(artifact, exported, batch, length)
    assert live.training
    assert capfd.readouterr() == ("", "")


def test_the_same_module_gives_the_same_bytes_with_and_without_data(tmp_path: Path) -> None:
    artifact, split = artifact_of(Image(), CASES["image"][1], None, tmp_path / "a")
    trials = [split, split, None]
    made = [TorchToOnnx().apply(artifact, fit(artifact, train, tmp_path / str(i))) for i, train in enumerate(trials)]
    assert len({one.digest for one in made}) == 1


def test_weights_keep_the_names_of_the_users_parameters_and_no_path_is_left(tmp_path: Path) -> None:
    artifact, split = artifact_of(Recurrent(), CASES["recurrent"][1], None, tmp_path / "a")
    exported = TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))
    model = onnx_form.load(exported)
    assert {"head.weight", "head.bias"} <= {tensor.name for tensor in model.graph.initializer}
    assert str(Path(__file__).parent).encode() not in exported.path(".onnx").read_bytes()
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["out"]


def test_the_operator_set_is_a_knob(tmp_path: Path) -> None:
    artifact, split = artifact_of(Image(), CASES["image"][1], None, tmp_path / "a")
    for opset in (18, 23):
        exported = TorchToOnnx(opset=opset).apply(artifact, fit(artifact, split, tmp_path / str(opset)))
        found = onnx.load(exported.path(".onnx")).opset_import
        assert {entry.version for entry in found if entry.domain == ""} == {opset}


def test_an_exported_program_becomes_onnx_too(tmp_path: Path) -> None:
    program = torch.export.export(
        Image().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    root = tmp_path / "a"
    root.mkdir()
    artifact = TorchProgram().read(program, None, root)
    assert artifact is not None
    exported = TorchToOnnx().apply(artifact, fit(artifact, None, tmp_path / "fit"))
    compare(artifact, exported, 3, 8)


def test_control_flow_on_values_is_one_line_that_names_the_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact, split = artifact_of(nn.Sequential(Branching()), [floats(4) for _ in range(6)], None, tmp_path / "a")
    with pytest.raises(BuildError, match=r"cannot trace the model in 0 \(test_torch_to_onnx.py:\d+\)") as caught:
        TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))
    assert "\n" not in str(caught.value)
    assert str(Path(__file__).parent) not in str(caught.value)
    assert caught.value.do
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_onnx_is_named(tmp_path: Path) -> None:
    class Eigen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).abs()

    artifact, split = artifact_of(Eigen(), [floats(3, 3) for _ in range(6)], None, tmp_path / "a")
    with pytest.raises(BuildError, match=r"no ONNX for aten\.linalg_eig"):
        TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))


def test_a_graph_that_answers_otherwise_is_not_let_through(tmp_path: Path) -> None:
    class Counting(nn.Module):
        """Its answer depends on how often it was called, which a graph cannot know."""

        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            type(self).calls += 1
            return x * type(self).calls

    artifact, split = artifact_of(Counting(), [floats(4) for _ in range(6)], None, tmp_path / "a")
    with pytest.raises(BuildError, match="output output of the exported graph differs"):
        TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))


def test_a_batch_size_frozen_into_the_model_is_found(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(2, 1) if len(x) > 2 else x + 1

    artifact, split = artifact_of(Frozen(), [floats(4) for _ in range(6)], None, tmp_path / "a")
    with pytest.raises(BuildError):
        TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))


def test_names_used_twice_are_refused(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x + 1}

    artifact, split = artifact_of(Same(), [{"x": floats(4)} for _ in range(6)], None, tmp_path / "a")
    with pytest.raises(BuildError, match="both named 'x'"):
        TorchToOnnx().apply(artifact, fit(artifact, split, tmp_path / "fit"))


def test_a_model_in_bfloat16_is_told_what_to_do(tmp_path: Path) -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3).to(torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x.to(torch.bfloat16)).float().mean((2, 3))

    items = [(np.zeros((1, 8, 8), np.float32), 0)] * 6
    split = Split.whole(items, None, "train")
    (tmp_path / "model").mkdir()
    artifact = TorchModule().read(Short().eval(), split, tmp_path / "model")
    assert artifact is not None
    with pytest.raises(BuildError, match=r"onnxruntime does not open the exported graph: .* give the model in float32"):
        TorchToOnnx().apply(artifact, Fit(split, None, artifact, 0, tmp_path / "scratch"))
