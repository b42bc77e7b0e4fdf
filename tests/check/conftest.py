"""A target whose runtime misbehaves as asked, installed like a third party's; its model, its data and a bench."""

from __future__ import annotations

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

MODULE = '''
import contextlib, ctypes, os, signal, sys, time
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from paretune.ask.knob import knob

@dataclass(frozen=True)
class Rogue:
    """Answers the inputs' first three columns, unless ``mode`` says how to fail."""

    name: ClassVar[str] = "rogue"
    accepts: ClassVar = frozenset({"rogue"})
    needs: ClassVar = {}
    reference: ClassVar = False
    cost: ClassVar = 0.1
    mode: str = knob("fine", "how it fails")
    factor: float = knob(1.0, "answers are multiplied by it")
    pause_ms: float = knob(0.0, "how long an inference takes at least")
    callers: int = knob(1, "how many callers it wants")
    mark: str = knob("", "a file in which every opening is noted")

    @contextlib.contextmanager
    def open(self, artifact, settings):
        if self.mark:
            with open(self.mark, "a") as file:
                file.write(f"{os.getpid()} {settings.batch}\\n")
        if self.mode == "no_open":
            raise RuntimeError("cannot be\\n  opened")
        if self.mode == "hang_open":
            time.sleep(3600)
        yield Runner(self, artifact)

    def unavailable(self):
        return None

    @classmethod
    def light(cls, throughput):
        return (cls(),)


class Runner:
    def __init__(self, target, artifact):
        self.target, self.artifact, self.callers, self.kept = target, artifact, target.callers, []
        self.gpus = (0,) if target.mode == "gpu" else ()

    def infer(self, inputs):
        x, mode = inputs[0], self.target.mode
        if self.target.pause_ms and mode != "spin":
            time.sleep(self.target.pause_ms / 1e3)
        end = time.thread_time() + self.target.pause_ms / 1e3
        while mode == "spin" and time.thread_time() < end:
            pass
        if mode == "leak":
            self.kept.append(bytearray(1000))
        if mode == "cache" and len(self.kept) < 1000:
            self.kept.append(bytearray(1000))
        y = x[:, :3] * np.float32(self.target.factor)
        if mode.startswith("late_"):  # it works for a while first
            self.kept.append(None)
            mode = mode[5:] if len(self.kept) > 30 else "fine"
        if mode == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mode == "exit":
            os._exit(7)
        if mode == "hang":
            time.sleep(3600)
        if mode == "raise":
            raise ValueError("no kernel\\n   for this")
        if mode == "say":
            print('{"ok": true, "latencies_ms": [0.0]}', flush=True)
            os.write(1, b"garbage\\n")
            ctypes.CDLL(None).puts(b"more")
        if mode == "allocate" and not self.kept:
            self.kept.append(np.ones(200_000_000 // 8))
        if mode == "own_inputs":
            x[:] = 0
        if mode == "environment":
            cpus, threads = len(os.sched_getaffinity(0)), int(os.environ["OMP_NUM_THREADS"])
            y = y * 0 + np.float32([cpus, threads, int(os.environ["MALLOC_MMAP_THRESHOLD_"])])
        return {
            "list": [y], "shape": (y[1:],), "scalar": (np.zeros((), np.float32),), "nan": (y * np.float32("nan"),),
            "inf": (y + np.float32("inf"),), "text": (y.astype(str),), "object": (y.astype(object),),
            "pair": (y, y.sum(axis=1)),
        }.get(mode, (y,))
'''


@pytest.fixture(scope="module")
def rogues(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the installed distribution; gone from the path afterwards."""
    site = tmp_path_factory.mktemp("site")
    (site / "rogue_target.py").write_text(MODULE)
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
