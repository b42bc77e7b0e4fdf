"""INT8 by NNCF: integer kernels, small error, patterns kept in float, quiet, and clear refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.errors import BuildError
from paretune.forms import openvino as form
from paretune.techniques.openvino_int8_nncf import OpenvinoInt8Nncf, has_attention, quiet_nncf
from paretune.testing import samples

pytest.importorskip("nncf")

FEW = OpenvinoInt8Nncf(samples=16)


def test_answers_come_from_integer_kernels_and_stay_close(tmp_path: Path) -> None:
    before = samples.artifact("openvino")
    after = FEW.apply(before, samples.fit(before, tmp_path))
    assert after.precision == "int8"
    assert after.size_bytes > 0
    images = np.stack([samples.examples().examples.item(index)[0] for index in range(32)])
    want, got = run(before, images)[0], run(after, images)[0]
    assert not np.array_equal(want, got)
    assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)
    assert {"u8", "i8"} & set(kernels(after).values())


def test_a_kept_layer_stays_in_float_by_the_name_of_its_weights(tmp_path: Path) -> None:
    before = samples.artifact("openvino")
    names = [op.get_friendly_name() for op in form.load(before).get_ops() if op.get_type_name() == "Convolution"]
    whole = FEW.apply(before, samples.fit(before, tmp_path / "a"))
    by_knob = replace(FEW, keep=(names[0],)).apply(before, samples.fit(before, tmp_path / "b"))
    heard: list[Sequence[str]] = []
    run_wide = replace(samples.fit(before, tmp_path / "c"), keep=(names[0], "fits nothing*"), unmatched=heard.append)
    by_run = FEW.apply(before, run_wide)
    assert heard == [["fits nothing*"]]
    assert fake_quantised(whole) > fake_quantised(by_knob)
    assert by_knob.files == by_run.files


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    before = samples.artifact("openvino")
    with pytest.raises(BuildError, match="'layer77'"):
        replace(FEW, keep=("layer77",)).apply(before, samples.fit(before, tmp_path))


def test_training_data_is_needed(tmp_path: Path) -> None:
    before = samples.artifact("openvino")
    with pytest.raises(BuildError, match="training examples"):
        FEW.apply(before, samples.fit(before, tmp_path, train=False))


def test_a_quantised_model_is_not_quantised_again(tmp_path: Path) -> None:
    before = replace(samples.artifact("openvino"), precision="int8")
    with pytest.raises(BuildError, match="already"):
        FEW.apply(before, samples.fit(before, tmp_path))


def test_knobs_change_the_result(tmp_path: Path) -> None:
    before = samples.artifact("openvino")
    settings = [FEW, replace(FEW, ranges="mean"), replace(FEW, bias_correction="full"), replace(FEW, samples=4)]
    made = [one.apply(before, samples.fit(before, tmp_path / str(i))).digest for i, one in enumerate(settings)]
    assert len(set(made)) == len(made)


def test_attention_is_seen_and_treated(tmp_path: Path) -> None:
    before, data = attention(tmp_path)
    assert has_attention(form.load(before))
    assert not has_attention(form.load(samples.artifact("openvino")))
    fit = replace(samples.fit(before, tmp_path / "auto"), train=data)
    auto = FEW.apply(before, fit)
    yes = replace(FEW, transformer="yes").apply(before, replace(fit, scratch=tmp_path / "yes"))
    assert auto.files == yes.files


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = samples.artifact("openvino")
    FEW.apply(before, samples.fit(before, tmp_path))
    assert capfd.readouterr() == ("", "")


def test_nncf_is_given_back_as_it_was() -> None:
    from nncf.common.logging import track_progress
    from nncf.telemetry import decorator

    before = (track_progress.Progress, track_progress.WeightedProgress, decorator.telemetry)
    with quiet_nncf():
        assert track_progress.Progress is not before[0]
    assert (track_progress.Progress, track_progress.WeightedProgress, decorator.telemetry) == before


def test_usage_events_are_off_outside_of_tests_as_well() -> None:
    code = (
        "import sys; from paretune.techniques.openvino_int8_nncf import quiet_nncf\n"
        "with quiet_nncf(): pass\n"
        "assert 'nncf' in sys.modules; assert 'openvino_telemetry' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run(artifact: Artifact, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    compiled = form.core().compile_model(form.load(artifact), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(list(inputs)).values())


def kernels(artifact: Artifact) -> dict[str, str]:
    compiled = form.core().compile_model(form.load(artifact), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return {str(i["layerType"].value): str(i["runtimePrecision"].value) for i in infos}


def fake_quantised(artifact: Artifact) -> int:
    return sum(op.get_type_name() == "FakeQuantize" for op in form.load(artifact).get_ops())


def attention(root: Path) -> tuple[Artifact, Split]:
    """softmax(x·K)·V over (batch, 4, 8), then a projection, with examples."""
    openvino = form.framework()
    ops = openvino.opset13
    rng = np.random.default_rng(5)
    weights = [ops.constant(rng.standard_normal((1, 8, 8)).astype(np.float32)) for _ in range(4)]
    x = ops.parameter([-1, 4, 8], np.float32, name="x")
    query, keys, values = (ops.matmul(x, weight, False, False) for weight in weights[:3])
    scores = ops.softmax(ops.matmul(query, keys, False, True), -1)
    out = ops.matmul(ops.matmul(scores, values, False, False), weights[3], False, False)
    spec = (TensorSpec("x", "float32", ("batch", 4, 8)),)
    like = Artifact("openvino", root, {}, spec, (TensorSpec("out", "float32", ("batch", 4, 8)),))
    x.output(0).get_tensor().set_names({"x"})
    out.output(0).get_tensor().set_names({"out"})
    (root / "attention").mkdir()
    sealed = form.seal(openvino.Model([out], [x]), root / "attention", like, compress_to_fp16=False)
    items = [(array, 0) for array in rng.standard_normal((20, 4, 8)).astype(np.float32)]
    return sealed, Split.whole(items, None, "train")
