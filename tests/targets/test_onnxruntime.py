"""The onnxruntime target: answers in the artefact's order, the asked number of threads, one clear error."""

import dataclasses

import numpy as np
import pytest
from onnx import helper, numpy_helper

from paretune.ask import knob
from paretune.ask.target import Settings
from paretune.errors import MeasureError, RecipeError
from paretune.forms import onnx as form
from paretune.targets.onnxruntime import Onnxruntime

SETTINGS = Settings(threads=1, batch=2)


@pytest.fixture
def artifact(tmp_path):
    """Two inputs, two outputs: total = a @ w + b, difference = a @ w - b."""
    nodes = [
        helper.make_node("MatMul", ["a", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["total"], name="add"),
        helper.make_node("Sub", ["product", "b"], ["difference"], name="subtract"),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("a", 1, ["n", 3]), helper.make_tensor_value_info("b", 1, ["n", 2])],
        [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in ("total", "difference")],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return form.seal(made, tmp_path / "sealed")


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
@pytest.mark.parametrize("execution", ["sequential", "parallel"])
def test_answers_come_in_the_order_of_the_artefact(artifact, level, execution):
    turned = dataclasses.replace(artifact, inputs=artifact.inputs[::-1], outputs=artifact.outputs[::-1])
    a, b = np.ones((2, 3), np.float32), np.full((2, 2), 4, np.float32)
    with Onnxruntime(graph=level, execution=execution).open(turned, SETTINGS) as runner:
        difference, total = runner.infer((b, a))
    np.testing.assert_allclose(total, [[10, 13]] * 2)
    np.testing.assert_allclose(difference, [[2, 5]] * 2)


def test_every_batch_size_runs_where_the_batch_is_free(artifact):
    with Onnxruntime().open(artifact, SETTINGS) as runner:
        shapes = [runner.infer(form.random_inputs(artifact.inputs, size, 0))[0].shape for size in (1, 7, 2)]
    assert shapes == [(1, 2), (7, 2), (2, 2)]


def test_the_number_of_threads_is_the_asked_one(artifact):
    assert form.session(artifact.path(".onnx"), 3).get_session_options().intra_op_num_threads == 3
    with Onnxruntime().open(artifact, Settings(threads=2, batch=1)) as runner:
        options = runner._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_a_file_that_onnxruntime_refuses_gives_one_error(artifact):
    artifact.path(".onnx").write_bytes(b"\x08\x08garbage")
    with pytest.raises(MeasureError, match="onnxruntime does not open it"), Onnxruntime().open(artifact, SETTINGS):
        pass


def test_its_default_is_the_reference():
    assert Onnxruntime.light(throughput=True) == Onnxruntime.light(throughput=False) == (Onnxruntime(),)
    assert Onnxruntime.reference
    assert Onnxruntime().unavailable() is None
    with pytest.raises(RecipeError, match="'most' is not one of"):
        knob.make(Onnxruntime, {"graph": "most"}, "onnxruntime")
