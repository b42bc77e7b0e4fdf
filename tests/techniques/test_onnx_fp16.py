"""Half precision: half the bytes, the same interface, overflow refused."""

import numpy as np
import pytest
from onnx import helper
from onnx_models import answers, attention, cnn, fitted, floats, lstm, model, node, sealed

from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.techniques.onnx_fp16 import OnnxFp16


@pytest.mark.parametrize("made", [cnn, attention, lstm])
def test_weights_are_halved_and_the_interface_stays(made, tmp_path):
    before = sealed(made(), tmp_path / "in")
    after = OnnxFp16().apply(before, fitted(before, tmp_path / "build"))
    for expected, found in zip(answers(before), answers(after), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert (after.precision, after.parameters) == ("fp16", before.parameters)
    assert all(tensor.data_type != 1 for tensor in form.load(after).graph.initializer)


def test_inputs_and_outputs_can_be_half_too(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    after = OnnxFp16(keep_io=False).apply(before, fitted(before, tmp_path / "build"))
    assert (after.inputs[0].dtype, after.outputs[0].dtype) == ("float16", "float16")


def test_kept_nodes_stay_in_float32(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    heard = []
    fit = fitted(before, tmp_path / "build", keep=("absent",), unmatched=heard.append)
    after = OnnxFp16(keep=("stem",)).apply(before, fit)
    assert heard == [["absent"]]
    kinds = {tuple(tensor.dims): tensor.data_type for tensor in form.load(after).graph.initializer}
    assert (kinds[8, 3, 3, 3], kinds[8, 8, 3, 3]) == (1, 10)


def test_a_weight_too_large_for_half_precision_is_named(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    made = model(nodes, [("x", 1, ["n", 3])], [("y", 1, ["n", 2])], {"w": floats(3, 2) * np.float32(1e6)})
    before = sealed(made, tmp_path / "in")
    with pytest.raises(BuildError, match=r"weight w: holds .* half precision ends at 65504"):
        OnnxFp16().apply(before, fitted(before, tmp_path / "build"))


def test_values_that_overflow_on_training_data_are_named_unless_kept(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    with pytest.raises(BuildError, match=r"tensor image: reaches .* half precision ends at 65504"):
        OnnxFp16().apply(before, fitted(before, tmp_path / "a", scale=1e6))
    with pytest.raises(BuildError, match="tensor n0: reaches"):
        OnnxFp16().apply(before, fitted(before, tmp_path / "b", scale=1.5e4))
    assert OnnxFp16(keep=("*",)).apply(before, fitted(before, tmp_path / "c", scale=1e6)).precision == "fp16"


def test_a_model_without_float_weights_is_refused(tmp_path):
    nodes = [helper.make_node("Exp", ["x"], ["y"], name="only")]
    before = sealed(model(nodes, [("x", 1, ["n", 3])], [("y", 1, ["n", 3])], {}), tmp_path / "in")
    with pytest.raises(BuildError, match="nothing to convert"):
        OnnxFp16().apply(before, fitted(before, tmp_path / "build"))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    digests = {OnnxFp16().apply(before, fitted(before, tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1


def test_the_values_inside_local_functions_are_halved_too(tmp_path):
    before = cnn()
    body = [helper.make_node("Mul", ["a", "k"], ["out"])]
    fill = helper.make_node("Constant", [], ["k"], value_float=2.0)
    twice = helper.make_function("local", "Twice", ["a"], ["out"], [fill, *body], [helper.make_opsetid("", 17)])
    before.functions.append(twice)
    before.opset_import.append(helper.make_opsetid("local", 1))
    before.graph.node[-1].output[0] = "half"
    before.graph.node.append(helper.make_node("Twice", ["half"], ["logits"], domain="local", name="twice"))
    artifact = sealed(before, tmp_path / "in")
    after = OnnxFp16().apply(artifact, fitted(artifact, tmp_path / "build"))
    assert not form.load(after).functions
    expected = answers(artifact)[0]
    np.testing.assert_allclose(answers(after)[0], expected, atol=5e-3 * np.abs(expected).max())


def test_a_product_of_a_transpose_stays_in_float32(tmp_path):
    before = sealed(attention(), tmp_path / "in")
    after = OnnxFp16().apply(before, fitted(before, tmp_path / "build"))
    assert all(name.endswith("_fp32") or name == "kt" for name in node(after, "scores").input)
    assert node(after, "turn").input[0].endswith("_fp32")
    assert not any(name.endswith("_fp32") for name in node(after, "query").input)
