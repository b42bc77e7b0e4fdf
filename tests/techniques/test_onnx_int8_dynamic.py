"""Dynamic INT8: matrix products and recurrent cells become integer, convolutions do not, no data is needed."""

import numpy as np
import pytest
from onnx import helper
from onnx_models import answers, attention, cnn, fitted, floats, lstm, model, operators, sealed

from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.techniques.onnx_int8_dynamic import OnnxInt8Dynamic


def close(after, before, share=0.1):
    for expected, found in zip(answers(before), answers(after), strict=True):
        assert np.abs(found - expected).max() < share * np.abs(expected).max()


@pytest.mark.parametrize(
    "technique", [OnnxInt8Dynamic(), OnnxInt8Dynamic(per_channel=False), OnnxInt8Dynamic(weights="unsigned")]
)
def test_products_with_weights_become_integer(technique, tmp_path):
    before = sealed(attention(), tmp_path / "in")
    after = technique.apply(before, fitted(before, tmp_path / "build", train=False))
    kinds = operators(after)
    assert kinds.count("MatMulInteger") == 4
    assert kinds.count("MatMul") == 2
    close(after, before)
    assert (after.precision, after.inputs, after.parameters) == ("int8", before.inputs, before.parameters)


def test_recurrent_cells_become_integer(tmp_path):
    before = sealed(lstm(), tmp_path / "in")
    after = OnnxInt8Dynamic().apply(before, fitted(before, tmp_path / "build"))
    assert "DynamicQuantizeLSTM" in operators(after)
    close(after, before)


def test_convolutions_stay_in_float_and_a_kept_classifier_too(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    after = OnnxInt8Dynamic().apply(before, fitted(before, tmp_path / "a"))
    assert operators(after).count("Conv") == 2
    assert "MatMulInteger" in operators(after)
    heard = []
    fit = fitted(before, tmp_path / "b", keep=("class*", "absent"), unmatched=heard.append)
    with pytest.raises(BuildError, match="every one of them is kept"):
        OnnxInt8Dynamic().apply(before, fit)
    assert heard == [["absent"]]


def test_a_kept_gemm_stays_in_float_beside_a_quantised_one(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "w1", "b"], ["y"], name="second", transB=1),
    ]
    weights = {"w0": floats(4, 4), "w1": floats(4, 4), "b": floats(4)}
    before = sealed(model(nodes, [("x", 1, ["n", 4])], [("y", 1, ["n", 4])], weights), tmp_path / "in")
    after = OnnxInt8Dynamic(keep=("first", "absent")).apply(before, fitted(before, tmp_path / "build"))
    assert operators(after).count("MatMulInteger") == 1
    kept = [
        tensor.name for tensor in form.load(after).graph.initializer if tensor.data_type == 1 and len(tensor.dims) == 2
    ]
    assert kept == ["w0"]
    assert after.notes == ("onnx_int8_dynamic: no node is named 'absent'",)


def test_a_network_without_constant_products_is_refused(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "z"], ["y"], name="both")]
    made = model(nodes, [("x", 1, ["n", 2, 3]), ("z", 1, ["n", 3, 2])], [("y", 1, ["n", 2, 2])], {})
    before = sealed(made, tmp_path / "in")
    with pytest.raises(BuildError, match="nothing to quantise: no MatMul"):
        OnnxInt8Dynamic().apply(before, fitted(before, tmp_path / "build"))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    before = sealed(attention(), tmp_path / "in")
    digests = {OnnxInt8Dynamic().apply(before, fitted(before, tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1
