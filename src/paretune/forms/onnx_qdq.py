"""Rewriting a graph of QuantizeLinear and DequantizeLinear pairs without changing a value of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MOVES = frozenset(
    ["Expand", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"]
)  # fmt: skip
"""Operators whose answers hold values of their first input, and zeros perhaps."""
INT4_OPSET = 21
"""The first operator set whose DequantizeLinear takes four-bit integers."""


def repeat_behind_moves(model: onnx.ModelProto) -> None:
    """Put, in place, a pair with the same scale behind every operator that only moves values of a pair.

    Those values are what the pair's integers stand for, and are rounded to themselves; runtimes make integer kernels of
    an operator only where each of its inputs comes straight from a pair.
    """
    import onnx

    graph = model.graph
    pairs = {node.output[0]: list(node.input[1:]) for node in _activations(model)}
    ends = {value.name for value in graph.output}
    known = _constants(model)
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        if node.op_type not in MOVES or not node.input or node.input[0] not in pairs or node.output[0] in ends:
            continue
        if len(node.output) > 1 or not _pads_with_zeros(node, known):
            continue
        made, scale = node.output[0], pairs[node.input[0]]
        quantised, again = f"{made}_quantised", f"{made}_dequantised"
        nodes.append(onnx.helper.make_node("QuantizeLinear", [made, *scale], [quantised], name=f"{quantised}_node"))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [quantised, *scale], [again], name=f"{again}_node"))
        renamed[made] = again
        pairs[again] = scale
    del graph.node[:]
    graph.node.extend(nodes)


def pack_int4(model: onnx.ModelProto) -> int:
    """Store, in place, weights whose integers all fit into four bits as such, where the operator set has them.

    How many were; their dequantised values stay the same. Weights that several operators take are left as they are.
    """
    import onnx
    from onnx import numpy_helper

    if not any(entry.domain in ("", "ai.onnx") and entry.version >= INT4_OPSET for entry in model.opset_import):
        return 0
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    users = Counter(name for node in model.graph.node for name in node.input)
    packed = []
    for node in model.graph.node:
        weight = weights.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.data_type != onnx.TensorProto.INT8 or users[weight.name] > 1:
            continue
        values, scale = numpy_helper.to_array(weight), weights.get(node.input[1])
        zero = weights.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None or not values.size or values.min() < -8 or values.max() > 7:
            continue
        if zero is not None and numpy_helper.to_array(zero).any():
            continue
        weight.CopyFrom(_int4(values, weight.name))
        packed.append(_int4(np.zeros(tuple(scale.dims), np.int8), f"{weight.name}_zero_point"))
        node.input[:] = [*node.input[:2], packed[-1].name]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used or users[tensor.name] == 0]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *packed])
    return len(packed)


def has_integer_activations(model: onnx.ModelProto) -> bool:
    """Whether anything but weights is quantised."""
    return next(_activations(model), None) is not None


def _activations(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every DequantizeLinear behind a QuantizeLinear, one scale for all."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None and maker.op_type == "QuantizeLinear" and list(maker.input[1:]) == list(node.input[1:]):
            yield node


def _pads_with_zeros(node: onnx.NodeProto, known: Mapping[str, Any]) -> bool:
    """Whether what a Pad adds is zero; true of all other operators."""
    if node.op_type != "Pad":
        return True
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    value = node.input[2] if len(node.input) > 2 else ""
    return modes in ([], [b"constant"]) and (not value or (value in known and not np.any(known[value])))


def _constants(model: onnx.ModelProto) -> dict[str, Any]:
    """The small ones, by name."""
    from onnx import numpy_helper

    found = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if not one.dims}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif attribute.name == "value_float":
                found[node.output[0]] = np.float32(attribute.f)
    return found


def _int4(values: np.ndarray[tuple[int, ...], np.dtype[np.int8]], name: str) -> onnx.TensorProto:
    """Two to a byte, the first in the lower half (ONNX IR, packed 4-bit types)."""
    import onnx

    flat = values.reshape(-1).astype(np.uint8) & 0x0F
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
    return onnx.TensorProto(name=name, data_type=onnx.TensorProto.INT4, dims=list(values.shape), raw_data=packed)
