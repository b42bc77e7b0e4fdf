"""Half precision for ONNX: half the bytes; the arithmetic follows where the runtime has it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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

LARGEST = float(np.finfo(np.float16).max)
MASK = 1e30
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OnnxFp16:
    """Weights and arithmetic in IEEE half precision, by onnxruntime's own converter.

    On CPUs it saves size, not time: onnxruntime casts back to float32 around most kernels.
    """

    name: ClassVar[str] = "onnx_fp16"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = "the file must halve, or a GPU runs it; on most CPUs it gains no time"
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19", "onnxruntime": "onnxruntime>=1.23"}
    cost: ClassVar[float] = 1.0

    keep_io: bool = knob(True, "inputs and outputs stay in float32", choices=(True, False))
    keep: tuple[str, ...] = knob((), "patterns of node names that stay in float32")

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The model in half precision.

        Raises
        ------
        BuildError
            If a weight or a value on the way is too large for half precision, or there is no float32 to convert.
        """
        model = onnx_optimize.fold(form.load(artifact))
        _refuse_large(model)
        kept, idle = onnx_optimize.kept_nodes(model, (*self.keep, *fit.keep))
        fit.unmatched(idle)
        kept += _turned(model)
        batch = _example(artifact, fit)
        feed = {spec.name: array for spec, array in zip(artifact.inputs, batch, strict=True)}
        _refuse_overflow(model, feed, kept)
        converted = onnx_optimize.tidy(self._convert(model, kept))
        onnx_optimize.run(converted, {value.name: _cast(feed[value.name], value) for value in converted.graph.input})
        notes = tuple(f"{self.name}: no node is named {pattern!r}" for pattern in idle if pattern in self.keep)
        return form.seal(converted, fit.out, like=artifact, precision="fp16", notes=(*artifact.notes, *notes))

    def _convert(self, model: onnx.ModelProto, kept: list[str]) -> onnx.ModelProto:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        work = onnx.ModelProto()
        work.CopyFrom(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one for every weight that underflows to the smallest number
                half = convert_float_to_float16(work, keep_io_types=self.keep_io, node_block_list=kept)
        except Exception as error:  # the converter raises plain Exceptions
            raise BuildError(f"cannot be converted to half precision: {form.first_line(error)}") from error
        # where a tensor feeds several kept nodes, the converter writes the same Cast once for each
        casts = {node.output[0]: place for place, node in enumerate(half.graph.node) if node.op_type == "Cast"}
        for place in range(len(half.graph.node) - 1, -1, -1):
            node = half.graph.node[place]
            if node.op_type == "Cast" and casts[node.output[0]] != place:
                del half.graph.node[place]
        return half

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """One way."""
        return (cls(),)


def _example(artifact: Artifact, fit: Fit) -> Arrays:
    """A few training examples, which overflow where real data does; random inputs when there are none."""
    batch = artifact.fixed_batch or 8
    if fit.train is not None and (artifact.fixed_batch is None or len(fit.train) >= batch):
        return next(feeds(fit.train.take(batch, fit.seed), artifact, batch))
    return form.random_inputs(artifact.inputs, batch, fit.seed)


def _cast(array: Array, value: onnx.ValueInfoProto) -> Array:
    import onnx

    half = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    return array.astype(np.float16) if half else array


def _refuse_overflow(model: onnx.ModelProto, feed: Mapping[str, Array], kept: list[str]) -> None:
    """Look at every intermediate value in float32: a CPU runtime computes in float32 and would hide an overflow."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    halved = {name for node in model.graph.node if node.name not in kept for name in (*node.input, *node.output)}
    known = {output.name for output in model.graph.output}
    for value in model.graph.value_info:
        if value.name in halved - known and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            watched.graph.output.append(value)
    values = {**feed, **onnx_optimize.run(watched, feed)}
    for name in (*feed, *(output for node in model.graph.node for output in node.output)):
        known_float = name in values and name in halved and values[name].dtype.kind == "f"
        if known_float and (large := _largest(values[name])) > LARGEST:
            raise BuildError(
                f"reaches {large:.3g}, and half precision ends at {LARGEST:.0f}", where=f"tensor {name}",
                do="keep the nodes around it in float32",
            )  # fmt: skip


def _largest(values: Array) -> float:
    """The largest magnitude, but for infinity and float32's lowest number: both fill masks, and convert as intended."""
    size = np.abs(values)
    return float(np.max(size, initial=0.0, where=np.isfinite(size) & (size < MASK)))


def _turned(model: onnx.ModelProto) -> list[str]:
    """Matrix products of a Transpose, and the Transpose: they stay in float32.

    onnxruntime 1.31 fuses the two at its default graph level and, where they are in half precision, ends the process
    with a segmentation fault (``MatmulTransposeFusion`` on the CPU).
    """
    turns = {node.output[0]: node.name for node in model.graph.node if node.op_type == "Transpose"}
    names: list[str] = []
    for node in model.graph.node:
        fed = [turns[name] for name in node.input if name in turns] if node.op_type == "MatMul" else []
        names += [node.name, *fed] if fed else []
    return sorted(set(names))


def _refuse_large(model: onnx.ModelProto) -> None:
    import onnx

    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise BuildError("holds no float32 weights, so there is nothing to convert", where=OnnxFp16.name)
    for tensor in floats:
        large = _largest(onnx.numpy_helper.to_array(tensor))
        if large > LARGEST:
            raise BuildError(
                f"holds {large:.3g}, and half precision ends at {LARGEST:.0f}", where=f"weight {tensor.name}"
            )
