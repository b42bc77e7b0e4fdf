"""Static INT8 for ONNX: activation ranges learnt from training data, weights and activations in eight bits."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.data import feeds
from paretune.ask.knob import knob
from paretune.ask.target import Arrays
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.forms import onnx_optimize

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("Relu", "Clip")
_BETWEEN = (
    "Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad", "Reshape",
    "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
OPERATORS: Mapping[str, tuple[str, ...]] = {"products": (*PRODUCTS, *_FUSED), "all": (*PRODUCTS, *_FUSED, *_BETWEEN)}
BATCH = 32
ACTIVATION_BYTES = 256 << 20
"""Calibration batches are cut so that one batch's intermediate results stay below this."""


@dataclass(frozen=True)
class OnnxInt8Static:
    """Post-training static quantisation by ``onnxruntime.quantization`` (Jacob et al., arXiv:1712.05877).

    Weights are signed, symmetric int8 with int32 biases. On CPUs, unsigned activations are what the integer kernels are
    made for: with signed ones onnxruntime falls back to float for most of a network. ``qdq`` writes
    QuantizeLinear/DequantizeLinear pairs, from which OpenVINO, TensorRT and onnxruntime make integer kernels;
    ``qoperator`` writes the integer operators themselves, which only onnxruntime reads. The graph is folded first,
    because a batch normalisation left between convolution and activation would be quantised by itself.
    """

    name: ClassVar[str] = "onnx_int8_static"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = (
        "there is training data to calibrate on and the CPU has integer instructions; the first thing to try"
    )
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19", "onnxruntime": "onnxruntime>=1.23"}
    cost: ClassVar[float] = 3.0
    gain: ClassVar[float] = 2.5

    activation: str = knob("unsigned", "the type of quantised activations", choices=("unsigned", "signed"))
    form: str = knob("qdq", "Q/DQ pairs around float operators, or integer operators", choices=("qdq", "qoperator"))
    per_channel: bool = knob(True, "one scale for each output channel of a weight", choices=(True, False))
    operators: str = knob(
        "all", "what is quantised: convolutions and matrix products, or what lies between them too",
        choices=tuple(OPERATORS),
    )  # fmt: skip
    calibration: str = knob(
        "minmax", "how a range follows from observed values", choices=("minmax", "entropy", "percentile")
    )
    percentile: float = knob(99.99, "share of values inside the range, in per cent", low=50.0, high=100.0)
    samples: int = knob(256, "number of training examples observed", low=1, high=100_000)
    symmetric_activations: bool = knob(False, "zero stands in the middle of the range", choices=(True, False))
    reduce_range: bool = knob(False, "seven-bit weights, for CPUs without VNNI", choices=(True, False))
    keep: tuple[str, ...] = knob((), "patterns of node names that stay in float")

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The quantised model; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data, nothing to quantise, or the data drives the model to NaN or infinity.
        DataError
            If the training data does not fit the model's inputs.
        """
        if fit.train is None:
            raise BuildError("needs training data to learn ranges from", where=self.name, do="give the workload train=")
        fit.progress(0.0, "folding the graph")
        model = onnx_optimize.fold(onnx_optimize.upgrade(form.load(artifact)))
        kept, idle = onnx_optimize.kept_nodes(model, (*self.keep, *fit.keep))
        fit.unmatched(idle)
        if not any(node.op_type in PRODUCTS and node.name not in kept for node in model.graph.node):
            why = "every one of its nodes is kept in float" if kept else f"it holds no {', '.join(PRODUCTS)}"
            raise BuildError(f"there is nothing to quantise: {why}", where=self.name)
        batches = _batches(fit.train.take(self.samples, fit.seed), artifact, _batch(model, artifact))
        with _quiet():
            ranges = self._ranges(model, artifact, batches, fit)
            kept = [*kept, *_endless(model, ranges, kept)]
            fit.progress(0.9, "writing the integer model")
            quantised = onnx_optimize.tidy(self._quantise(model, ranges, kept))
        _check(quantised, artifact, batches[0])
        notes = tuple(f"{self.name}: no node is named {pattern!r}" for pattern in idle if pattern in self.keep)
        return form.seal(quantised, fit.out, like=artifact, precision="int8", notes=(*artifact.notes, *notes))

    def _ranges(self, model: onnx.ModelProto, artifact: Artifact, batches: list[Arrays], fit: Fit) -> Any:
        """onnxruntime's own collectors, fed batch by batch so that one batch's results are in memory at a time."""
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        method = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }[self.calibration]
        options: dict[str, Any] = {"symmetric": self.symmetric_activations}
        if self.calibration == "percentile":
            options["percentile"] = self.percentile
        given, watched = fit.scratch / "calibrated.onnx", fit.scratch / "watched.onnx"
        form.write(model, given)
        collector = create_calibrator(
            given, list(OPERATORS[self.operators]), str(watched), method, extra_options=options
        )
        names = [spec.name for spec in artifact.inputs]
        # in place of the collector's own session, which would take every core of the machine
        collector.infer_session = form.session(watched, form.cpus())
        try:
            for number, batch in enumerate(batches):
                fit.progress(0.1 + 0.8 * number / len(batches), "observing the training examples")
                collector.collect_data(_reader(dict(zip(names, batch, strict=True))))
            return collector.compute_data()
        except Exception as error:  # a histogram of infinite values, or a runtime error of the model itself
            raise BuildError(
                f"the ranges cannot be learnt: {form.first_line(error)}", where=self.name, do="try calibration=minmax"
            ) from error
        finally:
            for path in (given, watched):
                path.unlink(missing_ok=True)

    def _quantise(self, model: onnx.ModelProto, ranges: Any, kept: list[str]) -> onnx.ModelProto:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        activations = QuantType.QUInt8 if self.activation == "unsigned" else QuantType.QInt8
        options = {
            "WeightSymmetric": True,
            "ActivationSymmetric": self.symmetric_activations,
            "MatMulConstBOnly": self.operators == "products",
        }
        common: tuple[Any, ...] = (
            QuantType.QInt8,
            activations,
            ranges,
            [],
            kept,
            list(OPERATORS[self.operators]),
            options,
        )
        flags = (self.per_channel, self.reduce_range)
        try:
            quantizer = (
                QDQQuantizer(model, *flags, *common)
                if self.form == "qdq"
                else ONNXQuantizer(model, *flags, QuantizationMode.QLinearOps, True, *common)
            )
            quantizer.quantize_model()
        except Exception as error:  # the quantiser raises ValueError, KeyError, RuntimeError and asserts
            raise BuildError(
                f"onnxruntime cannot quantise the graph: {form.first_line(error)}", where=self.name,
                do="keep the node that it names in float, or try operators=products",
            ) from error  # fmt: skip
        return quantizer.model.model

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """Unsigned variants only: signed ones ran slower than float on every network tried."""
        reduce = _saturates()
        return (
            cls(reduce_range=reduce),
            cls(operators="products", reduce_range=reduce),
            cls(form="qoperator", reduce_range=reduce),
            cls(calibration="percentile", reduce_range=reduce),
            cls(calibration="entropy", reduce_range=reduce),
        )


def _batch(model: onnx.ModelProto, artifact: Artifact) -> int:
    """The fixed batch size of the model, or as many examples as :data:`ACTIVATION_BYTES` allow."""
    if artifact.fixed_batch is not None:
        return artifact.fixed_batch
    total = 0
    for value in model.graph.value_info:
        axes = value.type.tensor_type.shape.dim
        total += 4 * math.prod(axis.dim_value or (1 if place == 0 else 64) for place, axis in enumerate(axes))
    return max(1, min(BATCH, ACTIVATION_BYTES // max(total, 1)))


def _batches(split: Any, artifact: Artifact, batch: int) -> list[Arrays]:
    if artifact.fixed_batch is not None:
        split = split.head(len(split) // batch * batch)
    if len(split) == 0:
        raise BuildError(f"the model takes batches of {batch} and there are fewer training examples", where="train")
    return list(feeds(split, artifact, batch))


def _reader(feed: dict[str, Any]) -> Any:
    """A reader of one batch, as onnxruntime's collectors want it."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class OneBatch(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left = [feed]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    return OneBatch()


