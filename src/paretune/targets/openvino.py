"""OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.ask.target import Arrays, Runner, Settings
from paretune.errors import MeasureError
from paretune.forms import openvino as form


@dataclass(frozen=True)
class Openvino:
    """OpenVINO's CPU plug-in.

    OpenVINO on its own computes in BF16 where the CPU can; here that is asked for, never implied. A static batch spares
    the inference of shapes at every call: a quantised ResNet-20 answers batch 1 a third sooner.
    """

    name: ClassVar[str] = "openvino"
    accepts: ClassVar[frozenset[str]] = frozenset({"openvino"})
    needs: ClassVar[Mapping[str, str]] = {"openvino": "openvino>=2025.3"}
    reference: ClassVar[bool] = False
    cost: ClassVar[float] = 1.5

    precision: str = knob(
        "f32", "arithmetic of float operators; auto is OpenVINO's choice", choices=("f32", "bf16", "f16", "auto")
    )
    hint: str = knob(
        "latency", "one call at a time on all threads, or several calls at once", choices=("latency", "throughput")
    )
    shape: str = knob(
        "static", "compile for the batch size it is opened for, or for any", choices=("static", "dynamic")
    )

    @contextmanager
    def open(self, artifact: Artifact, settings: Settings) -> Iterator[Runner]:
        """Compile for ``settings.threads`` threads; another batch size than ``settings.batch`` is answered as well.

        Raises
        ------
        MeasureError
            If OpenVINO cannot compile the model with these settings.
        ArtifactError
            If the files cannot be read.
        """
        runner = OpenvinoRunner(artifact, settings, self)
        try:
            yield runner
        finally:
            runner.close()

    def unavailable(self) -> str | None:
        """Why this precision cannot run here: the CPU has no such arithmetic."""
        wanted = {"bf16": "BF16", "f16": "FP16"}.get(self.precision)
        if wanted is None or wanted in form.capabilities():
            return None
        return f"this CPU has no {wanted} arithmetic for OpenVINO; it has {', '.join(sorted(form.capabilities()))}"

    @classmethod
    def light(cls, throughput: bool) -> tuple[Self, ...]:
        """FP32, and BF16 where the CPU has it; the same for several callers when throughput is asked for."""
        here = () if plugin.missing(cls) else form.capabilities()
        precisions = ["f32", *(["bf16"] if "BF16" in here else [])]
        hints = ["latency", *(["throughput"] if throughput else [])]
        return tuple(cls(precision=precision, hint=hint) for hint in hints for precision in precisions)


class OpenvinoRunner:
    """A compiled model and one infer request for each calling thread."""

    def __init__(self, artifact: Artifact, settings: Settings, knobs: Openvino) -> None:
        self._artifact = artifact
        self._config = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "PERFORMANCE_HINT": knobs.hint.upper(),
            **({} if knobs.precision == "auto" else {"INFERENCE_PRECISION_HINT": knobs.precision}),
        }
        self._lock = threading.Lock()
        self._local = threading.local()
        self._any: Any = None
        self._static: Any = None
        # the shapes that the static model takes, to tell a smaller last batch from the usual one
        self._batches = _batch_places(artifact)
        self._batch = settings.batch if knobs.shape == "static" and self._batches else None
        model = form.load(artifact)
        self._inputs = form.positions(model.inputs, [spec.name for spec in artifact.inputs])
        self._outputs = form.positions(model.outputs, [spec.name for spec in artifact.outputs])
        self._dtypes = [np.dtype(spec.dtype) for spec in artifact.inputs]
        if self._batch is not None:
            self._static = self._compile_static(model, self._batch)
        if self._static is None:
            self._batch, self._any = None, self._compile(form.load(artifact))
        self.callers = self._count_callers(knobs)
        self._tensor = form.framework().Tensor

    def infer(self, inputs: Arrays) -> Arrays:
        """Run one batch; the answers are the caller's own arrays. Safe from ``callers`` threads at once.

        Raises
        ------
        MeasureError
            If OpenVINO refuses the inputs.
        """
        # the tensors share the arrays' memory, which must stay alive until the request has run
        # and must be writeable, in the machine's own byte order: a tensor knows no other
        arrays = [np.require(array, array.dtype.newbyteorder("="), ("C", "A", "W")) for array in inputs]
        request = self._request(arrays)
        try:
            for place, array in zip(self._inputs, arrays, strict=True):
                request.set_input_tensor(place, self._tensor(array, shared_memory=True))
            request.infer()
        except RuntimeError as error:
            raise MeasureError(f"OpenVINO cannot run it: {form.reason(error)}", where="openvino") from error
        return tuple(request.get_output_tensor(place).data.copy() for place in self._outputs)

    def close(self) -> None:
        """Let go of the compiled models; the requests of other threads go with those."""
        self._local = threading.local()
        self._static = self._any = None

    def _request(self, arrays: list[np.ndarray[Any, Any]]) -> Any:
        usual = self._batch is not None and all(arrays[i].shape[axis] == self._batch for i, axis in self._batches)
        name = "static" if usual else "any"
        request = getattr(self._local, name, None)
        if request is None:
            if not usual:
                with self._lock:
                    if self._any is None:
                        self._any = self._compile(form.load(self._artifact))
            request = (self._static if usual else self._any).create_infer_request()
            setattr(self._local, name, request)
        return request

    def _compile_static(self, model: Any, batch: int) -> Any:
        """None when the model cannot be given a fixed batch."""
        shapes = {place: model.inputs[place].partial_shape for place in self._inputs}
        for index, axis in self._batches:
            shapes[self._inputs[index]][axis] = batch
        try:
            model.reshape(shapes)
        except RuntimeError:
            return None
        return self._compile(model)

    def _compile(self, model: Any) -> Any:
        try:
            return form.core().compile_model(model, "CPU", self._config)
        except RuntimeError as error:
            raise MeasureError(f"OpenVINO cannot compile it: {form.reason(error)}", where="openvino") from error

    def _count_callers(self, knobs: Openvino) -> int:
        if knobs.hint != "throughput":
            return 1
        return int((self._static or self._any).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _batch_places(artifact: Artifact) -> list[tuple[int, int]]:
    """(input, axis) of every free axis that is named like the first free first axis: the batch."""
    names = [spec.shape[0] for spec in artifact.inputs if spec.shape and isinstance(spec.shape[0], str)]
    if not names:
        return []
    return [
        (index, axis)
        for index, spec in enumerate(artifact.inputs)
        for axis, length in enumerate(spec.shape)
        if length == names[0]
    ]
