"""The first front door that takes a model reads it; what none takes is named."""

from pathlib import Path

import pytest

from paretune.ask import source
from paretune.errors import ArtifactError, WorkloadError
from paretune.testing import samples


def test_a_module_goes_through_its_door(tmp_path):
    artifact, door = source.find(samples.module(), samples.examples(), tmp_path)
    assert artifact.form == door.gives == "torch"
    assert artifact.root == tmp_path
    assert artifact.inputs[0].shape == ("batch", *samples.SHAPE)


@pytest.mark.parametrize(
    ("model", "what"), [(object(), "object of type object"), (3, "object of type int"), (Path("net.h6"), "net.h6")]
)
def test_what_no_door_takes_is_named(model, what, tmp_path):
    with pytest.raises(WorkloadError) as caught:
        source.find(model, samples.examples(), tmp_path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x80\x04N.", b"PK\x03\x04data.pkl"])
def test_a_bad_file_is_no_wrong_call_whichever_door_it_knocks_at(content, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.name) as caught:
        source.find(str(path), samples.examples(), tmp_path / "into")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".h6"])
def test_a_file_that_is_not_there_is_a_wrong_call(suffix, tmp_path):
    with pytest.raises(WorkloadError) as caught:
        source.find(tmp_path / f"none{suffix}", samples.examples(), tmp_path / "into")
    assert caught.value.exit_code == 2
