"""Edits of a module's structure: made again from their file, and refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.errors import ArtifactError
from paretune.forms import torch as form
from paretune.forms.torch_edits import EDITS, Attributes, Bypass, Passage, Remove, Shapes, difference, make, read, write


class Net(nn.Module):
    """A list of blocks, a tied head, and attributes that a narrower module must change."""

    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.width, self.halves = width, (width // 2, width // 2)
        self.embed = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(blocks))
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).reshape(-1, self.width)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def net(width: int = 8, blocks: int = 3, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(width, blocks).eval()


def test_difference_makes_a_narrower_module_again_with_ties_and_tuples(tmp_path: Path) -> None:
    narrow, module = net(6), net(8)
    write(difference(module, narrow), tmp_path / "edits.json")
    for edit in read(tmp_path / "edits.json"):
        edit.apply(module)
    assert module.head.weight is module.embed.weight
    assert (module.width, module.halves, module.norm.num_features) == (6, (3, 3), 6)
    module.load_state_dict(narrow.state_dict())
    x = torch.arange(10)
    assert torch.equal(module(x), narrow(x))


def test_removed_members_are_gone_and_the_rest_move_up() -> None:
    module = net()
    kept = [module.blocks[0], module.blocks[2]]
    Remove(("blocks.1",)).apply(module)
    assert list(module.blocks) == kept
    assert [name for name, _ in module.blocks.named_children()] == ["0", "1"]
    assert module(torch.arange(4)).shape == (4, 10)


def test_two_members_are_removed_by_the_names_they_had_before() -> None:
    module = net(blocks=4)
    kept = [module.blocks[1], module.blocks[3]]
    Remove(("blocks.0", "blocks.2")).apply(module)
    assert list(module.blocks) == kept


def test_bypassed_module_gives_back_its_first_input() -> None:
    module = net()
    Bypass(("blocks.1",)).apply(module)
    x = torch.randn(2, 8)
    assert isinstance(module.blocks[1], Passage)
    assert torch.equal(module.blocks[1](x, None, mask=x), x)
    assert torch.equal(module.blocks[1](hidden=x, mask=None), x)
    Bypass(("blocks.2",), 3).apply(module)
    assert module.blocks[2](x, None) == (x, None, None)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (Attributes({"nowhere": {"width": 2}}), "no module 'nowhere'"),
        (Attributes({"": {"depth": 2}}), "no plain attribute 'depth'"),
        (Attributes({"": {"__class__": "x"}}), "no plain attribute"),
        (Attributes({"": {"forward": "x"}}), "no plain attribute"),
        (Shapes({"head.bias": [3]}), "no parameter 'head.bias'"),
        (Remove(("blocks.7",)), "no module 'blocks.7'"),
        (Remove(("head",)), "is no list of modules"),
        (Bypass(("blocks.7",)), "no module 'blocks.7'"),
    ],
)
def test_an_edit_that_does_not_belong_to_the_module_says_so(edit, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        edit.apply(net())


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "[3]", '[{"edit": "run", "code": "x"}]', '[{"edit": "remove"}]', '[{"edit": "remove", "x": 1}]'],
)
def test_a_file_that_holds_no_edits_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(ArtifactError, match="holds no edits"):
        read(tmp_path / "edits.json")


def test_attributes_of_a_users_own_with_an_underscore_are_told() -> None:
    before, after = net(), net()
    before._heads, after._heads = 4, 2
    edits = difference(before, after)
    assert edits == (Attributes({"": {"_heads": 2}}),)
    make(edits, before)
    assert before._heads == 2


@pytest.mark.parametrize(
    "edit",
    [
        {"edit": "attributes", "values": [1]},
        {"edit": "shapes", "shapes": {"norm.weight": [-3]}},
        {"edit": "shapes", "shapes": {"norm.weight": "ten"}},
        {"edit": "remove", "paths": [3]},
        {"edit": "quantise", "places": {"blocks.0.0": {"weight": {"bits": "x", "signed": True}}}},
    ],
)
def test_an_edit_with_values_of_another_kind_is_refused(edit: dict[str, object], tmp_path: Path) -> None:
    form.save(net(), tmp_path, [Bypass(("blocks.1",))])
    (tmp_path / "edits.json").write_text(json.dumps([edit]))
    inputs, outputs = (TensorSpec("x", "int64", ("batch",)),), (TensorSpec("output", "float32", ("batch", 10)),)
    artifact = Artifact.seal("torch", tmp_path, inputs, outputs, origin=net())
    with pytest.raises(ArtifactError, match=r"cannot be made|no such quantiser"):
        form.restore(artifact)


def test_kinds_are_known_by_their_names() -> None:
    assert set(EDITS) >= {"attributes", "shapes", "remove", "bypass"}
    assert all(kind.name == name for name, kind in EDITS.items())


def test_an_edited_artefact_restores_onto_the_users_own_module(tmp_path: Path) -> None:
    live, small = net(), net(6, seed=1)
    Remove(("blocks.1",)).apply(small)
    edits = (*difference(net(), net(6)), Remove(("blocks.1",)))
    form.save(small, tmp_path, edits)
    inputs, outputs = (TensorSpec("x", "int64", ("batch",)),), (TensorSpec("output", "float32", ("batch", 10)),)
    artifact = Artifact.seal("torch", tmp_path, inputs, outputs, origin=live)
    again = form.restore(artifact)
    x = torch.arange(10)
    assert torch.equal(again(x), small(x))
    assert (len(live.blocks), live.width) == (3, 8)  # the user's own is untouched
    assert form.edits_of(artifact) == read(tmp_path / "edits.json")


def test_changed_edits_change_the_digest_and_are_noticed(tmp_path: Path) -> None:
    live = net()
    root = tmp_path / "a"
    root.mkdir()
    form.save(live, root, [Bypass(("blocks.1",))])
    inputs, outputs = (TensorSpec("x", "int64", ("batch",)),), (TensorSpec("output", "float32", ("batch", 10)),)
    artifact = Artifact.seal("torch", root, inputs, outputs, origin=live)
    document = json.loads((root / "edits.json").read_text())
    document[0]["paths"] = ["blocks.0"]
    (root / "edits.json").write_text(json.dumps(document))
    assert Artifact.seal("torch", root, inputs, outputs, origin=live).digest != artifact.digest


def test_an_edit_that_another_model_cannot_take_says_what_to_do(tmp_path: Path) -> None:
    form.save(net(), tmp_path, [Shapes({"head.bias": [3]})])
    inputs, outputs = (TensorSpec("x", "int64", ("batch",)),), (TensorSpec("output", "float32", ("batch", 10)),)
    artifact = Artifact.seal("torch", tmp_path, inputs, outputs, origin=net())
    with pytest.raises(ArtifactError, match=r"no parameter 'head.bias' — give the workload whose model"):
        form.restore(artifact)
