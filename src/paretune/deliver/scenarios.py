"""What scenarios found: for every one a finding, for every family a summary; plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paretune.check.excess import Excess
from paretune.check.statistics import Estimate

Kind = Literal["accuracy", "behaviour", "load"]
FILE = "scenarios.json"
ORDER = ("breaks", "undecided", "holds")


@dataclass(frozen=True)
class Finding:
    """One scenario and what follows from it.

    ``original`` and ``candidate`` are mean scores on the changed data, ``agreement`` the share of examples that both
    answer alike; ``figures`` what was measured under load or of an unusual input. ``error``: why there is no figure.
    """

    scenario: str
    family: str
    kind: Kind
    verdict: str
    text: str
    about: str = ""
    severity: int | None = None
    excess: Excess | None = None
    original: float | None = None
    candidate: float | None = None
    agreement: float | None = None
    figures: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def stem(self) -> str:
        """The scenario's name without its severity."""
        return self.scenario.partition("@")[0]

    def describe(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "stem": self.stem,
            "family": self.family,
            "kind": self.kind,
            "severity": self.severity,
            "verdict": self.verdict,
            "excess": None if self.excess is None else self.excess.describe(),
            "original": self.original,
            "candidate": self.candidate,
            "agreement": self.agreement,
            "figures": None if self.figures is None else dict(self.figures),
            "about": self.about,
            "text": self.text,
            "error": self.error,
        }


@dataclass(frozen=True)
class Scenarios:
    """All findings on one candidate, beside the original.

    ``families`` are the families of accuracy scenarios as wholes; ``drop`` is the plain drop on unchanged data.
    """

    title: str
    target: str
    workload: str
    score: str
    examples: int
    tolerance: float
    confidence: float
    seed: int
    clean: tuple[float, float]
    drop: Estimate
    drop_unit: str
    families: Mapping[str, Excess]
    findings: tuple[Finding, ...]
    machine: Mapping[str, Any]
    warnings: tuple[str, ...]
    seconds: float

    def describe(self) -> dict[str, Any]:
        """Plain JSON; families with the worst first."""
        names = dict.fromkeys(finding.family for finding in self.findings)
        families = [self._family(name) for name in names]
        return {
            "schema": 1,
            "title": self.title,
            "target": self.target,
            "workload": self.workload,
            "score": self.score,
            "examples": self.examples,
            "tolerance": self.tolerance,
            "confidence": self.confidence,
            "seed": self.seed,
            "clean": {
                "original": self.clean[0],
                "candidate": self.clean[1],
                "drop": {**self.drop.describe(), "unit": self.drop_unit},
            },
            "families": sorted(families, key=_badness),
            "findings": [finding.describe() for finding in self.findings],
            "machine": dict(self.machine),
            "warnings": list(self.warnings),
            "seconds": round(self.seconds, 1),
        }

    def _family(self, name: str) -> dict[str, Any]:
        mine = [finding for finding in self.findings if finding.family == name]
        excess = self.families.get(name)
        scored = [finding for finding in mine if finding.excess is not None]
        worst = max(scored, key=lambda one: one.excess.estimate.value if one.excess else 0.0, default=None)
        return {
            "family": name,
            "kind": mine[0].kind,
            "scenarios": len(mine),
            **{verdict: sum(finding.verdict == verdict for finding in mine) for verdict in ORDER},
            "excess": None if excess is None else excess.describe(),
            "worst": None if worst is None else worst.scenario,
        }


def _badness(family: Mapping[str, Any]) -> tuple[int, float]:
    value = (family["excess"] or {}).get("value")
    return -family["breaks"], -(value if value is not None else -1e9)
