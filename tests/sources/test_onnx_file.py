"""The ONNX front door: files and protos in, a free batch axis where it can be had, one clear error otherwise."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from paretune.ask.data import Split
from paretune.errors import ArtifactError, DataError, WorkloadError
from paretune.forms import onnx as form
from paretune.sources.onnx_file import OnnxFile


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def made(nodes, inputs, outputs, weights=None, domain=""):
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


WEIGHT = {"w": np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)}


def linear(batch):
    return made(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", [batch, 12])], [value("y", [batch, 2])], WEIGHT
    )


def reshaping(batch, shape):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    weights = {**WEIGHT, "s": np.array(shape)}
    return made(nodes, [value("x", [batch, 3, 2, 2])], [value("y", [batch, 2])], weights)


def mixing(batch):
    """Subtracts the mean over the batch: each row depends on the others."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    return made(nodes, [value("x", [batch, 12])], [value("y", [batch, 2])], WEIGHT)


def pair():
    nodes = [helper.make_node("Gather", ["t", "ids"], ["e"]), helper.make_node("Mul", ["e", "scale"], ["y"])]
    inputs = [value("ids", ["n", 4], TensorProto.INT64), value("scale", ["n", 4, 2])]
    return made(nodes, inputs, [value("y", ["n", 4, 2])], {"t": np.ones((9, 2), np.float32)})


class Rows:
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.inputs, 0


def split(inputs):
    return Split.whole(Rows(inputs), None, "train")


def run(artifact, *inputs):
    names = [spec.name for spec in artifact.inputs]
    return form.session(artifact.path(".onnx"), 1).run(None, dict(zip(names, inputs, strict=True)))[0]


def test_other_things_are_left_to_other_front_doors(tmp_path):
    for thing in (object(), "model.pt2", tmp_path / "model.keras", np.ones(3), None):
        assert OnnxFile().read(thing, None, tmp_path) is None


def test_a_file_its_name_and_a_proto_are_the_same_model(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(linear("n").SerializeToString())
    found = [OnnxFile().read(thing, None, tmp_path / str(i)) for i, thing in enumerate((path, str(path), linear("n")))]
    assert len({artifact.digest for artifact in found}) == 1
    assert found[0].inputs[0].shape == ("batch", 12)
    assert OnnxFile().native(WEIGHT["w"]) is WEIGHT["w"]


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("shape", [None, "columns", "rows", "both"])
def test_a_fixed_batch_is_freed_where_the_answers_stay(batch, shape, tmp_path):
    fixed = {
        None: lambda: linear(batch),
        "columns": lambda: reshaping(batch, [batch, -1]),
        "rows": lambda: reshaping(batch, [-1, 12]),
        "both": lambda: reshaping(batch, [batch, 12]),
    }[shape]()
    artifact = OnnxFile().read(fixed, None, tmp_path)
    assert artifact.inputs[0].shape[0] == artifact.outputs[0].shape[0] == "batch"
    assert artifact.notes == ()
    x = np.random.default_rng(1).standard_normal((5, *artifact.inputs[0].shape[1:])).astype(np.float32)
    np.testing.assert_allclose(run(artifact, x), x.reshape(5, 12) @ WEIGHT["w"], rtol=1e-4, atol=1e-5)


def test_a_batch_whose_rows_depend_on_each_other_stays_fixed(tmp_path):
    artifact = OnnxFile().read(mixing(2), split(np.ones(12, np.float32)), tmp_path)
    assert artifact.inputs[0].shape == (2, 12)
    assert "the batch size is fixed in the file" in artifact.notes[0]


def test_data_fits_by_name_and_alone_by_place(tmp_path):
    ids, scale = np.zeros(4, np.int64), np.ones((4, 2), np.float32)
    assert OnnxFile().read(linear("n"), split(np.ones(12, np.float32)), tmp_path / "a") is not None
    assert OnnxFile().read(pair(), split({"scale": scale, "ids": ids}), tmp_path / "b") is not None
    assert OnnxFile().read(pair(), split((ids, scale)), tmp_path / "c") is not None


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ((np.zeros(4, np.int32), np.ones((4, 2), np.float32)), "train: ids: is int32 and the model takes int64"),
        ((np.zeros(5, np.int64), np.ones((4, 2), np.float32)), "train: ids: has shape"),
        ({"ids": np.zeros(4, np.int64), "size": np.ones((4, 2), np.float32)}, "names its inputs ids, size"),
        (np.zeros(4, np.int64), "gives 1 inputs and the model takes 2: ids, scale"),
    ],
)
def test_data_that_does_not_fit_names_the_input(inputs, why, tmp_path):
    with pytest.raises(DataError, match=why):
        OnnxFile().read(pair(), split(inputs), tmp_path)


def test_custom_operators_without_a_runtime_are_named(tmp_path):
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme.ops")]
    model = made(nodes, [value("x", ["n", 2])], [value("y", ["n", 2])], domain="acme.ops")
    with pytest.raises(ArtifactError, match=r"custom operators that onnxruntime does not have: acme\.ops\.Frobnicate"):
        OnnxFile().read(model, None, tmp_path)


def test_local_functions_are_no_custom_operators(tmp_path):
    double = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="local")]
    model = made(nodes, [value("x", ["n", 2])], [value("y", ["n", 2])], domain="local")
    model.functions.append(double)
    artifact = OnnxFile().read(model, None, tmp_path)
    np.testing.assert_array_equal(run(artifact, np.ones((3, 2), np.float32)), np.full((3, 2), 2))


def test_what_onnxruntime_cannot_run_is_said_in_one_line(tmp_path):
    model = made(
        [helper.make_node("Reshape", ["x", "s"], ["y"])], [value("x", ["n", 2])], [value("y", ["n", 2])], WEIGHT
    )
    model.graph.node[0].input[1] = "w"
    with pytest.raises(ArtifactError, match="onnxruntime does not open the model") as caught:
        OnnxFile().read(model, None, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match="there is no such file"):
        OnnxFile().read(tmp_path / "absent.onnx", None, tmp_path)
    path = tmp_path / "cut.onnx"
    path.write_bytes(linear("n").SerializeToString()[:60])
    with pytest.raises(ArtifactError, match=r"cut\.onnx"):
        OnnxFile().read(str(path), None, tmp_path / "into")
