"""A sealed artefact is what it was, or is refused."""

import dataclasses
import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.artifact import META, Artifact, TensorSpec, unlike, verify_files
from paretune.errors import ArtifactError

NAMES = st.text(string.ascii_letters + "._é", min_size=1, max_size=8)
SPECS = st.builds(
    TensorSpec, NAMES, st.sampled_from(["float32", "int64"]),
    st.lists(st.integers(1, 9) | NAMES, max_size=4).map(tuple),
)  # fmt: skip
ARTIFACTS = st.builds(
    Artifact,
    form=st.sampled_from(["torch", "onnx", "openvino"]),
    root=st.just(None),
    files=st.dictionaries(NAMES, st.text("0123456789abcdef", min_size=64, max_size=64), max_size=3),
    inputs=st.lists(SPECS, max_size=3).map(tuple),
    outputs=st.lists(SPECS, max_size=3).map(tuple),
    keyword_inputs=st.booleans(),
    output_kind=st.sampled_from(["single", "tuple", "dict"]),
    precision=st.sampled_from(["fp32", "int8"]),
    parameters=st.none() | st.integers(0, 10**12),
    macs=st.none() | st.integers(0, 10**12),
    notes=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    base=st.sampled_from(["model", "student"]),
)


@given(SPECS.filter(lambda spec: spec.shape and isinstance(spec.shape[0], str)), st.integers(1, 9))
def test_the_batch_is_fixed_where_any_input_binds_it(free, size):
    scalar, bound = TensorSpec("s", "int64", ()), TensorSpec("b", "int64", (size, "n"))
    for inputs, wanted in (((free,), None), ((scalar, free), None), ((bound,), size), ((scalar, free, bound), size)):
        assert Artifact("onnx", None, {}, inputs, ()).fixed_batch == wanted


def sealed(root, **facts):
    (root / "deep").mkdir(parents=True)
    (root / "model.onnx").write_bytes(bytes(range(40)))
    (root / "deep" / META).write_bytes(b"a file of the model that has this name")
    spec = TensorSpec("x", "float32", ("batch", 3))
    return Artifact.seal("onnx", root, (spec,), (dataclasses.replace(spec, name="y"),), **facts)


def refused(root):
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(root)
    assert str(root) in caught.value.where
    assert caught.value.do
    assert "\n" not in str(caught.value)
    return caught.value.what


@given(ARTIFACTS)
def test_describing_is_the_identity_through_json(artifact):
    again = Artifact.describe_from(json.loads(json.dumps(artifact.describe())), artifact.root)
    assert again == artifact
    assert again.digest == artifact.digest


@given(ARTIFACTS, ARTIFACTS)
def test_digests_tell_what_a_runner_sees(a, b):
    def seen(one):
        return one.form, dict(one.files), one.inputs, one.outputs, one.keyword_inputs, one.output_kind

    assert (a.digest == b.digest) == (seen(a) == seen(b))
    assert dataclasses.replace(a, root="/elsewhere", notes=("x",), origin=object()).digest == a.digest


def test_sealing_and_opening_is_the_identity(tmp_path):
    artifact = sealed(tmp_path / "a", precision="int8", parameters=7, notes=("n",), output_kind="dict")
    assert set(artifact.files) == {"model.onnx", f"deep/{META}"}
    assert Artifact.open(tmp_path / "a") == artifact
    assert artifact.size_bytes == sum((tmp_path / "a" / name).stat().st_size for name in artifact.files)
    (tmp_path / "a").rename(tmp_path / "b")
    assert Artifact.open(tmp_path / "b").digest == artifact.digest


def test_any_changed_byte_of_a_file_is_noticed(tmp_path):
    artifact = sealed(tmp_path / "a")
    for name in artifact.files:
        path = tmp_path / "a" / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert "sha256" in refused(tmp_path / "a")
        for wrong in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(wrong)
            assert "sha256" in refused(tmp_path / "a")
        path.write_bytes(whole)
    Artifact.open(tmp_path / "a")


def test_a_missing_file_is_noticed(tmp_path):
    sealed(tmp_path / "a")
    (tmp_path / "a" / "model.onnx").unlink()
    assert refused(tmp_path / "a") == "is missing"


@pytest.mark.parametrize(
    "change",
    [{"form": "torch"}, {"inputs": []}, {"output_kind": "tuple"}, {"keyword_inputs": True}, {"files": {}}],
)
def test_a_changed_description_is_noticed(tmp_path, change):
    sealed(tmp_path)
    (tmp_path / META).write_text(json.dumps(json.loads((tmp_path / META).read_text()) | change))
    assert "digest is not the recorded one" in refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", "null", "{}", '{"form": "onnx"}', "\udcff", "[" * 100_000, '{"files": 3, "form": "x"}'],
)
def test_what_is_no_description_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / META).write_bytes(text.encode(errors="surrogateescape"))
    assert "cannot be read as an artefact" in refused(tmp_path)


def test_paths_that_leave_the_directory_are_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    for name in ("../secret", str(tmp_path / "secret"), "link", "up/secret", "a/../../secret", "", ".", ".."):
        with pytest.raises(ArtifactError, match="outside its directory"):
            verify_files(root, {name: "0" * 64})


def test_unreadable_names_are_refused(tmp_path):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    for name in ("a\0b", "x" * 5000, "ring"):
        with pytest.raises(ArtifactError):
            verify_files(tmp_path, {name: "0" * 64})


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="is missing"):
        verify_files(tmp_path, {"pipe": "0" * 64})


def test_the_one_file_of_a_kind(tmp_path):
    artifact = sealed(tmp_path)
    assert artifact.path(".onnx") == tmp_path / "model.onnx"
    with pytest.raises(ArtifactError, match=r"expected one \.xml file and found 0"):
        artifact.path(".xml")


def interface(inputs="x", outputs=("y",), classes=10, **facts):
    taken = (TensorSpec(inputs, "float32", ("batch", 3)),)
    given_ = tuple(TensorSpec(name, "float32", ("batch", classes)) for name in outputs)
    return Artifact(facts.pop("form", "torch"), None, {}, taken, given_, **facts)


def test_one_model_may_stand_for_another_when_their_interfaces_are_alike():
    assert unlike(interface(), interface()) == ""
    assert unlike(interface(inputs="image", outputs=("z",)), interface()) == "", "called and answering by position"
    assert (
        unlike(interface(classes=100), interface()) == "answers float32[batch, 100], and the model float32[batch, 10]"
    )
    assert "takes image float32[batch, 3]" in unlike(
        interface(inputs="image", keyword_inputs=True), interface(keyword_inputs=True)
    )
    assert "answers z float32" in unlike(interface(outputs=("z",), output_kind="dict"), interface(output_kind="dict"))
    assert unlike(interface(output_kind="tuple"), interface()) == "returns a tuple, and the model a single"
    assert "form onnx" in unlike(interface(form="onnx"), interface())
    assert unlike(interface(outputs=("y", "z")), interface()) != ""
