"""Checkpoints are whole or not there, and hold no pickle."""

import json

import pytest
import torch

from paretune.errors import OutputError
from paretune.training.checkpoint import Checkpoint, Checkpoints


def made(step: int) -> Checkpoint:
    tied = torch.arange(6.0).reshape(2, 3) + step
    tensors = {"model": {"a": tied, "b": tied.t()}, "optimizer": {"0.step": torch.tensor(float(step))}, "best": {}}
    return Checkpoint(step, tensors, {"losses": [0.1 + 0.2, 1e-300], "none": None})


def test_what_is_read_is_what_was_saved(tmp_path):
    kept = Checkpoints(tmp_path / "new" / "place")
    assert kept.latest() is None
    kept.save(made(3))
    found = kept.latest()
    assert (found.step, found.facts) == (3, made(3).facts)
    for file, tensors in made(3).tensors.items():
        assert set(found.tensors[file]) == set(tensors)
        assert all(torch.equal(found.tensors[file][name], tensor) for name, tensor in tensors.items())


def test_there_is_no_pickle_and_nothing_is_left_over(tmp_path):
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 10):
        kept.save(made(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000002", "step-000000010"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert all(json.loads(path.read_text()) for path in files if path.suffix == ".json")


@pytest.mark.parametrize(
    "harm",
    [
        lambda place: (place / "model.safetensors").write_bytes(b"\0" * 200),
        lambda place: (place / "optimizer.safetensors").unlink(),
        lambda place: (place / "checkpoint.json").write_text("[1, 2]"),
        lambda place: (place / "checkpoint.json").write_text('{"step": 2, "files": {"../../x": "0"}, "facts": {}}'),
    ],
)
def test_one_that_is_not_whole_gives_way_to_the_one_before(tmp_path, harm):
    kept = Checkpoints(tmp_path)
    kept.save(made(1))
    kept.save(made(2))
    harm(tmp_path / "step-000000002")
    assert kept.latest().step == 1
    kept.save(made(2))
    assert kept.latest().step == 2


def test_a_half_written_one_is_no_checkpoint_and_a_dropped_one_is_gone(tmp_path):
    kept = Checkpoints(tmp_path)
    half = tmp_path / ".writing-abc"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"\1")
    assert kept.latest() is None
    kept.save(made(1))
    kept.save(made(2))
    kept.drop(2)
    assert kept.latest().step == 1


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"not a directory|exists"):
        Checkpoints(tmp_path / "file" / "below").save(made(1))
