"""Carry an ONNX model to OpenVINO's own form, through OpenVINO's ONNX frontend."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.data import feeds
from paretune.ask.knob import knob
from paretune.ask.target import Arrays
from paretune.build.technique import Fit
from paretune.errors import BuildError, ParetuneError
from paretune.forms import openvino as form

# Of the operator form, per-channel QLinearConv is misread (its scales are laid along another axis), QGemm is unknown,
# and MatMulInteger runs in float: slower than the model that was not quantised.
REFUSED = frozenset(
    ["ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger"]
)
REFUSED_PREFIXES = ("QLinear", "QGemm", "QAttention", "MatMulIntegerTo")

# Greatest relative L2 distance between OpenVINO's answers and onnxruntime's. Two integer runtimes round differently.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1, "int8": 2.5e-1}


@dataclass(frozen=True)
class OnnxToOpenvino:
    """ONNX → OpenVINO IR. The arithmetic is that of the ONNX model: Q/DQ pairs become integer kernels.

    The result is run once against onnxruntime, in FP32, on two seeded random examples.
    """

    name: ClassVar[str] = "onnx_to_openvino"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "openvino"
    kind: ClassVar[str] = "convert"
    use: ClassVar[str] = "OpenVINO is to run the model: most often the fastest on x86 at batch sizes above one"
    needs: ClassVar[Mapping[str, str]] = {
        "openvino": "openvino>=2025.3",
        "onnx": "onnx>=1.19",
        "onnxruntime": "onnxruntime>=1.23",
    }
    cost: ClassVar[float] = 2.0
    gain: ClassVar[float] = 1.3

    weights: str = knob("fp32", "how float weights are stored; fp16 halves the file", choices=("fp32", "fp16"))

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """Convert, save, and check the answers of what was saved.

        Raises
        ------
        BuildError
            If an operator cannot be converted (it is named), would run slower than in float, or the answers differ.
        """
        path = artifact.path(".onnx")
        fit.progress(0.0, "converting to OpenVINO")
        named = _names_of_sound(artifact)
        model = _convert(path)
        sealed = form.seal(model, fit.out, artifact, compress_to_fp16=self.weights == "fp16", named=named)
        del model
        fit.progress(0.6, "comparing with onnxruntime")
        # behind weights in integers, OpenVINO rounds the activations of matrix products by itself
        rough = artifact.precision == "fp32" and (self.weights == "fp16" or _has_integer_weights(artifact))
        _compare(artifact, sealed, fit, TOLERANCE["fp16" if rough else artifact.precision])
        return sealed

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """Weights as they are first; FP16 weights answer a limit on the size."""
        return cls(), cls(weights="fp16")


def _names_of_sound(artifact: Artifact) -> set[str]:
    """The names that the model's author gave; raises :class:`BuildError` where its operators would not run well."""
    from paretune.forms import onnx

    graphs = list(onnx.graphs(onnx.load(artifact).graph))
    kinds = {node.op_type for graph in graphs for node in graph.node}
    found = sorted(kind for kind in kinds if kind in REFUSED or kind.startswith(REFUSED_PREFIXES))
    if found:
        raise BuildError(
            f"OpenVINO has no sound integer kernels for the operators {', '.join(found)}",
            where=OnnxToOpenvino.name,
            do="quantise in Q/DQ form (static), or convert the float model and quantise it there",
        )
    weights = {tensor.name for graph in graphs for tensor in graph.initializer}
    return weights | {name for graph in graphs for node in graph.node for name in (node.name, *node.output)}


def _has_integer_weights(artifact: Artifact) -> bool:
    from paretune.forms import onnx

    return any(node.op_type == "DequantizeLinear" for node in onnx.load(artifact).graph.node)


def _convert(path: Path) -> Any:
    """An ``openvino.Model`` with constants folded."""
    core = form.core()
    # openvino.convert_model does the same two steps, and sends a usage event between them
    from openvino._offline_transformations import apply_moc_transformations

    try:
        model = core.read_model(path)
        apply_moc_transformations(model, cf=True)
    except RuntimeError as error:
        raise BuildError(
            f"OpenVINO's ONNX frontend cannot convert {_blame(str(error))}", where=OnnxToOpenvino.name,
            do="run this model on onnxruntime",
        ) from error  # fmt: skip
    return model


def _blame(text: str) -> str:
    """The operators that a frontend error names, else its telling line."""
    lists = re.findall(r"(?:No conversion rule found for operations|Conversion is failed for): *([^\n]+)", text)
    named = list(dict.fromkeys(name.strip() for found in lists for name in found.split(",")))
    return f"the operator {', '.join(named)}" if named else f"the model: {form.reason(RuntimeError(text))}"


def _compare(before: Artifact, after: Artifact, fit: Fit, limit: float) -> None:
    inputs, wanted = _reference(before, fit)
    if inputs is None:
        return  # onnxruntime refuses the only examples there are; measuring will tell
    compiled = form.core().compile_model(
        form.load(after), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    )
    places = form.positions(compiled.inputs, [spec.name for spec in after.inputs])
    try:
        answers = compiled(dict(zip(places, inputs, strict=True)))
    except RuntimeError as error:
        what = f"the converted model does not run: {form.reason(error)}"
        raise BuildError(what, where=OnnxToOpenvino.name, do="run this model on onnxruntime") from error
    outputs = form.positions(compiled.outputs, [spec.name for spec in after.outputs])
    for spec, place, want in zip(after.outputs, outputs, wanted, strict=True):
        gap = distance(answers[place], want)
        if gap > limit:
            raise BuildError(
                f"OpenVINO answers differently from onnxruntime at output {spec.name}: relative distance {gap:.2g}, "
                f"allowed {limit:g}", where=OnnxToOpenvino.name, do="run this model on onnxruntime",
            )  # fmt: skip


def distance(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """Relative L2 distance; for labels, the share of those that differ. Infinite when shapes or NaNs differ."""
    if got.shape != want.shape:
        return float("inf")
    if want.dtype.kind not in "fc":
        # one label may flip where two scores are nearly alike
        return float(np.mean(got != want)) if want.size > 10 else 0.0
    got, want = got.astype(np.float64), want.astype(np.float64)
    if not np.array_equal(np.isfinite(got), np.isfinite(want)):
        return float("inf")
    finite = np.isfinite(want)
    floor = 1e-5 * np.sqrt(max(want.size, 1))
    return float(np.linalg.norm((got - want)[finite]) / max(float(np.linalg.norm(want[finite])), floor))


def _reference(artifact: Artifact, fit: Fit) -> tuple[Arrays | None, list[np.ndarray[Any, Any]]]:
    """Inputs that onnxruntime takes, and its answers: seeded random ones, else the first training examples."""
    from paretune.forms import onnx

    session = onnx.session(artifact.path(".onnx"), 1)
    names = [spec.name for spec in artifact.outputs]
    candidates: list[Arrays] = [onnx.random_inputs(artifact.inputs, 2, fit.seed)]
    if fit.train is not None:
        with contextlib.suppress(ParetuneError):
            candidates.append(next(feeds(fit.train.head(2), artifact, 2)))
    for inputs in candidates:
        feed = {spec.name: array for spec, array in zip(artifact.inputs, inputs, strict=True)}
        try:
            return inputs, list(session.run(names, feed))
        except Exception:  # onnxruntime's errors have no common base; the next examples may fit
            continue
    return None, []
