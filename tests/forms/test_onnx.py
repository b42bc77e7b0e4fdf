"""The ONNX form: sealing is clean and deterministic, opening is safe, counting is right."""

import pickle
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.errors import ArtifactError, WorkloadError
from paretune.forms import onnx as form


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def made(nodes, inputs, outputs, weights=None):
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolution(batch="N"):
    """A 3×3 convolution 3 → 4 channels on 8×8 and a classifier to 5: 6,912 + 1,280 multiply-accumulates."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="gemm"),
    ]
    weights = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "b": np.zeros(4, np.float32),
        "v": np.ones((256, 5), np.float32),
    }
    return made(nodes, [value("x", [batch, 3, 8, 8])], [value("y", [batch, 5])], weights)


def two_inputs():
    nodes = [helper.make_node("Gather", ["t", "ids"], ["e"]), helper.make_node("Mul", ["e", "scale"], ["y"])]
    inputs = [value("ids", ["B", "L"], TensorProto.INT64), value("scale", ["B", "L", 2])]
    return made(nodes, inputs, [value("y", ["B", "L", 2])], {"t": np.ones((9, 2), np.float32)})


def test_specs_counts_and_names_come_from_the_graph(tmp_path):
    artifact = form.seal(convolution(), tmp_path)
    assert artifact.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
    assert artifact.outputs == (TensorSpec("y", "float32", ("batch", 5)),)
    assert artifact.parameters == 4 * 27 + 4 + 256 * 5
    assert artifact.macs == 64 * 4 * 27 + 256 * 5
    assert (artifact.output_kind, artifact.precision) == ("single", "fp32")
    assert Artifact.open(tmp_path) == artifact


def test_what_cannot_be_counted_is_unknown(tmp_path):
    artifact = form.seal(two_inputs(), tmp_path)
    assert artifact.macs is None
    assert artifact.inputs[0] == TensorSpec("ids", "int64", ("batch", "L"))


def test_recurrent_and_transposed_work_is_counted(tmp_path):
    weights = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
    cell = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)]
    lstm = made(cell, [value("x", [1, 5, 3])], [value("y", [1, 1, 5, 4])], weights)
    assert form.seal(lstm, tmp_path / "lstm").macs == 5 * (16 * 3 + 16 * 4)
    up = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])]
    grown = made(
        up, [value("x", ["n", 3, 4, 4])], [value("y", ["n", 6, 8, 8])], {"w": np.ones((3, 6, 2, 2), np.float32)}
    )
    assert form.seal(grown, tmp_path / "up").macs == 3 * 16 * 6 * 4


def test_facts_are_inherited_and_overridden(tmp_path):
    like = form.seal(two_inputs(), tmp_path / "like", keyword_inputs=True, output_kind="dict", macs=7, notes=("seen",))
    turned = two_inputs()
    order = list(turned.graph.input)[::-1]
    del turned.graph.input[:]
    turned.graph.input.extend(order)
    artifact = form.seal(turned, tmp_path / "new", like=like, precision="int8")
    assert artifact.inputs == like.inputs
    assert (artifact.keyword_inputs, artifact.output_kind, artifact.macs) == (True, "dict", 7)
    assert (artifact.notes, artifact.precision) == (("seen",), "int8")


def test_metadata_and_paths_are_stripped_and_the_model_is_not_changed(tmp_path):
    model = convolution()
    for part in (model, model.graph, model.graph.node[0], model.graph.initializer[0], model.graph.input[0]):
        part.metadata_props.add(key="pkg.torch.stack_trace", value="File /home/someone/net.py")
        part.doc_string = "File /home/someone/net.py"
    model.metadata_props.add(key="labels", value="cat,dog")
    before = model.SerializeToString()
    artifact = form.seal(model, tmp_path)
    assert b"someone" not in artifact.path(".onnx").read_bytes()
    assert [prop.key for prop in form.load(artifact).metadata_props] == ["labels"]
    assert model.SerializeToString() == before


def test_the_same_model_gives_the_same_bytes(tmp_path):
    one, two = form.seal(convolution(), tmp_path / "a"), form.seal(convolution(), tmp_path / "b")
    assert one.digest == two.digest


def test_bfloat16_outputs_are_cast(tmp_path):
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    model = made([cast], [value("x", ["n", 2])], [value("y", ["n", 2], TensorProto.BFLOAT16)])
    artifact = form.seal(model, tmp_path)
    assert artifact.outputs[0].dtype == "float32"
    found = form.session(artifact.path(".onnx"), 1).run(None, {"x": np.array([[1.0, 1.001]], np.float32)})[0]
    np.testing.assert_array_equal(found, [[1.0, 1.0]])


def test_a_graph_that_breaks_the_specification_is_refused(tmp_path):
    model = convolution()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ArtifactError, match="is not valid ONNX"):
        form.seal(model, tmp_path)
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"broken\.onnx: is not valid ONNX"):
        form.load_file(path)


def test_outputs_that_are_no_tensors_are_refused(tmp_path):
    model = made(
        [helper.make_node("SequenceConstruct", ["x"], ["s"])],
        [value("x", ["n", 2])],
        [helper.make_tensor_sequence_value_info("s", 1, None)],
    )
    with pytest.raises(ArtifactError, match="s: is a sequence_type, and only tensors are taken"):
        form.seal(model, tmp_path)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(WorkloadError, match="there is no such file"):
        form.load_file(path)
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        with pytest.raises(ArtifactError, match="is a Python pickle, which is never opened"):
            form.load_file(path)
    path.write_bytes(pickle.dumps(Bomb(), protocol=0))
    with pytest.raises(ArtifactError, match=r"cannot be read as ONNX|holds no ONNX graph"):
        form.load_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(ArtifactError, match="is a zip archive"):
        form.load_file(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ArtifactError, match="git lfs pull"):
        form.load_file(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is empty"):
        form.load_file(path)


def test_every_truncation_is_refused(tmp_path):
    whole, path = convolution().SerializeToString(), tmp_path / "cut.onnx"
    for length in (1, 2, 10, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            form.load_file(path)


@pytest.fixture
def external(tmp_path):
    """A model whose weights lie in ``weights.bin`` beside it; returns its path."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save_model(
        convolution(), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return folder / "m.onnx"


