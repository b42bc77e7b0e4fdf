"""Live modules become artefacts: names, free axes, counts and clear refusals."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.errors import DataError, WorkloadError
from paretune.sources.torch_module import TorchModule

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def read(model: object, items: list[Any], into: Path, collate: Any = None) -> Artifact:
    artifact = TorchModule().read(model, Split.whole([(item, 0) for item in items], collate, "train"), into)
    assert artifact is not None
    return artifact


def shapes(specs: Any) -> dict[str, tuple[Any, ...]]:
    return {spec.name: spec.shape for spec in specs}


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.drop(self.norm(self.conv(x))).mean((2, 3)))
        return out


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, (last, _) = self.rnn(self.embed(ids) * mask.unsqueeze(-1))
        return states, last


def pad(items: list[Any]) -> tuple[Any, Any]:
    longest = max(len(item[0]) for item, _ in items)
    arrays = [np.zeros((len(items), longest), np.int64) for _ in range(2)]
    for row, (item, _) in enumerate(items):
        for array, values in zip(arrays, item, strict=True):
            array[row, : len(values)] = values
    return tuple(arrays), np.zeros(len(items))


def sentence(length: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return RNG.integers(0, 20, length), np.ones(length, np.int64)


def test_an_image_model_in_training_mode_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    live = Image()
    before = {name: value.clone() for name, value in live.state_dict().items()}
    artifact = read(live, [floats(3, 8, 8) for _ in range(4)], tmp_path)
    assert shapes(artifact.inputs) == {"x": ("batch", 3, 8, 8)}
    assert shapes(artifact.outputs) == {"output": ("batch", 4)}
    assert artifact.output_kind == "single"
    assert not artifact.keyword_inputs
    assert artifact.parameters == 3 * 8 * 9 + 8 + 16 + 8 * 4 + 4
    assert artifact.macs == 6 * 6 * 8 * 27 + 32
    assert artifact.origin is live
    assert live.training
    assert all(torch.equal(value, before[name]) for name, value in live.state_dict().items())


def test_token_ids_of_varying_length_have_free_axes(tmp_path: Path) -> None:
    artifact = read(Tokens(), [sentence(n) for n in (5, 7, 5, 3)], tmp_path, pad)
    assert shapes(artifact.inputs) == {"ids": ("batch", "length_1"), "mask": ("batch", "length_1")}
    assert shapes(artifact.outputs) == {"output_0": ("batch", "length_1", 6), "output_1": (1, "batch", 6)}
    assert artifact.output_kind == "tuple"
    assert [spec.dtype for spec in artifact.inputs] == ["int64", "int64"]


def test_data_given_as_a_dict_goes_in_by_keyword(tmp_path: Path) -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.linear(given["x"]) + given["y"], "x2": given["x"] * 2}

    artifact = read(Loose(), [{"y": floats(3), "x": floats(4)} for _ in range(3)], tmp_path)
    assert artifact.keyword_inputs
    assert shapes(artifact.inputs) == {"y": ("batch", 3), "x": ("batch", 4)}
    assert shapes(artifact.outputs) == {"logits": ("batch", 3), "x2": ("batch", 4)}
    assert artifact.output_kind == "dict"


def test_an_input_named_like_an_output_is_renamed(tmp_path: Path) -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x + 1}

    artifact = read(Same(), [floats(2)] * 2, tmp_path)
    assert [spec.name for spec in (*artifact.inputs, *artifact.outputs)] == ["x_in", "x"]


def test_one_example_is_enough(tmp_path: Path) -> None:
    assert shapes(read(Image(), [floats(3, 8, 8)], tmp_path).outputs) == {"output": ("batch", 4)}


def test_lazy_layers_are_refused_until_they_were_run(tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(WorkloadError, match=r"0\.weight has no shape yet — run the model once on an example"):
        read(lazy, [floats(6)], tmp_path / "lazy")
    lazy(torch.zeros(1, 6))
    (tmp_path / "made").mkdir()
    assert shapes(read(lazy, [floats(6)], tmp_path / "made").outputs) == {"output": ("batch", 2)}


def test_functions_classes_and_wrappers_give_their_module(tmp_path: Path) -> None:
    live = Image()
    offers = [lambda: live, functools.partial(lambda model: model, live), Image, nn.DataParallel(live)]
    for place, offer in enumerate(offers):
        into = tmp_path / str(place)
        into.mkdir()
        artifact = read(offer, [floats(3, 8, 8)] * 2, into)
        assert isinstance(artifact.origin, Image)


def test_a_module_with_hooks_keeps_them(tmp_path: Path) -> None:
    live = nn.Sequential(nn.Linear(4, 3))
    live[0].register_forward_hook(lambda module, args, out: torch.cat([out, out], 1))
    assert shapes(read(live, [floats(4)] * 2, tmp_path).outputs) == {"output": ("batch", 6)}


def test_what_is_not_a_module_is_left_to_others(tmp_path: Path) -> None:
    for other in (object(), Path("model.onnx"), "model.pt2", 3):
        assert TorchModule().read(other, None, tmp_path) is None


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.bin", "model.ckpt", "model"])
def test_pickled_files_are_refused_unopened(name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "marker",)

    path = tmp_path / name
    if name == "model.pt":
        torch.save(Bomb(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WorkloadError, match=r"is a pickle.*pass the nn.Module"):
        TorchModule().read(str(path), None, tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_zip_of_torch_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(WorkloadError, match="is a pickle"):
        TorchModule().read(path, None, tmp_path)


def test_without_examples_it_says_that_data_is_needed(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="give data"):
        TorchModule().read(Image(), None, tmp_path)


def test_a_function_that_fails_or_returns_something_else(tmp_path: Path) -> None:
    def failing() -> nn.Module:
        raise ValueError("no weights")

    for model, words in ((failing, "no weights"), (lambda: 3, "returned a int")):
        with pytest.raises(WorkloadError, match=words):
            read(model, [floats(3, 8, 8)], tmp_path)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(left) * right
        return out


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([(floats(4).astype(np.float64), floats(3))] * 2, "input left is float64"),
        ([(floats(5), floats(3))] * 2, r"left float32\[1, 5\]"),
        ([floats(4)] * 2, "lacks the input right"),
        ([{"left": floats(4)}] * 2, "lacks the input right"),
        ([(floats(4), floats(3), floats(1))] * 2, "gives 3 inputs .* takes 2: left, right"),
        ([(RNG.integers(0, 255, 4).astype(np.uint8), floats(3))] * 2, "input left is uint8"),
    ],
)
def test_data_that_does_not_fit_names_the_input(items: list[Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(Pair(), items, tmp_path)
    assert "\n" not in str(caught.value)
    assert "train" in caught.value.where


def test_a_model_that_takes_one_example_at_a_time_is_refused(tmp_path: Path) -> None:
    class Single(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 4)

    with pytest.raises(WorkloadError, match="one example and fails on two"):
        read(Single(), [floats(4)] * 2, tmp_path)


def test_native_arrays_are_tensors() -> None:
    tensor = TorchModule().native(np.arange(3, dtype=np.float32))
    assert torch.equal(tensor, torch.tensor([0.0, 1.0, 2.0]))


def test_a_function_makes_the_same_module_every_time_and_leaves_the_generators(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        return nn.Linear(3, 2)

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    torch.manual_seed(5)
    one = read(fresh, [floats(3)] * 4, tmp_path / "one")
    drawn = torch.rand(())
    two = read(fresh, [floats(3)] * 4, tmp_path / "two")
    assert one.digest == two.digest
    torch.manual_seed(5)
    assert torch.equal(torch.rand(()), drawn)
    seeded = [torch.manual_seed(7), nn.Linear(3, 2)][1]
    (tmp_path / "own").mkdir()
    own = read(lambda: [torch.manual_seed(7), nn.Linear(3, 2)][1], [floats(3)] * 4, tmp_path / "own")
    assert isinstance(own.origin, nn.Linear)
    assert torch.equal(own.origin.weight, seeded.weight)
