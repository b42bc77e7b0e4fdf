"""MLCommons' LoadGen on a real child; what it lacks, and what it tells, is said."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paretune.ask.artifact import Artifact
from paretune.ask.target import Target
from paretune.check import early_stopping
from paretune.check.feed import Feed
from paretune.check.load import SAMPLES, CutError
from paretune.check.loadgen import Loadgen, drive, read
from paretune.check.process import Child
from paretune.errors import MeasureError, PluginError

INSTALLED = importlib.util.find_spec("mlperf_loadgen") is not None
needs_loadgen = pytest.mark.skipif(not INSTALLED, reason="LoadGen is an extra: pip install 'paretune[loadgen]'")
Rogue = Callable[..., Target]


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed.write(((np.full((1, 4), row, np.float32),) for row in range(4)), tmp_path / "feed")


@needs_loadgen
@pytest.mark.parametrize(("shape", "callers"), [*((shape, 1) for shape in SAMPLES), ("server", 3)])
def test_its_four_scenarios_run_on_the_opened_runner(
    shape: str, callers: int, model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    samples = SAMPLES[shape]
    asked = Loadgen(shape, samples, 0.2, 64, pace_s=0.001, rate=300.0)
    with Child(model, rogue(pause_ms=1.0, callers=callers), 1, 1) as child:
        found = drive(child, feed, asked, tmp_path / "out")
        assert child.memory()["peak_bytes"], "the child can still be asked"
    service = found.trace.service_ms
    assert service.min() >= 1
    queries = found.queries if shape != "offline" else len(service)
    assert len(service) == queries
    assert found.mean_ms >= service.mean()
    assert found.latency_ms["p50"] >= np.quantile(service, 0.4)
    if shape == "single-stream":
        assert found.discarded == (early_stopping.place(found.queries, 0.9) or 0) - 1
        assert found.early_stopping_ms["p90"] >= found.latency_ms["p90"]
    if shape == "offline":
        assert found.throughput_per_s == pytest.approx(samples * queries / found.trace.seconds, rel=0.2)
    if shape == "server":
        assert found.throughput_per_s == pytest.approx(300, rel=0.5)


@needs_loadgen
@pytest.mark.parametrize(
    ("mode", "says"), [("late_raise", "ValueError: no kernel for this"), ("late_segfault", "killed by SIGSEGV")]
)
def test_a_runner_that_fails_in_the_middle_is_told(
    mode: str, says: str, model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path
) -> None:
    asked = Loadgen("single-stream", 1, 0.1, 64, pace_s=0.001)
    with Child(model, rogue(mode, pause_ms=1.0), 1, 1) as child, pytest.raises(CutError, match=says) as caught:
        drive(child, feed, asked, tmp_path / "out", warm_s=0)
    assert 0 < caught.value.trace.done.sum() <= 30


def test_a_missing_extra_names_its_command(
    model: Artifact, rogue: Rogue, feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.ask import plugin

    monkeypatch.setattr(plugin, "_found", lambda module: module != "mlperf_loadgen")
    with Child(model, rogue(), 1, 1) as child, pytest.raises(PluginError, match="install 'mlcommons-loadgen>=6"):
        drive(child, feed, Loadgen("offline", 1, 0.1, 64, pace_s=0.001), tmp_path / "out")


def test_a_log_without_a_result_is_told(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(MeasureError, match="cannot be read"):
        read(log)
    log.write_text(':::MLLOG {"key": "loadgen_version", "value": "6"}\nnoise\n')
    with pytest.raises(MeasureError, match="holds no result"):
        read(log)
    log.write_text(':::MLLOG {"key": "resul')
    with pytest.raises(MeasureError, match="cannot be read"):
        read(log)
