"""The first front door that takes a model reads it; what none takes is named."""

from pathlib import Path

import pytest

from paretune.ask import source
from paretune.errors import WorkloadError
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
