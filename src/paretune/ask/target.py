"""Target: a runtime on a piece of hardware. A target is one file under ``targets/`` and one entry point."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from paretune.ask.artifact import Artifact

Arrays = tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Settings:
    """What every target is told: how many CPU threads it may use, and the batch size it is opened for."""

    threads: int
    batch: int


class Runner(Protocol):
    """An opened model: one method.

    A runner that is only fast under several callers at once (a throughput hint) says so in an attribute ``callers``
    (default 1); its ``infer`` is then called from that many threads. One that computes on NVIDIA GPUs names them in an
    attribute ``gpus`` (NVML's numbers, default none), so that their energy is counted.
    """

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one batch: arrays in the order of ``artifact.inputs``, answers in that of ``artifact.outputs``."""
        ...


class Target(Protocol):
    """A frozen dataclass whose fields are knobs (precision hint, graph level …).

    ``accepts`` are the forms it opens; ``needs`` maps each module it imports to the requirement that installs it.
    A target whose plain FP32 conversion is worth a row of its own beside the baseline says ``reference = True``.
    ``cost`` is the rough number of seconds it takes to open a small model, for the order of trying.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    needs: ClassVar[Mapping[str, str]]
    reference: ClassVar[bool]
    cost: ClassVar[float]

    def open(self, artifact: Artifact, settings: Settings) -> AbstractContextManager[Runner]:
        """Load the artefact; frameworks are imported here, after the environment and affinity were set."""
        ...

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine although its packages are installed (no compiler, say), else None."""
        ...

    @classmethod
    def light(cls, throughput: bool) -> tuple[Self, ...]:
        """The settings worth trying in a search without training, most promising first; the first is the default.

        ``throughput`` is true when the budget or the objective asks for throughput.
        """
        ...
