"""ONNX to OpenVINO: same answers, smaller weights, integer kernels kept, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as onnx_form
from paretune.forms import openvino as form
from paretune.techniques.onnx_to_openvino import OnnxToOpenvino, distance

RNG = np.random.default_rng(3)


def sealed(root: Path, nodes: list[Any], weights: dict[str, Any], **facts: Any) -> Artifact:
    """(batch, 3, 8, 8) "image" → "scores", through the nodes."""
    graph = helper.make_graph(
        nodes,
        "sample",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    root.mkdir(exist_ok=True)
    return onnx_form.seal(model, root, **facts)


def convolution(root: Path) -> Artifact:
    weights = {"kernel": RNG.standard_normal((64, 3, 3, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["raw"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["raw"], ["scores"], name="last"),
    ]
    return sealed(root, nodes, weights)


def quantised(root: Path) -> Artifact:
    """A convolution between Q/DQ pairs, weights per channel."""
    weights = {
        "kernel": RNG.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8),
        "kernel_scale": np.full(16, 0.02, np.float32),
        "kernel_zero": np.zeros(16, np.int8),
        "scale": np.float32(0.04),
        "zero": np.uint8(128),
        "out_scale": np.float32(0.2),
        "out_zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "out_zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "out_zero"], ["scores"]),
    ]
    return sealed(root, nodes, weights, precision="int8")


def apply(technique: OnnxToOpenvino, artifact: Artifact, scratch: Path) -> Artifact:
    return technique.apply(artifact, Fit(None, None, artifact, 0, scratch))


def test_the_batch_stays_free_and_the_answers_stay_the_same(tmp_path: Path) -> None:
    before = convolution(tmp_path / "onnx")
    after = apply(OnnxToOpenvino(), before, tmp_path)
    assert after.inputs[0].shape == ("batch", 3, 8, 8)
    compiled = form.core().compile_model(form.load(after), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnx_form.session(before.path(".onnx"), 1)
    for batch in (1, 5):
        image = RNG.standard_normal((batch, 3, 8, 8)).astype(np.float32)
        want = session.run(["scores"], {"image": image})[0]
        assert np.allclose(compiled([image])[0], want, atol=1e-4)


def test_fp16_weights_halve_the_file(tmp_path: Path) -> None:
    before = convolution(tmp_path / "onnx")
    whole = apply(OnnxToOpenvino(), before, tmp_path / "a")
    half = apply(OnnxToOpenvino(weights="fp16"), before, tmp_path / "b")
    assert half.path(".bin").stat().st_size * 2 <= whole.path(".bin").stat().st_size + 64
    assert half.precision == "fp32"


def test_conversion_is_pure_in_one_process(tmp_path: Path) -> None:
    before = convolution(tmp_path / "onnx")
    assert (
        apply(OnnxToOpenvino(), before, tmp_path / "a").digest == apply(OnnxToOpenvino(), before, tmp_path / "b").digest
    )


def test_qdq_pairs_become_integer_kernels(tmp_path: Path) -> None:
    after = apply(OnnxToOpenvino(), quantised(tmp_path / "onnx"), tmp_path)
    assert after.precision == "int8"
    compiled = form.core().compile_model(form.load(after), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = {
        str(op.get_rt_info()["layerType"].value): str(op.get_rt_info()["runtimePrecision"].value)
        for op in compiled.get_runtime_model().get_ops()
    }
    assert ran["Convolution"] in {"u8", "i8"}


def test_operator_form_is_refused_by_name(tmp_path: Path) -> None:
    weights = {
        "scale": np.float32(0.04),
        "zero": np.uint8(128),
        "kernel": RNG.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8),
        "kernel_scale": np.linspace(0.01, 0.1, 3).astype(np.float32),
        "kernel_zero": np.zeros(3, np.int8),
    }
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", *pair], ["q"]),
        helper.make_node("QLinearConv", ["q", *pair, "kernel", "kernel_scale", "kernel_zero", *pair], ["y"]),
        helper.make_node("DequantizeLinear", ["y", *pair], ["scores"]),
    ]
    with pytest.raises(BuildError, match=r"QLinearConv.*Q/DQ"):
        apply(OnnxToOpenvino(), sealed(tmp_path / "onnx", nodes, weights, precision="int8"), tmp_path)


def test_an_operator_without_conversion_is_named_in_one_line(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["image"], ["scores"], name="determinant")]
    with pytest.raises(BuildError, match=r"operator .*Det") as caught:
        apply(OnnxToOpenvino(), sealed(tmp_path / "onnx", nodes, {}), tmp_path)
    assert "\n" not in str(caught.value)


def test_different_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = convolution(tmp_path / "onnx")
    other = convolution(tmp_path / "other")  # other weights
    wrong = form.core().read_model(other.path(".onnx"))
    monkeypatch.setattr("paretune.techniques.onnx_to_openvino._convert", lambda path: wrong)
    with pytest.raises(BuildError, match=r"answers differently .* output scores"):
        apply(OnnxToOpenvino(), before, tmp_path)


def test_distance_is_relative_and_counts_labels() -> None:
    want = np.array([3.0, 4.0], np.float32)
    assert distance(want * np.float32(1.1), want) == pytest.approx(0.1, rel=1e-3)
    assert distance(want[:1], want) == np.inf
    assert distance(np.array([np.nan, 4.0]), want) == np.inf
    labels = np.arange(20)
    assert distance(np.where(labels == 3, 0, labels), labels) == pytest.approx(0.05)
