"""Sealing and loading OpenVINO models: names, order, bytes, and no word to the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.errors import ArtifactError
from paretune.forms import openvino as form

LIKE = Artifact(
    "onnx",
    Path("unused"),
    {},
    (TensorSpec("right", "float32", ("batch", 3)), TensorSpec("left", "float32", ("batch", 3))),
    (TensorSpec("difference", "float32", ("batch", 3)), TensorSpec("sum", "float32", ("batch", 3))),
    output_kind="tuple",
    parameters=3,
    macs=9,
    notes=("a finding",),
)


def arithmetic(*, named: bool = True) -> Any:
    """(left, right) → (2·left + right, left − right), its inputs in the other order than in LIKE."""
    openvino = form.framework()
    ops = openvino.opset13
    left, right = ops.parameter([-1, 3], np.float32, name="left"), ops.parameter([-1, 3], np.float32, name="right")
    double = ops.multiply(left, ops.constant(np.full((1, 3), 2, np.float32)))
    outputs = {"sum": ops.add(double, right), "difference": ops.subtract(left, right)}
    if named:
        for name, op in {"left": left, "right": right, **outputs}.items():
            op.output(0).get_tensor().set_names({name})
    return openvino.Model(list(outputs.values()), [left, right], "arithmetic")


def answers(artifact: Artifact, right: float, left: float) -> list[np.ndarray[Any, Any]]:
    compiled = form.core().compile_model(form.load(artifact), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = form.positions(compiled.inputs, [spec.name for spec in artifact.inputs])
    outputs = form.positions(compiled.outputs, [spec.name for spec in artifact.outputs])
    values = (np.full((2, 3), right, np.float32), np.full((2, 3), left, np.float32))
    result = compiled(dict(zip(inputs, values, strict=True)))
    return [result[place] for place in outputs]


def test_a_sealed_model_answers_in_the_order_of_its_specs(tmp_path: Path) -> None:
    sealed = form.seal(arithmetic(), tmp_path, LIKE, compress_to_fp16=False)
    difference, total = answers(Artifact.open(tmp_path), right=1, left=10)
    assert np.all(difference == 9)
    assert np.all(total == 21)
    assert sealed.form == "openvino"
    assert sorted(sealed.files) == ["model.bin", "model.xml"]


def test_facts_are_kept_unless_given(tmp_path: Path) -> None:
    sealed = form.seal(arithmetic(), tmp_path, LIKE, compress_to_fp16=False, precision="int8")
    assert (sealed.parameters, sealed.macs, sealed.notes, sealed.output_kind) == (3, 9, ("a finding",), "tuple")
    assert sealed.precision == "int8"
    assert sealed.inputs == LIKE.inputs


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    sealed = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        sealed.append(form.seal(arithmetic(), tmp_path / name, LIKE, compress_to_fp16=False))
    assert sealed[0].files == sealed[1].files


def test_made_up_names_are_replaced_and_the_models_own_are_kept(tmp_path: Path) -> None:
    for folder, named in (("own", {"MatMul_77"}), ("made-up", set())):
        model = arithmetic()
        model.get_ordered_ops()[-1].input_values()[0].get_node().set_friendly_name("MatMul_77")
        (tmp_path / folder).mkdir()
        sealed = form.seal(model, tmp_path / folder, LIKE, compress_to_fp16=False, named=named)
        names = {op.get_friendly_name() for op in form.load(sealed).get_ops()}
        assert ("MatMul_77" in names) == bool(named)


def test_names_lost_in_conversion_are_given_by_position(tmp_path: Path) -> None:
    swapped = Artifact("onnx", tmp_path, {}, LIKE.inputs[::-1], LIKE.outputs[::-1])
    sealed = form.seal(arithmetic(named=False), tmp_path, swapped, compress_to_fp16=False)
    total, difference = answers(sealed, right=10, left=1)  # the first spec is "left" here
    assert np.all(total == 21)
    assert np.all(difference == 9)


def test_no_versions_of_tools_and_no_paths_are_written(tmp_path: Path) -> None:
    form.seal(arithmetic(), tmp_path, LIKE, compress_to_fp16=False)
    text = (tmp_path / "model.xml").read_text()
    assert "rt_info" not in text.split("</edges>")[1]
    assert form.framework().__version__ not in text
    assert str(tmp_path) not in text


def test_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    like = Artifact("onnx", tmp_path, {}, LIKE.inputs, LIKE.outputs[:1])
    with pytest.raises(ArtifactError, match="2 outputs and the original 1"):
        form.seal(arithmetic(), tmp_path, like, compress_to_fp16=False)


def test_a_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    sealed = form.seal(arithmetic(), tmp_path, LIKE, compress_to_fp16=False)
    (tmp_path / "model.xml").write_text("<net")
    with pytest.raises(ArtifactError, match="OpenVINO cannot read it") as caught:
        form.load(sealed)
    assert "\n" not in str(caught.value)


def test_an_unknown_port_is_named() -> None:
    with pytest.raises(ArtifactError, match="'middle'"):
        form.positions(arithmetic().inputs, ["middle"])


def test_the_cpu_computes_in_fp32() -> None:
    assert "FP32" in form.capabilities()


def test_importing_does_not_load_the_telemetry_package() -> None:
    code = (
        "import sys; from paretune.forms import openvino as form; form.core();"
        "assert 'openvino' in sys.modules; assert 'openvino_telemetry' not in sys.modules;"
        "from openvino.tools.ovc import telemetry_utils as used; print(used.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("telemetry_stub")
