"""Folding keeps the answers and the free axes, and needs fewer nodes."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_models import answers, attention, cnn, fitted, floats, lstm, model, operators, sealed

from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.forms import onnx_optimize
from paretune.techniques.onnx_fold import OnnxFold


def test_batch_normalisation_goes_into_the_convolution(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    after = OnnxFold().apply(before, fitted(before, tmp_path / "fold"))
    assert "BatchNormalization" in operators(before)
    assert "BatchNormalization" not in operators(after)
    np.testing.assert_allclose(answers(after)[0], answers(before)[0], rtol=1e-4, atol=1e-5)
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert (after.precision, after.macs) == ("fp32", before.macs)


@pytest.mark.parametrize("made", [attention, lstm])
def test_several_inputs_token_ids_and_recurrence_survive(made, tmp_path):
    before = sealed(made(), tmp_path / "in")
    after = OnnxFold().apply(before, fitted(before, tmp_path / "fold"))
    for ours, theirs in zip(answers(after), answers(before), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert after.inputs == before.inputs


def test_constants_are_computed_and_dead_code_goes(tmp_path):
    nodes = [
        helper.make_node("Exp", ["w"], ["e"], name="constant"),
        helper.make_node("MatMul", ["x", "e"], ["y"], name="product"),
        helper.make_node("Neg", ["x"], ["unused"], name="dead"),
    ]
    made = model(nodes, [("x", 1, ["n", 3])], [("y", 1, ["n", 2])], {"w": floats(3, 2)})
    before = sealed(made, tmp_path / "in")
    after = OnnxFold().apply(before, fitted(before, tmp_path / "fold"))
    assert operators(after) == ["MatMul"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    before = sealed(cnn(), tmp_path / "in")
    digests = {OnnxFold().apply(before, fitted(before, tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1


def test_unnamed_nodes_get_names(tmp_path):
    made = cnn()
    for one in made.graph.node:
        one.name = ""
    before = sealed(made, tmp_path / "in")
    after = form.load(OnnxFold().apply(before, fitted(before, tmp_path / "fold")))
    names = [one.name for one in after.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_fold_that_changes_the_answers_is_refused(tmp_path, monkeypatch):
    before = sealed(cnn(), tmp_path / "in")
    real = onnx_optimize.fold

    def damage(given):
        folded = real(given)
        weight = next(tensor for tensor in folded.graph.initializer if tensor.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "w2"))
        return folded

    monkeypatch.setattr(onnx_optimize, "fold", damage)
    with pytest.raises(BuildError, match="folding changed the answers: logits is off by"):
        OnnxFold().apply(before, fitted(before, tmp_path / "fold"))
