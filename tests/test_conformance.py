"""Every installed source, technique and target, the project's own and any other, passes its suite."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import attention_nets
import numpy as np
import pytest
import residual_nets

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.ask.target import Arrays, Settings
from paretune.build.technique import Fit
from paretune.testing import SourceConformance, TargetConformance, TechniqueConformance, samples

OWN = {"torch_prune_blocks": residual_nets.pictures, "torch_prune_heads": attention_nets.pictures}
"""Techniques that need a model with parts which the sample model lacks, and what makes one."""


def suite(base: type, group: str, attribute: str, name: str) -> type:
    body = {attribute: property(lambda self: plugin.load(group, name))}
    if group == "techniques" and name in OWN:
        body["artifact"] = lambda self: OWN[name]()
    return type(f"Test_{group}_{name}", (base,), body)


for _base, _group, _attribute in (
    (SourceConformance, "sources", "source"),
    (TechniqueConformance, "techniques", "technique"),
    (TargetConformance, "targets", "target"),
):
    for _name in plugin.names(_group):
        _suite = suite(_base, _group, _attribute, _name)
        globals()[_suite.__name__] = _suite


@dataclass(frozen=True)
class Careless:
    """A technique that breaks every second rule."""

    name: ClassVar[str] = "careless"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = "the weights must shrink"
    needs: ClassVar[Mapping[str, str]] = {"json": "python"}
    cost: ClassVar[float] = 0.1

    strength: float = knob(0.5, "how careless")  # no range
    forgotten: int = 3  # not declared

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        socket.getaddrinfo("localhost", 80)
        (fit.out / "salt").write_bytes(os.urandom(8))
        return Artifact.seal("torch", fit.out, artifact.inputs, artifact.outputs)

    @classmethod
    def light(cls) -> tuple[Careless, ...]:
        return cls(), cls()


class CarelessSuite(TechniqueConformance):
    technique = Careless


@pytest.mark.parametrize(
    "test",
    [
        "test_knobs_have_ranges_and_legal_defaults",
        "test_light_proposals_are_legal_and_distinct",
        "test_imports_without_its_framework",
    ],
)
def test_a_careless_declaration_is_caught(test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(CarelessSuite(), test)()


@pytest.mark.parametrize(
    "test",
    [
        "test_same_input_gives_same_digest_in_its_own_directory",
        "test_does_not_reach_for_the_network",
        "test_refuses_a_broken_model_in_one_line",
    ],
)
def test_careless_work_is_caught(test: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, OSError)):
        getattr(CarelessSuite(), test)(tmp_path)


class Leaky:
    """A runner that answers from memory which its next call overwrites."""

    def __init__(self) -> None:
        self.answer = np.zeros((16, samples.CLASSES), np.float32)

    def infer(self, inputs: Arrays) -> Arrays:
        rows = len(inputs[0])
        self.answer[:rows] = inputs[0].reshape(rows, -1)[:, : samples.CLASSES]
        return (self.answer[:rows],)


@dataclass(frozen=True)
class LeakyTarget:
    """A target whose answers do not outlive the next call."""

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    needs: ClassVar[Mapping[str, str]] = {}

    @contextmanager
    def open(self, artifact: Artifact, settings: Settings) -> Iterator[Leaky]:
        yield Leaky()

    def unavailable(self) -> None:
        return None


class LeakySuite(TargetConformance):
    target = LeakyTarget


def test_answers_in_borrowed_memory_are_caught() -> None:
    LeakySuite().test_answers_fit_the_artefact()
    with pytest.raises(AssertionError):
        LeakySuite().test_answers_outlive_the_next_call_and_the_runner()
