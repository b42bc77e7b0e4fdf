"""Tiny ONNX models and training data for the tests of ONNX techniques."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.forms import onnx as form


def model(nodes, inputs, outputs, weights, opset=17):
    """A checked model; ``inputs`` and ``outputs`` are (name, dtype, shape), ``weights`` name → array."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def floats(*shape, scale=0.3):
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * scale).astype(np.float32)


def cnn(batch="batch"):
    """Convolution, batch normalisation, a residual block, pooling, a classifier: [batch, 3, 8, 8] → [batch, 4]."""
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "g", "b", "m", "v"], ["n0"], name="norm"),
        helper.make_node("Relu", ["n0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="block", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["a1"], name="shortcut"),
        helper.make_node("Relu", ["a1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="classifier", transB=1),
    ]
    weights = {
        "w0": floats(8, 3, 3, 3), "g": np.abs(floats(8)) + 0.5, "b": floats(8), "m": floats(8),
        "v": np.abs(floats(8)) + 0.5, "w1": floats(8, 8, 3, 3), "b1": floats(8), "w2": floats(4, 8), "b2": floats(4),
    }  # fmt: skip
    inputs, outputs = [("image", 1, [batch, 3, 8, 8])], [("logits", 1, [batch, 4])]
    return model(nodes, inputs, outputs, weights)


def attention():
    """Token ids and a mask → one attention layer → [batch, 2]; axis 1 is free."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embedding"),
        helper.make_node("MatMul", ["e", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["e", "wk"], ["k"], name="key"),
        helper.make_node("MatMul", ["e", "wv"], ["v"], name="value"),
        helper.make_node("Transpose", ["k"], ["kt"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="scores"),
        helper.make_node("Unsqueeze", ["mask", "one"], ["m3"], name="spread"),
        helper.make_node("Add", ["s", "m3"], ["sm"], name="masked"),
        helper.make_node("Softmax", ["sm"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c"], name="context"),
        helper.make_node("ReduceMean", ["c"], ["mean"], name="mean", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "wo"], ["logits"], name="head"),
    ]
    weights = {
        "table": floats(32, 16), "wq": floats(16, 16), "wk": floats(16, 16), "wv": floats(16, 16), "wo": floats(16, 2),
        "one": np.array([1]),
    }  # fmt: skip
    inputs = [("ids", TensorProto.INT64, ["batch", "length"]), ("mask", 1, ["batch", "length"])]
    return model(nodes, inputs, [("logits", 1, ["batch", 2])], weights)


def lstm():
    """[5, batch, 3] → the states of an LSTM of width 4, time first, as ONNX has it."""
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "h", ""], name="cell", hidden_size=4)]
    weights = {"w": floats(1, 16, 3), "r": floats(1, 16, 4), "b": floats(1, 32)}
    return model(nodes, [("x", 1, [5, "n", 3])], [("y", 1, [5, 1, "n", 4]), ("h", 1, [1, "n", 4])], weights)


class Rows:
    """``count`` seeded examples that fit the inputs of an artefact, free axes 6 long."""

    def __init__(self, artifact, count=48, names=True, scale=1.0):
        drawn = form.random_inputs(artifact.inputs, count, seed=3, length=6)
        self.columns = [value * np.float32(scale) if value.dtype.kind == "f" else value for value in drawn]
        self.names = [spec.name for spec in artifact.inputs]

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return {name: column[index] for name, column in zip(self.names, self.columns, strict=True)}, np.int64(0)


def sealed(made, root: Path) -> Artifact:
    return form.seal(made, root)


def fitted(artifact, root: Path, keep=(), train=True, scale=1.0, seed=0, **told) -> Fit:
    root.mkdir(parents=True, exist_ok=True)
    data = Split.whole(Rows(artifact, scale=scale), None, "train") if train else None
    return Fit(data, None, artifact, seed, root, keep, **told)


def answers(artifact, batch=4, seed=11):
    session = form.session(artifact.path(".onnx"), 1)
    feed = form.random_inputs(artifact.inputs, batch, seed, length=6)
    names = [spec.name for spec in artifact.inputs]
    return session.run([spec.name for spec in artifact.outputs], dict(zip(names, feed, strict=True)))


def operators(artifact):
    return [node.op_type for node in form.load(artifact).graph.node]


def node(artifact, name):
    return next(one for one in form.load(artifact).graph.node if one.name == name)
