"""A target whose runtime misbehaves as asked, installed like a third party's; its model, its data and a bench."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.event import Event
from paretune.ask.knob import make
from paretune.ask.target import Target
from paretune.build.store import Store
from paretune.check.bench import Bench
from paretune.check.measurement import Subject


@pytest.fixture(scope="module")
def rogues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the installed distribution; gone from the path afterwards."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("rogue_target.py"), site)
    told = site / "rogue_target-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue-target\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[paretune.targets]\nrogue = rogue_target:Rogue\n")
    sys.path.insert(0, str(site))
    plugin._entries.cache_clear()
    try:
        yield site
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("rogue_target", None)
        plugin._entries.cache_clear()


@pytest.fixture
def rogue(rogues: Path) -> Callable[..., Target]:
    """The target that fails as asked, by its knobs."""

    def of(mode: str = "fine", **knobs: Any) -> Target:
        made: Target = make(plugin.load("targets", "rogue"), {"mode": mode, **knobs}, "rogue")
        return made

    return of


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    """x [batch, 4] float32 → y [batch, 3] float32."""
    root = tmp_path / "model"
    root.mkdir()
    (root / "weights.bin").write_bytes(b"w" * 100)
    specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 3)),)
    return Artifact.seal("rogue", root, *specs, parameters=3, macs=12)


@pytest.fixture
def data() -> Split:
    """Ten examples whose largest of the first three columns is the label of all but two of them."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, 4)).astype(np.float32)
    labels = x[:, :3].argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3
    return Split.whole(list(zip(x, labels, strict=True)), None, "heldout")


@dataclass
class Heard:
    """An observer that keeps every event."""

    events: list[Event] = field(default_factory=list)

    def on(self, event: Event) -> None:
        self.events.append(event)

    @property
    def cached(self) -> list[tuple[str, bool]]:
        steps = [event.data for event in self.events if event.kind == "step"]
        return [(step["step"], step["cached"]) for step in steps]


@dataclass
class Workbench:
    """A bench with the rogue's model on it."""

    bench: Bench
    heard: Heard
    model: Artifact
    rogue: Callable[..., Target]

    def subject(self, mode: str = "fine", name: str = "", **knobs: Any) -> Subject:
        return Subject(name or mode, self.model, self.rogue(mode, **knobs))


@pytest.fixture
def workbench(tmp_path: Path, model: Artifact, rogue: Callable[..., Target]) -> Iterator[Workbench]:
    from paretune.ask.score import named

    heard = Heard()
    machine = {"threads": 1, "digest": "machine"}
    bench = Bench(Store(tmp_path / "store"), machine, 0, heard, lambda array: array, named("accuracy"))
    yield Workbench(bench, heard, model, rogue)
    bench.close()
