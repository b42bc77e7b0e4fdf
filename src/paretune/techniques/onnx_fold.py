"""Folding an ONNX graph: the same function with fewer nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as form
from paretune.forms import onnx_optimize


@dataclass(frozen=True)
class OnnxFold:
    """Constants folded, batch normalisation moved into convolutions, dead code removed, shapes inferred.

    onnxruntime's ``basic`` graph optimisations, applied offline: the result holds standard operators, so every other
    technique and runtime can still read it. It is checked against the input model on seeded inputs.
    """

    name: ClassVar[str] = "onnx_fold"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "fold"
    use: ClassVar[str] = "a graph is to be quantised next: batch normalisation must be inside the convolutions by then"
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19", "onnxruntime": "onnxruntime>=1.23"}
    cost: ClassVar[float] = 1.0

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The folded model; raises :class:`BuildError` if it does not answer like the one it was made of."""
        model = form.load(artifact)
        folded = onnx_optimize.fold(model)
        fit.progress(0.5, "comparing the folded model with the original")
        inputs = form.random_inputs(artifact.inputs, batch=2, seed=fit.seed)
        feed = {spec.name: array for spec, array in zip(artifact.inputs, inputs, strict=True)}
        if difference := onnx_optimize.same(onnx_optimize.run(model, feed), onnx_optimize.run(folded, feed)):
            raise BuildError(f"folding changed the answers: {difference}", do="leave onnx_fold out for this model")
        return form.seal(folded, fit.out, like=artifact)

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """There is one way to fold."""
        return (cls(),)
