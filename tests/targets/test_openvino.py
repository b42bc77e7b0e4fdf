"""The OpenVINO target: precision, static and free shapes, several callers, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.target import Settings
from paretune.errors import ArtifactError, MeasureError
from paretune.forms import openvino as form
from paretune.targets.openvino import Openvino
from paretune.testing import samples
from paretune.testing.targets import check_callers

SETTINGS = Settings(threads=1, batch=4)


def compiled_with(target: Openvino, settings: Settings = SETTINGS) -> dict[str, object]:
    with target.open(samples.artifact("openvino"), settings) as runner:
        compiled = runner._static or runner._any  # type: ignore[attr-defined]
        names = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "INFERENCE_NUM_THREADS")
        return {name: compiled.get_property(name) for name in names}


def test_fp32_is_the_default_and_the_threads_are_those_asked_for() -> None:
    properties = compiled_with(Openvino())
    assert "float32" in str(properties["INFERENCE_PRECISION_HINT"])
    assert properties["INFERENCE_NUM_THREADS"] == 1
    assert "LATENCY" in str(properties["PERFORMANCE_HINT"])


@pytest.mark.skipif("BF16" not in form.capabilities(), reason="this CPU has no BF16 arithmetic")
def test_bf16_is_used_when_asked_for() -> None:
    assert "bfloat16" in str(compiled_with(Openvino(precision="bf16"))["INFERENCE_PRECISION_HINT"])
    assert Openvino(precision="bf16") in Openvino.light(False)


def test_a_precision_that_the_cpu_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "capabilities", lambda: frozenset(["FP32"]))
    assert "BF16" in (Openvino(precision="bf16").unavailable() or "")
    assert "FP16" in (Openvino(precision="f16").unavailable() or "")
    assert Openvino(precision="auto").unavailable() is None
    assert Openvino.light(False) == (Openvino(),)


def test_light_proposes_several_callers_only_for_throughput() -> None:
    assert all(one.hint == "latency" for one in Openvino.light(False))
    assert any(one.hint == "throughput" for one in Openvino.light(True))


def test_another_batch_than_the_static_one_is_answered_by_a_free_model() -> None:
    artifact = samples.artifact("openvino")
    inputs = samples.inputs(artifact, 6)[0]
    with Openvino().open(artifact, SETTINGS) as static, Openvino(shape="dynamic").open(artifact, SETTINGS) as free:
        assert not static._static.inputs[0].partial_shape.is_dynamic  # type: ignore[attr-defined]
        assert static._any is None  # type: ignore[attr-defined]
        assert free._static is None  # type: ignore[attr-defined]
        for part in (inputs[:4], inputs[4:]):
            assert np.allclose(static.infer((part,))[0], free.infer((part,))[0], atol=1e-5)
        assert static._any is not None  # type: ignore[attr-defined]


def test_a_throughput_hint_says_how_many_callers_it_wants() -> None:
    artifact = samples.artifact("openvino")
    with Openvino(hint="throughput").open(artifact, Settings(threads=2, batch=4)) as runner:
        assert runner.callers >= 1  # type: ignore[attr-defined]
        check_callers(artifact, runner)


def test_inputs_and_outputs_follow_the_specs_not_the_graph(tmp_path: Path) -> None:
    openvino = form.framework()
    ops = openvino.opset13
    left, right = ops.parameter([-1, 2], np.float32), ops.parameter([-1, 2], np.float32)
    total, difference = ops.add(left, right), ops.subtract(left, right)
    for name, op in {"left": left, "right": right, "total": total, "difference": difference}.items():
        op.output(0).get_tensor().set_names({name})
    specs = [TensorSpec(name, "float32", ("batch", 2)) for name in ("right", "left", "difference", "total")]
    like = Artifact("openvino", tmp_path, {}, tuple(specs[:2]), tuple(specs[2:]))
    model = openvino.Model([total, difference], [left, right])
    artifact = form.seal(model, tmp_path, like, compress_to_fp16=False)
    ones = np.ones((4, 2), np.float32)
    for shape in ("static", "dynamic"):
        with Openvino(shape=shape).open(artifact, SETTINGS) as runner:
            first, second = runner.infer((ones, 10 * ones))
        assert np.all(first == 9)
        assert np.all(second == 11)


def test_wrong_inputs_are_one_clear_line() -> None:
    artifact = samples.artifact("openvino")
    with Openvino().open(artifact, SETTINGS) as runner, pytest.raises(MeasureError, match="OpenVINO") as caught:
        runner.infer((np.zeros((4, 5, 12, 12), np.float32),))
    assert "\n" not in str(caught.value)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    artifact = samples.artifact("openvino")
    renamed = replace(artifact, inputs=(replace(artifact.inputs[0], name="picture"),))
    with pytest.raises(ArtifactError, match="'picture'"), Openvino().open(renamed, SETTINGS):
        pass


@pytest.mark.parametrize("layout", ["read-only", "byte-swapped", "misaligned", "fortran"])
def test_arrays_may_lie_in_memory_as_they_like(layout: str) -> None:
    artifact = samples.artifact("openvino")
    usual = samples.inputs(artifact, 4)[0]
    odd = np.asfortranarray(usual) if layout == "fortran" else usual.copy()
    if layout == "read-only":
        odd.flags.writeable = False
    elif layout == "byte-swapped":
        odd = usual.astype(usual.dtype.newbyteorder())
    elif layout == "misaligned":
        odd = np.zeros(usual.nbytes + 1, np.uint8)[1:].view(usual.dtype).reshape(usual.shape)
        odd[...] = usual
    with Openvino().open(artifact, SETTINGS) as runner:
        assert np.array_equal(runner.infer((odd,))[0], runner.infer((usual.copy(),))[0])
