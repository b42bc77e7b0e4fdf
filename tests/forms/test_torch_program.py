"""A .pt2 file is opened only when nothing in it can run, and no doctored file runs anything."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.errors import ArtifactError
from paretune.forms.torch_program import MODEL, SAMPLES, WEIGHTS, open_checked, quiet, save

Members = dict[str, bytes]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(x) + self.shift + torch.tensor([1.0, 2.0, 3.0]), "twice": torch.cat([x, x])}


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(Net().eval(), (torch.full((2, 4), 7.25),), dynamic_shapes=dynamic)


@pytest.fixture
def members(program: torch.export.ExportedProgram, tmp_path: Path) -> Members:
    path = tmp_path / "plain.pt2"
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def written(members: Members, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"m/{name}", content)
    return path


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def bomb(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Bomb(marker),), buffer)
    return buffer.getvalue()


def edited(members: Members, name: str, edit: Callable[[Any], None]) -> Members:
    value = json.loads(members[name])
    edit(value)
    return {**members, name: json.dumps(value).encode()}


def test_a_plain_program_opens_and_answers_as_before(
    program: torch.export.ExportedProgram, members: Members, tmp_path: Path
) -> None:
    opened = open_checked(written(members, tmp_path / "again.pt2"))
    x = torch.randn(5, 4)
    wanted, got = program.module()(x), opened.module()(x)
    assert list(got) == ["logits", "twice"]
    assert torch.equal(got["logits"], wanted["logits"])
    assert got["twice"].shape == (10, 4)
    assert opened.example_inputs is None


def test_the_bomb_would_go_off_in_torch_itself(members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = written({**members, SAMPLES: bomb(marker)}, tmp_path / "doctored.pt2")
    with quiet():
        torch.export.load(path)
    assert marker.exists(), "the tests below prove nothing if torch no longer runs this"


def test_sample_inputs_are_never_unpickled(members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    opened = open_checked(written({**members, SAMPLES: bomb(marker)}, tmp_path / "doctored.pt2"))
    assert opened.module()(torch.zeros(2, 4))["logits"].shape == (2, 3)
    assert not marker.exists()


def test_pickled_weights_and_constants_are_refused(members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def use_pickle(value: Any) -> None:
        next(iter(value["config"].values()))["use_pickle"] = True

    constants = "data/constants/model_constants_config.json"
    for config, payload in ((WEIGHTS, "data/weights/weight_0"), (constants, "data/constants/tensor_0")):
        doctored = {**edited(members, config, use_pickle), payload: bomb(marker)}
        with pytest.raises(ArtifactError, match="pickle"):
            open_checked(written(doctored, tmp_path / "doctored.pt2"))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_pickled_members_are_refused(name: str, members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    doctored = {**members, f"data/{name}": pickle.dumps(Bomb(marker))}
    with pytest.raises(ArtifactError):
        open_checked(written(doctored, tmp_path / "doctored.pt2"))
    assert not marker.exists()


def test_native_code_is_refused(members: Members, tmp_path: Path) -> None:
    path = written({**members, "data/aotinductor/model/wrapper.so": b"\x7fELF"}, tmp_path / "compiled.pt2")
    with pytest.raises(ArtifactError, match="native code"):
        open_checked(path)


def _shape(expression: str) -> Callable[[Any, str], None]:
    def edit(model: Any, marker: str) -> None:
        entry = next(iter(model["graph_module"]["graph"]["tensor_values"].values()))
        entry["sizes"][0] = {"as_expr": {"expr_str": expression.format(marker=marker), "hint": None}}

    return edit


def _target(target: str) -> Callable[[Any, str], None]:
    def edit(model: Any, marker: str) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]

    return edit


def _argument(model: Any, marker: str) -> None:
    text = json.dumps(model["graph_module"]).replace('"x"', json.dumps(f"x=__import__('os').system('touch {marker}')"))
    model["graph_module"] = json.loads(text)


def _forward_name(model: Any, marker: str) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"x=__import__('os').system('touch {marker}')"]


def _module_of_enum(model: Any, marker: str) -> None:
    del marker
    context = json.dumps([{"__enum__": True, "fqn": "antigravity:X", "name": "y"}])
    tree = {"type": "builtins.dict", "context": context, "children_spec": []}
    model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


def _unknown_tree(model: Any, marker: str) -> None:
    del marker
    tree = {"type": "collections.defaultdict", "context": "{}", "children_spec": []}
    model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, tree])


def _custom_object(model: Any, marker: str) -> None:
    del marker
    model["graph_module"]["graph"]["custom_obj_values"] = {"a": {"name": "a", "class_fqn": "x.Y"}}


@pytest.mark.parametrize(
    "edit",
    [
        _shape("__import__('os').system('touch {marker}')"),
        _shape("Symbol('s1').__class__"),
        _shape("open(s1)"),
        _shape("[s1 for s1 in s2]"),
        _shape("lambda: s1"),
        _target("torch.os.system"),
        _target("torch.ops.load_library"),
        _target("torch.ops.aten.save.default"),
        _target("torch.ops.aten.from_file.default"),
        _target("torch.ops.aten.linear.nothing"),
        _target("torch.ops.mine.thing.default"),
        _target("_operator.methodcaller"),
        _target("#extension:thing"),
        _argument,
        _forward_name,
        _module_of_enum,
        _unknown_tree,
        _custom_object,
    ],
)
def test_whatever_the_loader_would_turn_into_code_is_refused(
    edit: Callable[[Any, str], None], members: Members, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    doctored = edited(members, MODEL, lambda model: edit(model, str(marker)))
    with pytest.raises(ArtifactError):
        open_checked(written(doctored, tmp_path / "doctored.pt2"))
    assert not marker.exists()


def test_guards_and_metadata_are_not_executed(members: Members, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def edit(model: Any) -> None:
        model["guards_code"] = [f"__import__('os').system('touch {marker}') == 0"]
        model["graph_module"]["graph"]["nodes"][0]["metadata"]["torch_fn"] = "torch.os.system;torch.os.system"

    opened = open_checked(written(edited(members, MODEL, edit), tmp_path / "doctored.pt2"))
    assert opened.module()(torch.zeros(2, 4))["logits"].shape == (2, 3)
    assert not marker.exists()


def test_doubled_and_compressed_members_are_refused(members: Members, tmp_path: Path) -> None:
    path = written(members, tmp_path / "doubled.pt2")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"m/{MODEL}", members[MODEL])
    with pytest.raises(ArtifactError, match="doubled"):
        open_checked(path)
    with pytest.raises(ArtifactError, match="compressed"):
        open_checked(written(members, tmp_path / "small.pt2", zipfile.ZIP_DEFLATED))


def test_other_files_are_refused_with_one_line(members: Members, tmp_path: Path) -> None:
    pickled = tmp_path / "a.pt2"
    torch.save({"a": Bomb(tmp_path / "marker")}, pickled)
    text = tmp_path / "b.pt2"
    text.write_text("not a zip")
    cut = tmp_path / "c.pt2"
    whole = written(members, tmp_path / "whole.pt2").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    lacking = written({k: v for k, v in members.items() if k != WEIGHTS}, tmp_path / "d.pt2")
    nested = written({**members, MODEL: b"[" * 200_000}, tmp_path / "e.pt2")
    for path in (pickled, text, cut, lacking, nested, tmp_path / "none.pt2"):
        with pytest.raises(ArtifactError) as caught:
            open_checked(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_weights_out_of_bounds_are_refused(members: Members, tmp_path: Path) -> None:
    def edit(value: Any) -> None:
        value["config"]["linear.weight"]["tensor_meta"]["storage_offset"] = {"as_int": 10**6}

    with pytest.raises(ArtifactError, match="cannot read"):
        open_checked(written(edited(members, WEIGHTS, edit), tmp_path / "doctored.pt2"))


def test_a_saved_program_tells_nothing_of_the_machine_or_the_data(
    program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    with quiet():
        save(copy.deepcopy(program), path)
    content = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert torch.tensor([7.25, 7.25]).numpy().tobytes() not in content
    assert open_checked(path).module()(torch.zeros(3, 4))["logits"].shape == (3, 3)


def test_branches_without_gradients_and_computed_shapes_are_let_through(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                mean = x.mean()
            picked: torch.Tensor = torch.cond(mean > 0, lambda y: self.linear(y), lambda y: y * 2, (x,))
            rows = torch.nn.functional.pad(picked, (0, 0, 0, x.shape[0] // 2 + 1))
            return torch.einsum("ij,kj->ik", rows, rows)[flag.nonzero().squeeze(-1)]

    model = Branches().eval()
    arguments = (torch.ones(4, 4), torch.ones(7, dtype=torch.bool))
    path = tmp_path / "branches.pt2"
    with quiet():
        program = torch.export.export(model, arguments, dynamic_shapes=({0: torch.export.Dim.AUTO}, None))
        torch.export.save(program, path)
    opened = open_checked(path).module()
    for sign in (1, -1):
        given = (torch.full((4, 4), float(sign)), torch.tensor([True, False, True, False, True, False, False]))
        assert torch.allclose(opened(*given), model(*given), atol=1e-5)
