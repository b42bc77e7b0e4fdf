"""Inputs where there are no data fit the model; answers are asked in batches that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.errors import CallError
from paretune.subject import ANSWER_BATCH, FREE_AXIS, answer_rows, batch_sizes, synthetic
from paretune.testing import samples


def test_synthetic_inputs_fit_the_model_and_are_seeded() -> None:
    artifact = samples.artifact("onnx")
    one, same, other = (synthetic(artifact, 5, seed) for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    (batch,) = one.batches(5)
    (x,) = batch.inputs
    assert (x.shape[1:], x.dtype) == (samples.SHAPE, np.float32)
    assert abs(x.mean()) < 0.3


def test_synthetic_whole_numbers_are_zeros_and_ones(tmp_path: Path) -> None:
    specs = (TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("mask", "bool", ("batch", 4)))
    artifact = Artifact("onnx", tmp_path, {}, specs, ())
    (batch,) = synthetic(artifact, 3, 0).batches(3)
    assert [array.shape for array in batch.inputs] == [(3, FREE_AXIS), (3, 4)]
    assert [array.dtype.name for array in batch.inputs] == ["int64", "bool"]
    assert set(batch.inputs[0].ravel()) == {0, 1}


def test_answers_are_asked_in_the_models_own_batch_where_that_is_fixed(tmp_path: Path) -> None:
    free, fixed = (
        Artifact("onnx", tmp_path, {}, (TensorSpec("x", "float32", (axis, 4)),), ()) for axis in ("batch", 6)
    )
    assert answer_rows(fixed, (1, 64)) == 6
    assert [answer_rows(free, sizes) for sizes in ((1, 64), (1, 8))] == [64, 8], "the largest that is asked"
    assert answer_rows(free, (1,)) == ANSWER_BATCH


def test_batch_sizes_are_whole_numbers_each_once_and_in_order() -> None:
    assert batch_sizes(8) == (8,)
    assert batch_sizes([32, 1, 32]) == (1, 32)
    for wrong in ((), (0, 1), (1.5,), ("1",), -1):
        with pytest.raises(CallError, match="no batch sizes"):
            batch_sizes(wrong)  # type: ignore[arg-type]
