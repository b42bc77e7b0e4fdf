"""Counting an ONNX graph: parameters, and multiply-accumulates for one example."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int, ...]]

# which inputs of a quantised operator are scales and zero points (no parameters), and which hold weights
_BINARY = (1, 2, 4, 5, 6, 7)
_SCALES: Mapping[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": _BINARY, "QLinearMatMul": _BINARY,
    "QLinearAdd": _BINARY, "QLinearMul": _BINARY, "QGemm": (1, 2, 4, 5, 7, 8), "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3), "QLinearGlobalAveragePool": (1, 2, 3, 4), "QLinearAveragePool": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4), "QLinearSigmoid": (1, 2, 3, 4), "DynamicQuantizeMatMul": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}  # fmt: skip
_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,), "QLinearConv": (3, 8), "QLinearMatMul": (3,), "QGemm": (3, 6), "MatMulInteger": (1,),
    "ConvInteger": (1,), "DynamicQuantizeMatMul": (1,), "DynamicQuantizeLSTM": (1, 2), "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
}  # fmt: skip
_UNCOUNTED = frozenset({"If", "Loop", "Scan", "Einsum", "Attention", "MultiHeadAttention", "QAttention"})
_SMALL = 1024


def count_parameters(model: onnx.ModelProto) -> int:
    """Elements of the float weights; a quantised weight counts once, its scale and zero point not at all."""
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    scales, quantised = set(), set()
    for node in model.graph.node:
        scales |= {node.input[i] for i in _SCALES.get(node.op_type, ()) if i < len(node.input)}
        quantised |= {node.input[i] for i in _WEIGHTS.get(node.op_type, ()) if i < len(node.input)}
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name in quantised or (tensor.data_type in floats and tensor.name not in scales)
    )


def count_macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of one example in convolutions, matrix products and recurrent cells, by shape inference.

    None when a shape stays unknown (a free axis beside the batch, an operator without shape inference) or the graph
    holds an operator whose work is not counted (control flow, fused attention).
    """
    if any(node.op_type in _UNCOUNTED for node in model.graph.node):
        return None
    skeleton = _skeleton(model)
    shapes = None if skeleton is None else _shapes(skeleton)
    if skeleton is None or shapes is None:
        return None
    total = 0
    for node in skeleton.graph.node:
        if (count := _COUNTS.get(node.op_type)) is None:
            continue
        try:
            total += count(node, shapes)
        except KeyError:  # a shape that inference did not find
            return None
    return total


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with batch 1 and without the large weights, whose shapes are enough; None when another axis is free."""
    import onnx
    import onnx.inliner

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = "skeleton"
    copy.graph.node.extend(model.graph.node)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value.name) for value in model.graph.output)
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        copy.graph.input.append(value)
        for place, axis in enumerate(copy.graph.input[-1].type.tensor_type.shape.dim):
            fixed = axis.WhichOneof("value") == "dim_value" and axis.dim_value > 0
            if place and not fixed:
                return None
            if place == 0:
                axis.dim_value = 1
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return onnx.inliner.inline_local_functions(copy) if copy.functions else copy


def _shapes(skeleton: onnx.ModelProto) -> Shapes | None:
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # an operator it cannot handle; the count is then unknown, which is no fault of the model
        return None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.WhichOneof("value") == "dim_value" for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    weight = 3 if node.op_type == "QLinearConv" else 1
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weight]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    left = shapes[node.input[0]]
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * left[0 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    sequence = shapes[node.input[0]]
    return sequence[0] * sequence[1] * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_COUNTS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv, "QLinearConv": _conv, "ConvInteger": _conv, "ConvTranspose": _conv_transpose,
    "Gemm": _product, "QGemm": _product, "MatMul": _product, "QLinearMatMul": _product, "MatMulInteger": _product,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