def _endless(model: onnx.ModelProto, ranges: Any, kept: list[str]) -> list[str]:
    """Nodes around tensors that hold infinity, as masks of attention do: they stay in float, their ranges are emptied.

    Raises
    ------
    BuildError
        If such a tensor goes into or comes out of a convolution or matrix product.
    """
    from onnxruntime.quantization.calibrate import TensorData

    endless = {name for name, data in ranges.items() if not all(np.isfinite(end).all() for end in data.range_value)}
    around = [node for node in model.graph.node if endless.intersection((*node.input, *node.output))]
    for node in around:
        if node.op_type in PRODUCTS and node.name not in kept:
            name = min(endless.intersection((*node.input, *node.output)))
            raise BuildError("takes values that are not finite on the training data", where=f"tensor {name}")
    for name in endless:
        ranges[name] = TensorData(lowest=np.float32(0), highest=np.float32(0))
    return [node.name for node in around]


def _check(model: onnx.ModelProto, artifact: Artifact, batch: Arrays) -> None:
    """Refuse a model without integer operators, or one that does not answer a training batch with finite numbers."""
    if not any(node.op_type.startswith(("QLinear", "QGemm", "DequantizeLinear")) for node in model.graph.node):
        raise BuildError("onnxruntime quantised nothing in this graph", where=OnnxInt8Static.name)
    answers = onnx_optimize.run(model, {spec.name: array for spec, array in zip(artifact.inputs, batch, strict=True)})
    for name, value in answers.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BuildError("is not finite after quantisation", where=f"output {name}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser prints, logs to the root logger, and divides by zero in empty histograms."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@cache
def _saturates() -> bool:
    """Whether the CPU adds products of eight-bit numbers in sixteen bits, where they overflow (AVX2 without VNNI)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not any("vnni" in flag or flag == "amx_int8" for flag in flags)
