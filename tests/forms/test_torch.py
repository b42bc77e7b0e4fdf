"""Modules are saved and restored without a pickle, and the live one is never changed."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.errors import ArtifactError, WorkloadError
from paretune.forms import torch as form
from paretune.forms import torch_export


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.embed(ids).mean(1)))
        return out


def sealed(module: torch.nn.Module, root: Path, **facts: Any) -> Artifact:
    root.mkdir()
    form.save(module, root)
    inputs = (TensorSpec("ids", "int64", ("batch", 6)),)
    return Artifact.seal("torch", root, inputs, (TensorSpec("output", "float32", ("batch", 10)),), **facts)


def test_restoring_keeps_ties_and_leaves_the_live_module_alone(tmp_path: Path) -> None:
    live = Tied()
    artifact = sealed(live, tmp_path / "a", origin=live)
    before = live.embed.weight.detach().clone()
    with torch.no_grad():
        live.embed.weight.add_(1)
    restored = form.restore(artifact)
    assert isinstance(restored, Tied)
    assert restored.head.weight is restored.embed.weight
    assert torch.equal(restored.embed.weight, before), "the saved parameters count, not what became of the module"
    assert live.training
    assert not restored.training
    assert torch.equal(live.embed.weight, before + 1)


def test_shared_memory_is_stored_once(tmp_path: Path) -> None:
    artifact = sealed(Tied(), tmp_path / "a")
    described = json.loads((artifact.root / "module.json").read_text())
    assert described["shared"] == {"head.weight": "embed.weight"}
    assert (artifact.root / "model.safetensors").stat().st_size < 2 * 10 * 4 * 4 + 1000


def test_the_same_module_gives_the_same_digest_and_any_change_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    live = Tied()
    first, second = sealed(live, tmp_path / "a"), sealed(live.eval(), tmp_path / "b")
    assert first.digest == second.digest
    live.scale = 3.0
    third = sealed(live, tmp_path / "c")
    live.forward = lambda ids: -Tied.forward(live, ids)  # type: ignore[method-assign]
    fourth = sealed(live, tmp_path / "d")
    assert len({artifact.digest for artifact in (second, third, fourth)}) == 3


def test_a_changed_function_that_forward_uses_changes_the_digest(tmp_path: Path) -> None:
    def made(body: str) -> torch.nn.Module:
        space: dict[str, Any] = {"torch": torch, "__name__": "mine"}
        code = (
            f"def act(x):\n    return {body}\nclass M(torch.nn.Module):\n    def forward(self, ids): return act(ids)\n"
        )
        exec(code, space)
        module: torch.nn.Module = space["M"]()
        return module

    digests = [sealed(made(body), tmp_path / str(i)).digest for i, body in enumerate(["x + 1", "x + 2", "x + 1"])]
    assert digests[0] == digests[2] != digests[1]


class Holding(torch.nn.Module):
    """Does what it was given: a function, or an attribute that is no parameter and no buffer."""

    def __init__(self, function: Any = None, **held: Any) -> None:
        super().__init__()
        self.function = function
        vars(self).update(held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) if self.function else x


@dataclasses.dataclass
class Config:
    scale: float


def made_by(number: float) -> type[torch.nn.Module]:
    class Made(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * number

    return Made


def hooked(module: torch.nn.Module, number: float) -> torch.nn.Module:
    module.register_forward_hook(lambda part, given, answer: answer * number)
    return module


def frozen(module: torch.nn.Module, still: bool) -> torch.nn.Module:
    return module.requires_grad_(not still)


def test_a_method_in_an_attribute_does_not_carry_the_mode_with_it() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = self.doubled

        def doubled(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    assert form.fingerprint(Own().train()) == form.fingerprint(Own().eval())


def _scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@pytest.mark.parametrize("made", [
    lambda number: Holding(lambda x: x * number),
    lambda number: Holding(lambda x, by=number: x * by),
    lambda number: Holding(functools.partial(_scaled, by=number)),
    lambda number: Holding(scale=torch.full((2,), number)),
    lambda number: Holding(scale=np.full(2, number)),
    lambda number: Holding(scales={"first": number}),
    lambda number: Holding(_scale=number),
    lambda number: Holding(scales={number, 7}),
    lambda number: Holding(config=types.SimpleNamespace(scale=number, rest=[1, 2])),
    lambda number: Holding(config=Config(number)),
    lambda number: Holding(torch.relu if number > 1 else torch.tanh),
    lambda number: made_by(number)(),
    lambda number: hooked(Holding(), number),
    lambda number: frozen(torch.nn.Linear(2, 2), number > 1),
], ids=[
    "closure", "default", "partial", "tensor", "array", "dict", "private", "set", "namespace", "dataclass", "builtin",
    "closure of a method", "hook", "frozen",
])  # fmt: skip
def test_what_a_module_holds_beside_its_parameters_counts(made: Any) -> None:
    one, other = form.fingerprint(made(1.0)), form.fingerprint(made(5.0))
    assert one != other
    assert one == form.fingerprint(made(1.0))


def test_a_table_of_its_file_that_a_method_uses_counts() -> None:
    def made(scale: float) -> torch.nn.Module:
        space: dict[str, Any] = {"torch": torch, "__name__": "mine", "SCALES": torch.tensor([scale])}
        exec("class M(torch.nn.Module):\n    def forward(self, x): return x * SCALES", space)
        net: torch.nn.Module = space["M"]()
        return net

    assert form.fingerprint(made(1.0)) == form.fingerprint(made(1.0)) != form.fingerprint(made(2.0))


def test_what_a_class_inherits_is_part_of_what_it_is() -> None:
    def made(body: str) -> torch.nn.Module:
        space: dict[str, Any] = {"torch": torch, "__name__": "users"}
        lines = ["class Base(torch.nn.Module):", "    def forward(self, x):", f"        return {body}"]
        exec("\n".join([*lines, "class Net(Base):", "    pass"]), space)
        net: torch.nn.Module = space["Net"]()
        return net

    one, other = form.fingerprint(made("x + 1")), form.fingerprint(made("x * 2"))
    assert set(one["classes"]) == {"users.Base", "users.Net"} == set(other["classes"])
    assert one["classes"]["users.Base"] != other["classes"]["users.Base"]
    assert one == form.fingerprint(made("x + 1"))


def test_a_base_class_of_the_same_short_name_is_part_of_it_too() -> None:
    def made(body: str) -> torch.nn.Module:
        old: dict[str, Any] = {"torch": torch, "__name__": "v1.users"}
        exec(f"class Net(torch.nn.Module):\n    def forward(self, x):\n        return {body}", old)
        new: dict[str, Any] = {"Base": old["Net"], "__name__": "v2.users"}
        exec("class Net(Base):\n    def other(self):\n        return 3", new)
        net: torch.nn.Module = new["Net"]()
        return net

    one, other = form.fingerprint(made("x + 1")), form.fingerprint(made("x * 2"))
    assert set(one["classes"]) == {"users.Net"}
    assert one["classes"] != other["classes"]
    assert one == form.fingerprint(made("x + 1"))


def test_which_of_two_classes_of_one_name_stands_where_is_part_of_it() -> None:
    kinds = []
    for place, body in (("v1", "x + 1"), ("v2", "x * 2")):
        space: dict[str, Any] = {"torch": torch, "__name__": f"{place}.users"}
        exec(f"class Block(torch.nn.Module):\n    def forward(self, x):\n        return {body}", space)
        kinds.append(space["Block"])
    nets = [torch.nn.Sequential(*(kinds[place]() for place in order)) for order in ((0, 1, 0), (0, 1, 1), (0, 1, 0))]
    one, other, again = map(form.fingerprint, nets)
    assert one["classes"] == other["classes"]
    assert again == one != other


def test_what_a_model_is_called_with_stays_as_it_was() -> None:
    class Overwriting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 1.0
            return x

    x = torch.ones(2)
    assert form.call_flat(Overwriting(), None, (x,))[1][0].tolist() == [0.0, 0.0]
    assert form.call_flat(Overwriting(), ("x",), (x,))[1][0].tolist() == [0.0, 0.0]
    assert x.tolist() == [1.0, 1.0]


def test_no_path_stands_in_the_files(tmp_path: Path) -> None:
    live = Tied()
    live.place = str(tmp_path)
    artifact = sealed(live, tmp_path / "a")
    for name in artifact.files:
        assert str(tmp_path).encode() not in (artifact.root / name).read_bytes()
        assert str(Path(__file__).parent).encode() not in (artifact.root / name).read_bytes()


def test_what_cannot_be_restored_says_why(tmp_path: Path) -> None:
    live = Tied()
    with pytest.raises(ArtifactError, match="without its code"):
        form.restore(sealed(live, tmp_path / "a"))
    with pytest.raises(ArtifactError, match="do not fit"):
        form.restore(sealed(live, tmp_path / "b", origin=torch.nn.Linear(2, 2)))
    wider = Tied()
    wider.norm = torch.nn.BatchNorm1d(5)
    with pytest.raises(ArtifactError, match="do not fit"):
        form.restore(sealed(live, tmp_path / "c", origin=wider))


def test_outputs_are_flattened_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert form.flatten_outputs(a) == (("output",), (a,), "single")
    assert form.flatten_outputs((a, (b, None, c))) == (("output_0", "output_1", "output_2"), (a, b, c), "tuple")
    names, tensors, kind = form.flatten_outputs({"z": a, "none": None, "inner": {"x": b, "y": c}})
    assert (names, tensors, kind) == (("z", "inner_x", "inner_y"), (a, b, c), "dict")
    with pytest.raises(WorkloadError, match="only tensors"):
        form.flatten_outputs({"a": a, "cache": object()})
    with pytest.raises(WorkloadError, match="no tensor"):
        form.flatten_outputs(None)


def test_call_gives_float32_for_half_precision(tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return ids.to(torch.bfloat16)

    artifact = sealed(Half(), tmp_path / "a")
    (answer,) = form.call(Half(), artifact, (np.ones((2, 6), np.int64),))
    assert answer.dtype == np.float32
    assert answer.tolist() == [[1.0] * 6] * 2


def test_a_read_only_array_is_not_written_through() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    form.native(array).add_(1)
    assert array.tolist() == [0, 0, 0]


def test_sample_inputs_follow_the_specs() -> None:
    specs = (TensorSpec("a", "float32", ("batch", "length_1", 3)), TensorSpec("b", "int64", ("batch", "length_1")))
    a, b = form.sample_inputs(specs, 2, 5, seed=0)
    assert (a.shape, b.shape) == ((2, 5, 3), (2, 5))
    assert set(np.unique(b)) <= {0, 1}
    assert not form.sample_inputs(specs, 2)[0].any()
    assert np.array_equal(form.sample_inputs(specs, 2, 5, seed=0)[0], a)


def test_an_exported_program_stands_for_the_module(tmp_path: Path) -> None:
    live = Tied()
    artifact = sealed(live, tmp_path / "a", origin=live)
    portable = torch_export.export_program(artifact, tmp_path / "p")
    assert portable is not None
    assert list(portable.files) == ["model.pt2"]
    opened = Artifact.open(portable.root)
    ids = np.random.default_rng(0).integers(0, 10, (5, 6))
    wanted = form.call(form.restore(artifact), artifact, (ids,))[0]
    assert np.allclose(form.call(form.restore(opened), opened, (ids,))[0], wanted, atol=1e-6)


def test_a_module_that_does_not_export_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return ids + 1 if ids.sum() > 0 else ids

    live = Branching()
    artifact = sealed(live, tmp_path / "a", origin=live)
    assert torch_export.export_program(artifact, tmp_path / "p") is None
    assert not list((tmp_path / "p").iterdir())
    assert capfd.readouterr() == ("", "")
