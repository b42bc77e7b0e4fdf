"""Measurement: raw samples of one subject: latencies, memory, size, and one score for every example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.knob import values_of
from paretune.ask.plugin import code_of
from paretune.ask.target import Target
from paretune.check.answers import Answers
from paretune.check.disturbance import Disturbance, together
from paretune.check.meter import Spent
from paretune.check.statistics import Estimate, percentile

Blocks = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Subject:
    """An artefact on a target: what can be opened and measured."""

    id: str
    artifact: Artifact
    target: Target

    def describe(self) -> dict[str, Any]:
        """All that determines what is measured, as plain JSON."""
        return {
            "artifact": self.artifact.digest, "target": self.target.name, "options": dict(values_of(self.target)),
            "live": self.artifact.origin is not None, "code": code_of(type(self.target)),
        }  # fmt: skip


@dataclass(frozen=True)
class BatchRun:
    """Latencies (ms, in blocks) at one batch size, and those of the companions measured in the same rounds.

    ``blocks`` are in the order of their ``sessions``, equally many in each; ``spent`` is what each block took of the
    machine, and ``spent_beside`` what each of the companions' took; ``disturbances`` is what else went on, by session.
    """

    batch: int
    blocks: Blocks
    beside: Mapping[str, Blocks]
    rows_per_s: float
    callers: int
    import_bytes: int | None
    peak_bytes: int | None
    anon_bytes: int | None
    file_bytes: int | None
    sessions: int = 1
    spent: tuple[Spent, ...] = ()
    spent_beside: Mapping[str, tuple[Spent, ...]] = field(default_factory=dict)
    disturbances: tuple[Disturbance, ...] = ()

    @property
    def samples(self) -> int:
        return sum(len(block) for block in self.blocks)

    def percentile(self, name: str, confidence: float) -> Estimate | None:
        """``p95``, say, in ms, with its interval; None where there are too few samples to state it."""
        return percentile(self.blocks, int(name[1:]) / 100, confidence, self.sessions)

    def percentile_ms(self, name: str) -> float:
        """The same without an interval, however few samples there are."""
        return float(np.quantile(np.concatenate([np.asarray(block) for block in self.blocks]), int(name[1:]) / 100))

    @property
    def disturbance(self) -> Disturbance | None:
        """What else went on, over all sessions."""
        return together(self.disturbances, self.spent)

    @property
    def settled(self) -> bool:
        """Whether the second half of the blocks ran at the pace of the first (medians within 10 %)."""
        half = len(self.blocks) // 2
        if half == 0:
            return True
        first, second = (float(np.median(np.concatenate(part))) for part in (self.blocks[:half], self.blocks[half:]))
        return 0.9 < first / second < 1.1


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one subject; ``answers`` by the data they were given to: ``ranking``, ``heldout``."""

    id: str
    size_bytes: int
    parameters: int | None
    macs: int | None
    runs: Mapping[int, BatchRun]
    answers: Mapping[str, Answers] = field(default_factory=dict)


def joined(parts: Sequence[BatchRun]) -> BatchRun:
    """The sessions of one batch size, end to end; memory is the most that any of them took."""
    first = parts[0]
    seconds = [run.batch * run.samples / run.rows_per_s for run in parts]
    kinds = ("import_bytes", "peak_bytes", "anon_bytes", "file_bytes")
    most: dict[str, Any] = {
        kind: max((value for run in parts if (value := getattr(run, kind)) is not None), default=None) for kind in kinds
    }
    return dataclasses.replace(
        first,
        blocks=tuple(block for run in parts for block in run.blocks),
        beside={name: tuple(block for run in parts for block in run.beside[name]) for name in first.beside},
        rows_per_s=first.batch * sum(run.samples for run in parts) / sum(seconds),
        sessions=len(parts),
        spent=tuple(chain.from_iterable(run.spent for run in parts)),
        spent_beside={
            name: tuple(chain.from_iterable(run.spent_beside.get(name, ()) for run in parts)) for name in first.beside
        },
        disturbances=tuple(chain.from_iterable(run.disturbances for run in parts)),
        **most,
    )


def run_of(told: Mapping[str, Any]) -> BatchRun:
    """The run that :func:`dataclasses.asdict` wrote as JSON, in which tuples are lists and classes are objects."""
    parts = {
        "blocks": tuple(map(tuple, told["blocks"])),
        "beside": {name: tuple(map(tuple, blocks)) for name, blocks in told["beside"].items()},
        "spent": _spent_of(told.get("spent", ())),
        "spent_beside": {name: _spent_of(ones) for name, ones in told.get("spent_beside", {}).items()},
        "disturbances": tuple(Disturbance(**one) for one in told.get("disturbances", ())),
    }
    return BatchRun(**{**told, **parts})


def _spent_of(told: Sequence[dict[str, Any]]) -> tuple[Spent, ...]:
    return tuple(Spent(**one) for one in told)
