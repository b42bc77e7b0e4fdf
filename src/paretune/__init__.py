"""paretune: make a trained neural network small and fast within a budget, and prove it."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.ask.budget import Budget
    from paretune.ask.set_score import SetScore
    from paretune.ask.workload import Workload
    from paretune.batch_size import batch_size
    from paretune.check.front import front
    from paretune.check.verdict import judge
    from paretune.compare import compare
    from paretune.deliver.bundle import Bundle, pack
    from paretune.deliver.run import Run
    from paretune.diagnose import diagnose
    from paretune.errors import ParetuneError
    from paretune.load import load
    from paretune.measure import measure
    from paretune.optimize import optimize
    from paretune.scenarios import scenarios
    from paretune.train import train

_PLACES = {
    "Budget": "paretune.ask.budget",
    "Bundle": "paretune.deliver.bundle",
    "ParetuneError": "paretune.errors",
    "Run": "paretune.deliver.run",
    "SetScore": "paretune.ask.set_score",
    "Workload": "paretune.ask.workload",
    "batch_size": "paretune.batch_size",
    "compare": "paretune.compare",
    "diagnose": "paretune.diagnose",
    "front": "paretune.check.front",
    "judge": "paretune.check.verdict",
    "load": "paretune.load",
    "measure": "paretune.measure",
    "optimize": "paretune.optimize",
    "pack": "paretune.deliver.bundle",
    "scenarios": "paretune.scenarios",
    "train": "paretune.train",
}

__all__ = [
    "Budget",
    "Bundle",
    "ParetuneError",
    "Run",
    "SetScore",
    "Workload",
    "batch_size",
    "compare",
    "diagnose",
    "front",
    "judge",
    "load",
    "measure",
    "optimize",
    "pack",
    "scenarios",
    "train",
]


def __getattr__(name: str) -> Any:
    # loaded when asked for: a measuring child imports this package too, and its memory is measured
    if name not in _PLACES:
        raise AttributeError(f"module 'paretune' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


# onnxruntime writes usage events unless this is set before it loads; nothing here phones home
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class _Package(ModuleType):
    """Importing ``paretune.optimize`` must not hide the verb of the same name behind its module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _PLACES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
