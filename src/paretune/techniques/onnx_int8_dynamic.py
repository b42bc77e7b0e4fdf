"""Dynamic INT8 for ONNX: weights of matrix products in eight bits, activations quantised as they come."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.forms import onnx_optimize

if TYPE_CHECKING:
    import onnx

OPERATORS = ("MatMul", "Gemm", "Attention", "LSTM")
"""Not Conv: its dynamic form, ConvInteger, runs slower than float."""


@dataclass(frozen=True)
class OnnxInt8Dynamic:
    """Post-training dynamic quantisation by ``onnxruntime.quantization``: needs no data.

    Ranges of activations are computed at every inference, which pays where weights are large and batches small:
    linear layers, attention, recurrent cells. Convolutions stay in float.
    """

    name: ClassVar[str] = "onnx_int8_dynamic"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = (
        "there is no data to calibrate on, or matrix products of varying length rule (transformers, LSTMs)"
    )
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19", "onnxruntime": "onnxruntime>=1.23"}
    cost: ClassVar[float] = 1.0
    gain: ClassVar[float] = 1.3

    per_channel: bool = knob(True, "one scale for each column of a weight", choices=(True, False))
    weights: str = knob("signed", "the type of quantised weights", choices=("signed", "unsigned"))
    keep: tuple[str, ...] = knob((), "patterns of node names that stay in float")

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The model with integer matrix products.

        Raises
        ------
        BuildError
            If the graph holds no matrix product or recurrent cell with constant weights, or all are kept in float.
        """
        model = onnx_optimize.fold(onnx_optimize.upgrade(form.load(artifact)))
        kept, idle = onnx_optimize.kept_nodes(model, (*self.keep, *fit.keep))
        fit.unmatched(idle)
        if not any(_constant(node, model) and node.name not in kept for node in model.graph.node):
            why = "every one of them is kept in float" if kept else f"no {', '.join(OPERATORS)} has constant weights"
            raise BuildError(f"there is nothing to quantise: {why}", where=self.name)
        with _quiet():
            quantised = onnx_optimize.tidy(self._quantise(model, kept))
        inputs = form.random_inputs(artifact.inputs, batch=2, seed=fit.seed)
        feed = {spec.name: array for spec, array in zip(artifact.inputs, inputs, strict=True)}
        onnx_optimize.run(quantised, feed)
        notes = tuple(f"{self.name}: no node is named {pattern!r}" for pattern in idle if pattern in self.keep)
        return form.seal(quantised, fit.out, like=artifact, precision="int8", notes=(*artifact.notes, *notes))

    def _quantise(self, model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        # a Gemm is split into MatMul and Add before names are looked at
        excluded = [*kept, *(f"{name}_MatMul" for name in kept)]
        weights = QuantType.QInt8 if self.weights == "signed" else QuantType.QUInt8
        try:
            quantizer = ONNXQuantizer(
                model, self.per_channel, False, QuantizationMode.IntegerOps, False, weights, QuantType.QUInt8, None,
                [], excluded, list(OPERATORS), {"MatMulConstBOnly": True},
            )  # fmt: skip
            quantizer.quantize_model()
        except Exception as error:  # the quantiser raises ValueError, KeyError, RuntimeError and asserts
            raise BuildError(
                f"onnxruntime cannot quantise the graph: {form.first_line(error)}", where=self.name,
                do="keep the node that it names in float",
            ) from error  # fmt: skip
        return quantizer.model.model

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """Per channel, which costs nothing in matrix products."""
        return (cls(),)


def _constant(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    weights = {tensor.name for tensor in model.graph.initializer}
    return node.op_type in OPERATORS and len(node.input) > 1 and node.input[1] in weights


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser logs to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