def relocate(path, **entries):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_beside_the_file_is_loaded(external, tmp_path):
    loaded = form.load_file(external)
    assert not any(tensor.external_data for tensor in loaded.graph.initializer)
    assert form.seal(loaded, tmp_path / "sealed").digest == form.seal(convolution(), tmp_path / "other").digest


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "", "sub/../../secret.bin", "."])
def test_external_data_that_escapes_its_directory_is_refused(location, external):
    (external.parent.parent / "secret.bin").write_bytes(b"\0" * 10_000)
    relocate(external, location=location)
    with pytest.raises(ArtifactError, match="outside the file's directory"):
        form.load_file(external)


def test_external_data_through_a_link_is_refused(external):
    secret = external.parent.parent / "secret.bin"
    (external.parent / "weights.bin").rename(secret)
    (external.parent / "weights.bin").symlink_to(secret)
    with pytest.raises(ArtifactError, match="outside the file's directory"):
        form.load_file(external)


def test_external_data_that_is_missing_or_cut_off_is_refused(external):
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="is cut off"):
        form.load_file(external)
    data.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        form.load_file(external)
    data.write_bytes(b"\0" * 10_000)
    relocate(external, offset="-5")
    with pytest.raises(ArtifactError, match="is cut off"):
        form.load_file(external)


def test_external_data_of_a_constant_inside_a_branch_is_checked_too(tmp_path):
    hidden = numpy_helper.from_array(np.ones(2, np.float32), "k")
    onnx.external_data_helper.set_external_data(hidden, location="../secret.bin")
    hidden.ClearField("raw_data")
    branch = helper.make_graph([helper.make_node("Constant", [], ["k"], value=hidden)], "b", [], [value("k", [2])])
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    path = tmp_path / "branch.onnx"
    path.write_bytes(made([choose], [value("c", [1], TensorProto.BOOL)], [value("y", [2])]).SerializeToString())
    with pytest.raises(ArtifactError, match="outside the file's directory"):
        form.load_file(path)


def test_kernels_are_counted_as_they_run(tmp_path):
    artifact = form.seal(convolution(), tmp_path / "sealed")
    counts = form.kernel_counts(artifact.path(".onnx"), form.random_inputs(artifact.inputs, 2, 0))
    assert (counts["Conv"], counts["Gemm"]) == (1, 1)
    assert "Flatten" in counts or "Reshape" in counts


def test_random_inputs_fit_their_specs():
    specs = (
        TensorSpec("a", "float32", ("batch", 3, "t")),
        TensorSpec("b", "int64", (4, 2)),
        TensorSpec("c", "bool", (1,)),
    )
    first, again = form.random_inputs(specs, 5, seed=1), form.random_inputs(specs, 5, seed=1)
    assert [array.shape for array in first] == [(5, 3, 8), (4, 2), (1,)]
    assert [array.dtype.name for array in first] == ["float32", "int64", "bool"]
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert set(first[1].ravel()) <= {0, 1}


def test_importing_the_form_imports_no_framework():
    code = "import sys, paretune.forms.onnx_optimize; print({'onnx', 'onnxruntime'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
