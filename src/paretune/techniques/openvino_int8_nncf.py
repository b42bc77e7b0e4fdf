"""Post-training INT8 of an OpenVINO model with NNCF.

Method and its options: https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.data import feeds
from paretune.ask.knob import knob
from paretune.ask.target import Arrays
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import openvino as form

_NOT_KEPT = frozenset(["Constant", "Parameter", "Result", "Convert", "ShapeOf"])


@dataclass(frozen=True)
class OpenvinoInt8Nncf:
    """Weights and activations in INT8, ranges learnt from training examples.

    The range of an activation is by default the least and greatest value seen. NNCF's own default, the mean over the
    examples of each one's extremes, clips; on a trained ResNet-20 it gave four times the error.
    """

    name: ClassVar[str] = "openvino_int8_nncf"
    takes: ClassVar[frozenset[str]] = frozenset({"openvino"})
    gives: ClassVar[str] = "openvino"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = "OpenVINO is the target and its own quantiser is wanted: transformers, bias correction"
    needs: ClassVar[Mapping[str, str]] = {"nncf": "nncf>=3.0", "openvino": "openvino>=2025.3"}
    cost: ClassVar[float] = 8.0
    gain: ClassVar[float] = 2.5

    preset: str = knob(
        "mixed",
        "activations: symmetric (performance), or with a zero point where values are one-sided (mixed)",
        choices=("mixed", "performance"),
    )
    samples: int = knob(300, "training examples from which ranges are learnt", low=1, high=10_000)
    ranges: str = knob("minmax", "an activation's range: extremes seen, or their mean", choices=("minmax", "mean"))
    bias_correction: str = knob(
        "none", "correct the mean error of every layer: layer after layer, or fast", choices=("none", "fast", "full")
    )
    transformer: str = knob("auto", "treat attention as a transformer needs", choices=("auto", "yes", "no"))
    keep: tuple[str, ...] = knob((), "patterns of names of operators, or of their weights, that stay in float")

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """Quantise with examples of ``fit.train``.

        Raises
        ------
        BuildError
            If there is no training data, a pattern of ``keep`` fits nothing, or NNCF refuses the model.
        """
        if fit.train is None:
            raise BuildError(
                "needs training examples to learn ranges from", where=self.name, do="give the workload training data"
            )
        if artifact.precision == "int8":
            raise BuildError("is quantised already", where=self.name, do="give it the float model")
        fit.progress(0.0, "reading examples")
        examples = list(feeds(fit.train.take(self.samples, fit.seed), artifact, 1))
        model = form.load(artifact)
        named = {op.get_friendly_name() for op in model.get_ops()}
        kept, idle = self._kept(model, fit.keep)
        fit.unmatched(idle)
        fit.progress(0.1, "learning ranges")
        try:
            model = self._quantise(model, artifact, examples, kept)
        except Exception as error:  # NNCF's errors have no common base
            raise BuildError(f"NNCF refuses the model: {form.reason(error)}", where=self.name) from error
        if not any(op.get_type_name() == "FakeQuantize" for op in model.get_ops()):
            raise BuildError("found nothing to quantise in this model", where=self.name)
        fit.progress(0.9, "saving")
        return form.seal(model, fit.out, artifact, compress_to_fp16=False, named=named, precision="int8")

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """Without correction of biases: beside extremes and weights per channel it cost agreement, and minutes."""
        return cls(), cls(preset="performance")

    def _kept(self, model: Any, run_wide: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """The operators that stay in float, and the run's patterns that fit nothing here; one of the knob's must."""
        names = {op.get_friendly_name(): _aliases(op) for op in model.get_ops() if op.get_type_name() not in _NOT_KEPT}
        every = [alias for aliases in names.values() for alias in aliases]
        patterns = (*self.keep, *run_wide)
        idle = [pattern for pattern in patterns if not any(fnmatchcase(alias, pattern) for alias in every)]
        for pattern in idle:
            if pattern in self.keep:
                near = difflib.get_close_matches(pattern, every, 1)
                raise BuildError(
                    f"no operator or weight fits the pattern {pattern!r}", where=f"{self.name}.keep",
                    do=f"did you mean {near[0]}?" if near else "",
                )  # fmt: skip
        kept = [
            name
            for name, aliases in names.items()
            if any(fnmatchcase(alias, pattern) for alias in aliases for pattern in patterns)
        ]
        return kept, idle

    def _quantise(self, model: Any, artifact: Artifact, examples: list[Arrays], kept: list[str]) -> Any:
        with quiet_nncf() as nncf:
            from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            advanced = AdvancedQuantizationParameters(disable_bias_correction=self.bias_correction == "none")
            if self.ranges == "minmax":
                advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
            attention = self.transformer == "yes" or (self.transformer == "auto" and has_attention(model))
            places = form.positions(model.inputs, [spec.name for spec in artifact.inputs])
            return nncf.quantize(
                model,
                nncf.Dataset(examples, lambda arrays: dict(zip(places, arrays, strict=True))),
                preset=nncf.QuantizationPreset.MIXED if self.preset == "mixed" else nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(examples),
                fast_bias_correction=self.bias_correction != "full",
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False) if kept else None,
                advanced_parameters=advanced,
            )


def has_attention(model: Any) -> bool:
    """Whether an ``openvino.Model`` multiplies by the answer of a Softmax: attention."""
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind == "ScaledDotProductAttention":
            return True
        if kind == "MatMul" and any(_comes_from(value.get_node(), "Softmax", 3) for value in op.input_values()):
            return True
    return False


def _comes_from(op: Any, kind: str, depth: int) -> bool:
    """Whether ``op``, or what feeds it through at most ``depth`` one-input operators, is of that kind."""
    for _ in range(depth + 1):
        if op.get_type_name() == kind:
            return True
        if not op.input_values():
            return False
        op = op.input_values()[0].get_node()
    return False


def _aliases(op: Any) -> set[str]:
    """The names a person may know an operator by: its own, as it was before fusing, and those of its weights."""
    name = op.get_friendly_name()
    found = {name, name.split("/")[0]}
    for value in op.input_values():
        source = value.get_node()
        while source.get_type_name() == "Convert":
            source = source.input_values()[0].get_node()
        if source.get_type_name() == "Constant":
            found.add(source.get_friendly_name())
    return found


@contextmanager
def quiet_nncf() -> Iterator[Any]:
    """The ``nncf`` module, without its log lines, progress bars and usage events while the block runs."""
    form.framework()
    with form.without_telemetry():
        import nncf
    from nncf.common.logging import track_progress
    from nncf.telemetry import decorator, wrapper

    class Silent(track_progress.WeightedProgress):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    class SilentPlain(track_progress.Progress):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    logger = logging.getLogger("nncf")
    level, bars, plain, sender = (
        logger.level,
        track_progress.WeightedProgress,
        track_progress.Progress,
        decorator.telemetry,
    )
    logger.setLevel(logging.CRITICAL)
    track_progress.WeightedProgress, track_progress.Progress = Silent, SilentPlain
    decorator.telemetry = wrapper.NNCFTelemetryStub()
    try:
        yield nncf
    finally:
        logger.setLevel(level)
        track_progress.WeightedProgress, track_progress.Progress = bars, plain
        decorator.telemetry = sender
