"""Static INT8: integer kernels really run, ranges come from training data, kept nodes stay in float."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_models import answers, attention, cnn, fitted, floats, model, node, operators, sealed

from paretune.ask import knob
from paretune.errors import BuildError, DataError, RecipeError
from paretune.forms import onnx as form
from paretune.techniques.onnx_int8_static import OnnxInt8Static


def kernels(artifact):
    return form.kernel_counts(artifact.path(".onnx"), form.random_inputs(artifact.inputs, 2, 0))


@pytest.mark.parametrize(
    "technique", [*OnnxInt8Static.light(), OnnxInt8Static(per_channel=False), OnnxInt8Static(reduce_range=True)]
)
def test_convolutions_become_integer_kernels_and_answers_stay_close(technique, tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    after = technique.apply(before, fitted(before, tmp_path / "build"))
    ran = kernels(after)
    assert ran["QLinearConv"] == 2
    assert "Conv" not in ran
    assert ran.get("QLinearAdd", 0) == 1 or technique.operators == "products"
    expected, found = answers(before)[0], answers(after)[0]
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    assert not np.array_equal(found, expected)
    assert after.precision == "int8"
    assert after.inputs == before.inputs
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_the_first_choice_is_unsigned_pairs_that_every_runtime_reads():
    first = OnnxInt8Static.light()[0]
    assert (first.form, first.activation, first.per_channel, first.calibration) == ("qdq", "unsigned", True, "minmax")


def test_the_form_decides_between_pairs_and_integer_operators(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    pairs = operators(OnnxInt8Static(form="qdq").apply(before, fitted(before, tmp_path / "a")))
    integer = operators(OnnxInt8Static(form="qoperator").apply(before, fitted(before, tmp_path / "b")))
    assert "DequantizeLinear" in pairs
    assert "Conv" in pairs
    assert "QLinearConv" in integer
    assert "Conv" not in integer


def test_signed_symmetric_activations_have_zero_in_the_middle(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    technique = OnnxInt8Static(activation="signed", symmetric_activations=True)
    after = form.load(technique.apply(before, fitted(before, tmp_path / "build")))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    points = [weights[one.input[2]] for one in after.graph.node if one.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


@pytest.mark.parametrize("by", ["knob", "fit"])
@pytest.mark.parametrize("shape", ["qdq", "qoperator"])
def test_kept_nodes_stay_in_float(by, shape, tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    own, asked = (("st*", "nothing*"), ()) if by == "knob" else ((), ("st*", "nothing*"))
    heard = []
    fit = fitted(before, tmp_path / "build", keep=asked, unmatched=heard.append)
    after = OnnxInt8Static(form=shape, keep=own).apply(before, fit)
    assert heard == [["nothing*"]]
    ran = kernels(after)
    assert (ran["Conv"], ran["QLinearConv"]) == (1, 1)
    assert node(after, "stem").op_type == "Conv"
    assert any("nothing*" in note for note in after.notes) == (by == "knob")


@pytest.mark.parametrize("technique", [OnnxInt8Static(form="qoperator"), OnnxInt8Static(calibration="entropy")])
def test_the_same_input_gives_the_same_bytes_in_every_process(technique, tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    code = textwrap.dedent(f"""
        from pathlib import Path
        from onnx_models import fitted
        from paretune.ask.artifact import Artifact
        from paretune.techniques.onnx_int8_static import OnnxInt8Static
        before = Artifact.open(Path({str(before.root)!r}))
        print({technique!r}.apply(before, fitted(before, Path({str(tmp_path / "other")!r}))).digest)
    """)
    environment = {**os.environ, "PYTHONHASHSEED": "12", "PYTHONPATH": str(Path(__file__).parent)}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert there.stderr == ""
    assert there.stdout.split() == [technique.apply(before, fitted(before, tmp_path / "here")).digest]


def test_another_seed_learns_from_other_examples(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    technique = OnnxInt8Static(samples=4)
    one, two = (technique.apply(before, fitted(before, tmp_path / str(seed), seed=seed)).digest for seed in (0, 1))
    assert one != two


def test_a_smaller_percentile_cuts_the_range(tmp_path):
    before = sealed(cnn(), tmp_path / "in")

    def scale(percentile):
        technique = OnnxInt8Static(calibration="percentile", percentile=percentile)
        after = form.load(technique.apply(before, fitted(before, tmp_path / f"p{percentile}")))
        return next(numpy_helper.to_array(one) for one in after.graph.initializer if one.name == "image_scale")

    assert scale(90.0) < 0.8 * scale(100.0)


def test_attention_with_token_ids_and_free_length(tmp_path):
    before = sealed(attention(), tmp_path / "in")
    after = OnnxInt8Static(operators="products").apply(before, fitted(before, tmp_path / "build"))
    assert after.inputs == before.inputs
    expected, found = answers(before)[0], answers(after)[0]
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    # products of two activations stay in float there, products with weights do not
    assert "QuantizeLinear" not in {one.op_type for one in form.load(after).graph.node if "scores" in one.name}
    assert sum(kernels(after).get(name, 0) for name in ("QLinearMatMul", "MatMulIntegerToFloat")) >= 4


def test_a_fixed_batch_is_fed_in_batches_of_its_size(tmp_path):
    before = sealed(cnn(batch=5), tmp_path / "in")
    data = fitted(sealed(cnn(), tmp_path / "free"), tmp_path / "build")
    after = OnnxInt8Static().apply(before, data)
    assert after.inputs[0].shape == (5, 3, 8, 8)
    with pytest.raises(BuildError, match="batches of 50 and there are fewer"):
        OnnxInt8Static().apply(sealed(cnn(batch=50), tmp_path / "big"), data)


def test_what_cannot_be_quantised_is_said(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    with pytest.raises(BuildError, match="needs training data"):
        OnnxInt8Static().apply(before, fitted(before, tmp_path / "a", train=False))
    with pytest.raises(BuildError, match="every one of its nodes is kept"):
        OnnxInt8Static(keep=("*",)).apply(before, fitted(before, tmp_path / "b"))
    plain = model([helper.make_node("Exp", ["x"], ["y"])], [("x", 1, ["n", 3])], [("y", 1, ["n", 3])], {})
    plain = sealed(plain, tmp_path / "plain")
    with pytest.raises(BuildError, match="it holds no Conv"):
        OnnxInt8Static().apply(plain, fitted(plain, tmp_path / "c"))


def test_data_that_overflows_or_does_not_fit_is_refused(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    with pytest.raises(BuildError, match="not finite"):
        OnnxInt8Static().apply(before, fitted(before, tmp_path / "a", scale=np.inf))
    other = sealed(attention(), tmp_path / "other")
    with pytest.raises(DataError, match="names its inputs ids, mask"):
        OnnxInt8Static().apply(before, fitted(other, tmp_path / "b"))


def test_an_old_operator_set_is_brought_up_to_date(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="only")]
    made = model(nodes, [("x", 1, ["n", 3, 6, 6])], [("y", 1, ["n", 4, 4, 4])], {"w": floats(4, 3, 3, 3)}, opset=11)
    before = sealed(made, tmp_path / "in")
    after = form.load(OnnxInt8Static().apply(before, fitted(before, tmp_path / "build")))
    assert after.opset_import[0].version >= 13


def test_knobs_outside_their_range_are_refused():
    with pytest.raises(RecipeError, match="'int4' is not one of 'unsigned', 'signed'"):
        knob.make(OnnxInt8Static, {"activation": "int4"}, "onnx_int8_static")
    with pytest.raises(RecipeError, match="above 100"):
        knob.make(OnnxInt8Static, {"percentile": 101.0}, "onnx_int8_static")


@pytest.mark.parametrize("shape", ["qdq", "qoperator"])
def test_a_mask_of_minus_infinity_stays_in_float(shape, tmp_path):
    masked = attention()
    weights = [numpy_helper.from_array(np.array([[[0.0, -np.inf, 0, 0, 0, 0]]], np.float32), "never")]
    masked.graph.initializer.extend(weights)
    place = next(i for i, one in enumerate(masked.graph.node) if one.name == "softmax")
    masked.graph.node[place].input[0] = "hidden"
    masked.graph.node.insert(place, helper.make_node("Add", ["sm", "never"], ["hidden"], name="hide"))
    before = sealed(masked, tmp_path / "in")
    after = OnnxInt8Static(form=shape).apply(before, fitted(before, tmp_path / "build"))
    assert node(after, "hide").input[1] == "never"
    expected, found = answers(before)[0], answers(after)[0]
    assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
    with pytest.raises(BuildError, match=r"the ranges cannot be learnt: .* try calibration=minmax"):
        OnnxInt8Static(form=shape, calibration="entropy").apply(before, fitted(before, tmp_path / "entropy"))
