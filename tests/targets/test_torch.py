"""Eager and compiled PyTorch answer as the module does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.target import Settings
from paretune.sources.torch_module import TorchModule
from paretune.targets.torch import Torch
from paretune.targets.torch_compile import TorchCompile


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = torch.nn.Linear(16, 8), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.drop(torch.relu(self.linear(x)))
        return {"logits": y * scale, "norm": y.norm(dim=-1)}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    items = [({"x": rng.random(16, np.float32), "scale": rng.random(8, np.float32)}, 0) for _ in range(4)]
    root = tmp_path / "a"
    root.mkdir()
    found = TorchModule().read(Net(), Split.whole(items, None, "train"), root)
    assert found is not None
    return found


def inputs(count: int) -> tuple[np.ndarray[Any, Any], ...]:
    rng = np.random.default_rng(1)
    return rng.random((count, 16), np.float32), rng.random((count, 8), np.float32)


def expected(artifact: Artifact, count: int) -> list[np.ndarray[Any, Any]]:
    live = artifact.origin
    assert isinstance(live, Net)
    x, scale = inputs(count)
    y = np.maximum(x @ live.linear.weight.detach().numpy().T + live.linear.bias.detach().numpy(), 0)
    return [y * scale, np.linalg.norm(y, axis=-1)]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_eager_answers_in_the_order_of_the_outputs(artifact: Artifact, precision: str, tolerance: float) -> None:
    with Torch(precision=precision).open(artifact, Settings(threads=1, batch=3)) as runner:
        answers = runner.infer(inputs(3))
        again = runner.infer(inputs(3))
    for answer, repeated, wanted in zip(answers, again, expected(artifact, 3), strict=True):
        assert answer.dtype == np.float32
        assert np.allclose(answer, wanted, atol=tolerance)
        assert np.array_equal(answer, repeated)
    if precision == "bf16":
        assert not np.allclose(answers[0], expected(artifact, 3)[0], atol=1e-5), "bf16 must really be used"


def test_threads_are_set_while_open_and_put_back(artifact: Artifact) -> None:
    before = torch.get_num_threads()
    with Torch().open(artifact, Settings(threads=before + 1, batch=1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_default_comes_first_and_torch_is_always_available() -> None:
    settings = Torch.light(throughput=False)
    assert settings[0] == Torch()
    assert {setting.precision for setting in settings} <= {"fp32", "bf16"}
    assert Torch().unavailable() is None


def test_the_portable_form_needs_no_code_of_the_user(artifact: Artifact, tmp_path: Path) -> None:
    portable = Torch().portable(artifact, tmp_path / "portable")
    assert portable is not None
    assert portable.origin is None
    with Torch().open(Artifact.open(portable.root), Settings(threads=1, batch=5)) as runner:
        answers = runner.infer(inputs(5))
    for answer, wanted in zip(answers, expected(artifact, 5), strict=True):
        assert np.allclose(answer, wanted, atol=1e-5)


def test_the_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    reason = TorchCompile().unavailable()
    assert reason is not None
    assert "g++" in reason


@pytest.mark.skipif(TorchCompile().unavailable() is not None, reason="no C++ compiler")
def test_compiled_answers_alike_and_leaves_no_cache(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with TorchCompile().open(artifact, Settings(threads=1, batch=4)) as runner:
        cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert any(cache.rglob("*.cpp")), "it must really compile, and into the private directory"
        for count in (4, 3):
            for answer, wanted in zip(runner.infer(inputs(count)), expected(artifact, count), strict=True):
                assert answer.shape == wanted.shape
                assert np.allclose(answer, wanted, atol=1e-5)
    assert not cache.exists()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
