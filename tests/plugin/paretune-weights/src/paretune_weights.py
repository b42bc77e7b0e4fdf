"""Weights stored in INT8, arithmetic as it was: a quarter of the size, for a model whose budget is its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Self

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError

_WEIGHTED = {"Conv": 0, "Gemm": None, "MatMul": 1}


@dataclass(frozen=True)
class OnnxWeightsInt8:
    """Every large weight becomes an INT8 initialiser and a DequantizeLinear with one symmetric scale a channel."""

    name: ClassVar[str] = "onnx_weights_int8"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = "the weights must shrink"
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19"}
    cost: ClassVar[float] = 1.0

    smallest: int = knob(256, "weights with fewer elements stay as they are", low=1, high=1_000_000)

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """Raises :class:`BuildError` when no weight is large enough."""
        import onnx

        from paretune.forms import onnx as form

        model = form.load(artifact)
        names = [node.name for node in model.graph.node]
        fit.unmatched([pattern for pattern in fit.keep if not any(fnmatch(name, pattern) for name in names)])
        weights = {initializer.name: initializer for initializer in model.graph.initializer}
        changed: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            axis = self._axis(node)
            name = node.input[1] if len(node.input) > 1 else ""
            kept = any(fnmatch(node.name, pattern) for pattern in fit.keep)
            if axis is None or kept or name not in weights or weights[name].data_type != onnx.TensorProto.FLOAT:
                continue
            if name not in changed and int(np.prod(weights[name].dims)) >= self.smallest:
                changed[name] = list(self._replace(model.graph, weights[name], axis))
            if name in changed:
                node.input[1] = f"{name}_float"
        if not changed:
            raise BuildError(f"no weight has {self.smallest} elements", where=self.name, do="lower the knob smallest")
        nodes = [node for added in changed.values() for node in added] + list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return form.seal(model, fit.out, artifact, precision=artifact.precision)

    def _axis(self, node: Any) -> int | None:
        """The axis of the output channels in the weight of a node; None for other operators."""
        if node.op_type == "Gemm":
            return 0 if any(item.name == "transB" and item.i for item in node.attribute) else 1
        return _WEIGHTED.get(node.op_type)

    def _replace(self, graph: Any, weight: Any, axis: int) -> Iterator[Any]:
        import onnx
        from onnx import numpy_helper

        values = numpy_helper.to_array(weight)
        others = tuple(number for number in range(values.ndim) if number != axis % values.ndim)
        scale = np.maximum(np.abs(values).max(axis=others), 1e-12).astype(np.float32) / 127
        shape = [-1 if number == axis else 1 for number in range(values.ndim)]
        rounded = np.rint(values / scale.reshape(shape)).astype(np.int8)
        graph.initializer.remove(weight)
        for name, array in ((f"{weight.name}_int8", rounded), (f"{weight.name}_scale", scale)):
            graph.initializer.append(numpy_helper.from_array(array, name))
        yield onnx.helper.make_node(
            "DequantizeLinear",
            [f"{weight.name}_int8", f"{weight.name}_scale"],
            [f"{weight.name}_float"],
            name=f"{weight.name}_dequantize",
            axis=axis,
        )

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """The default alone."""
        return (cls(),)
