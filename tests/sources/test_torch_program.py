"""Exported programs become artefacts, from a file or live, with or without data."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.ask.data import Split
from paretune.errors import ArtifactError, DataError, WorkloadError
from paretune.forms import torch as form
from paretune.sources.torch_program import TorchProgram

FREE = torch.export.Dim.DYNAMIC


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(ids) * scale.unsqueeze(-1), "scale_out": scale}


def exported(keyword: bool = False, mixed: bool = False) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    ids, scale = torch.rand(2, 5, 4), torch.rand(2, 5)
    axes = {"ids": {0: FREE, 1: FREE}, "scale": {0: FREE, 1: FREE}}
    args = () if keyword else (ids,) if mixed else (ids, scale)
    kwargs = {"scale": scale, "ids": ids} if keyword else {"scale": scale} if mixed else {}
    return torch.export.export(Net().eval(), args, kwargs, dynamic_shapes=axes)


def examples(dtype: str = "float32") -> Split:
    items = [((np.ones((5, 4), dtype), np.ones(5, np.float32)), 0) for _ in range(3)]
    return Split.whole(items, None, "train")


@pytest.mark.parametrize("way", ["positional", "keyword", "mixed"])
def test_a_file_and_a_live_program_are_read_without_data(way: str, tmp_path: Path) -> None:
    program = exported(keyword=way == "keyword", mixed=way == "mixed")
    path = tmp_path / "mine.pt2"
    torch.export.save(program, path)
    inputs = {"ids": np.full((3, 6, 4), 0.5, np.float32), "scale": np.full((3, 6), 2.0, np.float32)}
    wanted = Net()
    wanted.load_state_dict(program.state_dict)
    answer = wanted(*(torch.from_numpy(array) for array in inputs.values()))["logits"].detach().numpy()
    for place, model in enumerate((path, str(path), program)):
        into = tmp_path / str(place)
        into.mkdir()
        artifact = TorchProgram().read(model, None, into)
        assert artifact is not None
        assert {spec.name: spec.shape for spec in artifact.inputs} == {
            "ids": ("batch", "length_1", 4),
            "scale": ("batch", "length_1"),
        }
        assert [spec.shape for spec in artifact.outputs] == [("batch", "length_1", 3), ("batch", "length_1")]
        assert [spec.name for spec in artifact.outputs] == ["logits", "scale_out"]
        assert artifact.output_kind == "dict"
        assert artifact.keyword_inputs == (way == "keyword")
        assert artifact.parameters == 15
        ordered = tuple(inputs[spec.name] for spec in artifact.inputs)
        assert np.allclose(form.call(form.restore(artifact), artifact, ordered)[0], answer, atol=1e-6)


def test_examples_are_checked_against_the_program(tmp_path: Path) -> None:
    assert TorchProgram().read(exported(), examples(), tmp_path) is not None
    with pytest.raises(DataError, match="float64"):
        TorchProgram().read(exported(), examples("float64"), tmp_path)


def test_a_doctored_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, marker = tmp_path / "mine.pt2", tmp_path / "marker"
    torch.export.save(exported(), path)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    bomb = tmp_path / "bomb"
    torch.save(Bomb(), bomb)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(bomb, "mine/data/constants/custom_obj_0")
    with pytest.raises(ArtifactError, match="pickled object"):
        TorchProgram().read(path, None, tmp_path)
    assert not marker.exists()


def test_programs_with_nested_or_other_inputs_are_refused(tmp_path: Path) -> None:
    class Nested(torch.nn.Module):
        def forward(self, pair: list[torch.Tensor]) -> torch.Tensor:
            return pair[0] + pair[1]

    program = torch.export.export(Nested(), ([torch.rand(2), torch.rand(2)],))
    with pytest.raises(WorkloadError, match="nested"):
        TorchProgram().read(program, None, tmp_path)


def test_what_is_no_program_is_left_to_others(tmp_path: Path) -> None:
    for other in (Net(), "model.onnx", Path("model.pt"), 3):
        assert TorchProgram().read(other, None, tmp_path) is None
    with pytest.raises(WorkloadError, match="no such file"):
        TorchProgram().read(tmp_path / "none.pt2", None, tmp_path)
