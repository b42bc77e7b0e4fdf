"""onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.ask.target import Arrays, Settings
from paretune.errors import MeasureError
from paretune.forms import onnx as form

if TYPE_CHECKING:
    import onnxruntime

LEVELS: Mapping[str, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}


@dataclass(frozen=True)
class Onnxruntime:
    """onnxruntime's CPU execution provider.

    The number of threads is always the settings' (its own default escapes the process's CPU affinity). Spinning stays
    at onnxruntime's default: turning it off would change what a user of onnxruntime gets.
    """

    name: ClassVar[str] = "onnxruntime"
    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[Mapping[str, str]] = {"onnxruntime": "onnxruntime>=1.23"}
    reference: ClassVar[bool] = True
    cost: ClassVar[float] = 1.0

    graph: str = knob("all", "how far the graph is optimised when it is loaded", choices=tuple(LEVELS))
    execution: str = knob(
        "sequential", "run independent nodes one after the other or side by side", choices=("sequential", "parallel")
    )

    @contextmanager
    def open(self, artifact: Artifact, settings: Settings) -> Iterator[_Runner]:
        """Load ``model.onnx``; raises :class:`MeasureError` if onnxruntime refuses it."""
        import onnxruntime

        parallel = self.execution == "parallel"
        mode = onnxruntime.ExecutionMode.ORT_PARALLEL if parallel else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[self.graph])
        path = artifact.path(".onnx")
        try:
            session = form.session(path, settings.threads, graph_optimization_level=level, execution_mode=mode)
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise MeasureError(f"onnxruntime does not open it: {form.first_line(error)}", where=str(path)) from error
        yield _Runner(session, artifact)

    def unavailable(self) -> str | None:
        """None: it runs on every CPU it installs on."""
        return None

    @classmethod
    def light(cls, throughput: bool) -> tuple[Self, ...]:
        """The default alone: other levels and parallel nodes are slower on the networks tried."""
        return (cls(),)


class _Runner:
    def __init__(self, session: onnxruntime.InferenceSession, artifact: Artifact) -> None:
        self._session = session
        self._inputs = [spec.name for spec in artifact.inputs]
        self._outputs = [spec.name for spec in artifact.outputs]

    def infer(self, inputs: Arrays) -> Arrays:
        return tuple(self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True))))
