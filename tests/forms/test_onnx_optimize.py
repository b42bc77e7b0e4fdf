"""Rewriting graphs: order, dead ends, nested graphs, comparison of answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paretune.errors import BuildError
from paretune.forms import onnx_optimize


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def made(nodes, inputs, outputs, weights=None, opset=17):
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_nodes_are_sorted_and_dead_ends_go():
    nodes = [
        helper.make_node("Relu", ["b"], ["y"], name="last"),
        helper.make_node("Neg", ["b"], ["nothing"], name="dead"),
        helper.make_node("Exp", ["a"], ["b"], name="middle"),
        helper.make_node("Abs", ["x"], ["a"], name="first"),
    ]
    model = made(nodes, [value("x", ["n"])], [value("y", ["n"])], {"unused": np.ones(3, np.float32)})
    tidy = onnx_optimize.tidy(model)
    onnx.checker.check_model(tidy)
    assert [node.name for node in tidy.graph.node] == ["first", "middle", "last"]
    assert not tidy.graph.initializer
    assert len(model.graph.node) == 4


def test_what_a_branch_takes_from_outside_is_kept():
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["a", "w"], [name])], name, [], [value(name, None)])
        for name, kind in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="choose", **branches),
        helper.make_node("Abs", ["x"], ["a"], name="before"),
    ]
    inputs = [value("c", [1], TensorProto.BOOL), value("x", ["n"])]
    tidy = onnx_optimize.tidy(made(nodes, inputs, [value("y", ["n"])], {"w": np.full(1, 3, np.float32)}))
    assert [node.name for node in tidy.graph.node] == ["before", "choose"]
    for asked, expected in ((True, 5.0), (False, 6.0)):
        feed = {"c": np.array([asked]), "x": np.array([-2], np.float32)}
        assert onnx_optimize.run(tidy, feed)["y"].tolist() == [expected]
        assert onnx_optimize.run(onnx_optimize.fold(tidy), feed)["y"].tolist() == [expected]


def test_an_old_operator_set_is_raised_and_a_new_one_left_alone():
    nodes = [helper.make_node("Squeeze", ["x"], ["y"], axes=[1])]
    old = made(nodes, [value("x", ["n", 1])], [value("y", ["n"])], opset=11)
    new = onnx_optimize.upgrade(old)
    assert new.opset_import[0].version == 13
    np.testing.assert_array_equal(onnx_optimize.run(new, {"x": np.ones((2, 1), np.float32)})["y"], [1, 1])
    assert onnx_optimize.upgrade(new) is new


def test_patterns_name_nodes_and_idle_ones_are_told():
    nodes = [helper.make_node("Abs", ["x"], ["a"], name="block/1"), helper.make_node("Abs", ["a"], ["y"], name="head")]
    model = made(nodes, [value("x", ["n"])], [value("y", ["n"])])
    assert onnx_optimize.kept_nodes(model, ("block/*", "tail")) == (["block/1"], ["tail"])


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"y": np.array([1.0, 2.0], np.float32)}, ""),
        ({"y": np.array([1.0, 2.0001], np.float32)}, ""),
        ({"y": np.array([1.0, 2.1], np.float32)}, "y is off by 0.1"),
        ({"y": np.array([1.0, np.nan], np.float32)}, "y is off by"),
        ({"y": np.array([1.0], np.float32)}, r"y is float32\[1\] instead of float32\[2\]"),
        ({"y": np.array([1.0, 2.0])}, r"y is float64\[2\] instead"),
        ({"z": np.array([1.0, 2.0], np.float32)}, "outputs y became z"),
    ],
)
def test_a_difference_is_named(found, why):
    difference = onnx_optimize.same({"y": np.array([1.0, 2.0], np.float32)}, found)
    assert bool(difference) == bool(why)
    if why:
        with pytest.raises(ValueError, match=why):
            raise ValueError(difference)


def test_a_model_that_does_not_run_gives_one_error():
    model = made([helper.make_node("Abs", ["x"], ["y"])], [value("x", ["n", 2])], [value("y", ["n", 2])])
    with pytest.raises(BuildError, match="onnxruntime does not run the model"):
        onnx_optimize.run(model, {"x": np.ones((1, 3), np.float32)})
