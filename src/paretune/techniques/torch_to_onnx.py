"""A torch model as an ONNX graph, by the exporter that goes through ``torch.export``."""

from __future__ import annotations

import inspect
import itertools
import re
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, feeds
from paretune.ask.knob import knob
from paretune.ask.target import Arrays
from paretune.build.technique import Fit
from paretune.errors import BuildError

if TYPE_CHECKING:
    import onnx
    import torch

BATCHES = (1, 2, 5)
RELATIVE = 1e-3
"""Largest error that is taken for rounding, relative to the largest magnitude of the output."""
STEPS = 2.0
"""Largest error of a quantised graph, in steps of quantisation as they arrive at the output. Where sums in float differ
in their last bit, or a runtime rounds a bias to integers, a value beside the middle of two integers falls to the other
one, and values behind it may follow: at worst two sound graphs differ as two independent roundings do, whose difference
has √2 times the noise of one, and two steps are five times that. A wrong scale or zero point moves every value."""


@dataclass(frozen=True)
class TorchToOnnx:
    """Export with free axes as the artefact states them, and compare the answers with torch's."""

    name: ClassVar[str] = "torch_to_onnx"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "convert"
    use: ClassVar[str] = "a runtime that takes ONNX graphs is to run the model"
    needs: ClassVar[Mapping[str, str]] = {
        "torch": "torch>=2.11,<2.14",
        "onnx": "onnx>=1.19",
        "onnxscript": "onnxscript>=0.5.4",
        "onnxruntime": "onnxruntime>=1.23",
    }
    cost: ClassVar[float] = 3.0

    opset: int = knob(20, "version of the ONNX operator set", low=18, high=23)

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The ONNX artefact, with the same names of inputs and outputs.

        Raises
        ------
        BuildError
            If the model does not export (names the operator, or the line and module), or if its ONNX graph answers
            otherwise than torch does at batch sizes 1, 2 and 5 or at another length.
        """
        from paretune.forms import onnx as onnx_form
        from paretune.forms import onnx_qdq
        from paretune.forms import torch as form

        module = form.restore(artifact)
        clash = {spec.name for spec in artifact.inputs} & {spec.name for spec in artifact.outputs}
        if clash:
            raise BuildError(
                f"input and output are both named {sorted(clash)[0]!r}, which ONNX does not allow", where=self.name,
                do="name the output otherwise",
            )  # fmt: skip
        trials = _trials(artifact, fit)
        fit.progress(0.1, "exporting")
        model = self._export(artifact, trials[1])
        fit.progress(0.8, "comparing with torch")
        integer = onnx_qdq.has_integer_activations(model)
        precision = "int8" if integer else artifact.precision
        sealed = onnx_form.seal(model, fit.out, like=artifact, precision=precision)
        _compare(module, artifact, sealed, trials)
        if not integer:
            return sealed
        known = {spec.name for spec in sealed.inputs}
        feed = tuple(array for spec, array in zip(artifact.inputs, trials[0], strict=True) if spec.name in known)
        told = onnx_form.told_kernels(onnx_form.kernel_counts(sealed.path(".onnx"), feed))
        notes = (*artifact.notes, f"{self.name}: {told}")
        return onnx_form.seal(model, fit.out, like=artifact, precision=precision, notes=notes)

    def _export(self, artifact: Artifact, example: Arrays) -> onnx.ModelProto:
        """The graph, with axes that the artefact calls free; names as the artefact has them."""
        import onnx_ir
        import torch

        from paretune.forms import onnx_qdq, torch_export, torch_qdq, torch_recurrent
        from paretune.forms import torch as form
        from paretune.forms.torch_program import quiet

        standing = torch_recurrent.as_operators(torch_qdq.as_operators(form.restore(artifact)))
        flat = torch_export.Flat(standing, form.keywords(artifact))
        tensors = tuple(map(form.native, example))
        with quiet(), torch.no_grad():
            program = _program(flat, artifact, tensors)
            try:
                exported = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=self.opset,
                    input_names=[spec.name for spec in artifact.inputs],
                    output_names=[spec.name for spec in artifact.outputs],
                    verbose=False,
                )
                assert exported is not None
                model = _named(onnx_ir.to_proto(exported.model), artifact)
                onnx_qdq.repeat_behind_moves(model)
                onnx_qdq.pack_int4(model)
                return model
            except Exception as error:  # the exporter's and onnxscript's errors have no common type
                operator = _operator(error)
                raise BuildError(
                    f"no ONNX for {operator}" if operator else f"the ONNX exporter failed: {_line(error)}",
                    where=self.name, do="replace it in the model by other torch functions, or use a torch target",
                ) from error  # fmt: skip

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """The default operator set."""
        return (cls(),)


def _program(
    flat: torch.nn.Module, artifact: Artifact, tensors: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """The exported program; an axis that must be free first, then one that torch may fix."""
    import torch

    from paretune.forms import torch_export

    failure: Exception | None = None
    for mark in (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO):
        axes = torch_export.dynamic_axes(artifact.inputs, mark)
        try:
            return torch.export.export(
                flat, tensors, dynamic_shapes=(axes,), strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
        except Exception as error:  # whatever the user's forward raises under tracing
            failure = failure or error
            if not _is_shape_complaint(error):
                break
    assert failure is not None
    place = _place(flat, failure)
    raise BuildError(
        f"torch.export cannot trace the model{place}: {_line(failure)}", where="torch_to_onnx",
        do="let forward not branch on the values of tensors (torch.where, torch.cond), or use a torch target",
    ) from failure  # fmt: skip


def _is_shape_complaint(error: Exception) -> bool:
    import torch

    return isinstance(
        error, torch._dynamo.exc.UserError | torch.fx.experimental.symbolic_shapes.ConstraintViolationError
    )


def _place(flat: torch.nn.Module, error: Exception) -> str:
    """Where in the user's code the export stopped: module, file and line; empty when nothing tells.

    torch drops the frames of some errors and writes them into the message.
    """
    spots = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    spots += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+), in ', str(error))]
    where = ""
    for file, line in spots:
        for name, part in flat.named_modules():
            code = getattr(inspect.unwrap(type(part).forward), "__code__", None)
            own = not type(part).__module__.startswith(("torch.", "paretune."))
            if own and code is not None and code.co_filename == file and code.co_firstlineno <= line <= _last(code):
                label = name.removeprefix("model").lstrip(".") or type(part).__qualname__
                where = f" in {label} ({Path(file).name}:{line})"
    return where


def _last(code: types.CodeType) -> int:
    return max(line for _, _, line in code.co_lines() if line is not None)


def _line(error: BaseException) -> str:
    """The first line that says something, trimmed, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    clean = re.sub(r"\x1b\[[0-9;]*m", "", lines[0])
    return re.sub(r"(/[\w.@+-]+){2,}", lambda match: match.group(0).rpartition("/")[2], clean)[:200]


def _operator(error: BaseException) -> str:
    """The torch operator that has no ONNX counterpart, from the exporter's chain of errors; empty when unnamed."""
    cause: BaseException | None = error
    while cause is not None:
        match = re.search(r"\b((?:aten|prims|torchvision|quantized_decomposed)(?:\.|::)\w+(?:\.\w+)?)", str(cause))
        if match:
            return match.group(1)
        cause = cause.__cause__
    return ""


def _named(model: onnx.ModelProto, artifact: Artifact) -> onnx.ModelProto:
    """Give free axes the artefact's names, and initialisers the names of the user's parameters."""
    wanted = {spec.name: spec.shape for spec in (*artifact.inputs, *artifact.outputs)}
    for value in itertools.chain(model.graph.input, model.graph.output):
        axes = wanted.get(value.name, ())
        for dim, axis in zip(value.type.tensor_type.shape.dim, axes, strict=False):
            if isinstance(axis, str) and not dim.dim_value:
                dim.dim_param = axis
    del model.graph.value_info[:]  # inferred again where needed; its axes have names of the exporter's own
    taken = {name for node in model.graph.node for name in node.output} | set(wanted)
    names = {}
    for tensor in model.graph.initializer:
        short = tensor.name.removeprefix("model.")
        if short != tensor.name and short not in taken:
            names[tensor.name] = short
            tensor.name = short
    _rename(model.graph, names)
    return model


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    from paretune.forms import onnx as onnx_form

    for part in onnx_form.graphs(graph):
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]


def _trials(artifact: Artifact, fit: Fit) -> list[Arrays]:
    """Inputs to compare on, one for each batch size and one of another length: training examples, else random ones."""
    from paretune.forms import torch as form

    longer = any(isinstance(axis, str) for spec in artifact.inputs for axis in spec.shape[1:])
    if fit.train is None or len(fit.train) < max(BATCHES):
        made = [form.sample_inputs(artifact.inputs, batch, 8, fit.seed) for batch in BATCHES]
        return [*made, form.sample_inputs(artifact.inputs, 2, 11, fit.seed)] if longer else made
    drawn = fit.train.take(64, fit.seed) if longer else fit.train.head(max(BATCHES))
    trials = [next(feeds(drawn.head(batch), artifact, batch)) for batch in BATCHES]
    return [*trials, *_another(drawn, artifact, trials)] if longer else trials


def _another(drawn: Split, artifact: Artifact, trials: list[Arrays]) -> list[Arrays]:
    """One example of a length not among the trials, if there is one."""
    seen = {tuple(array.shape[1:] for array in trial) for trial in trials}
    for arrays in feeds(drawn, artifact, 1):
        if tuple(array.shape[1:] for array in arrays) not in seen:
            return [arrays]
    return []


def _compare(module: torch.nn.Module, artifact: Artifact, sealed: Artifact, trials: list[Arrays]) -> None:
    """Raise :class:`BuildError` unless onnxruntime answers every trial as torch does, but for rounding."""
    from paretune.forms import onnx as onnx_form
    from paretune.forms import torch as form

    try:
        session = onnx_form.session(sealed.path(".onnx"), threads=1)
    except Exception as error:  # onnxruntime's own exceptions
        other = artifact.precision if artifact.precision != "fp32" else ""
        raise BuildError(
            f"onnxruntime does not open the exported graph: {_line(error)}", where="torch_to_onnx",
            do=f"give the model in float32, not {other}" if other else "use a torch target",
        ) from error  # fmt: skip
    known = {value.name for value in session.get_inputs()}
    names = [spec.name for spec in artifact.outputs]
    slack = _steps(module, artifact, trials)
    for trial in trials:
        feed = {spec.name: array for spec, array in zip(artifact.inputs, trial, strict=True) if spec.name in known}
        size = f"at inputs of shape {', '.join(str(list(array.shape)) for array in trial)}"
        with form.plain_attention():
            wanted = form.call(module, artifact, trial)
        try:
            got = session.run(names, feed)
        except Exception as error:  # onnxruntime's own exceptions
            raise BuildError(
                f"the exported graph fails {size}: {_line(error)}", where="torch_to_onnx",
                do="let forward take shapes from its inputs instead of constants, or use a torch target",
            ) from error  # fmt: skip
        for name, ours, theirs, step in zip(names, wanted, got, slack, strict=True):
            trouble = _difference(ours, np.asarray(theirs), STEPS * step)
            if trouble:
                raise BuildError(
                    f"output {name} of the exported graph differs from torch's {size}: {trouble}",
                    where="torch_to_onnx", do="look for random or data-dependent parts in forward",
                )  # fmt: skip


def _steps(module: torch.nn.Module, artifact: Artifact, trials: list[Arrays]) -> list[float]:
    """What one step of the activations' quantisation amounts to at each output; 0 where none is quantised.

    √12 times the root mean square by which rounding the activations changes the output: the noise of rounding is
    uniform over a step (Widrow & Kollár 2008, "Quantization Noise").
    """
    from paretune.forms import torch as form
    from paretune.forms.torch_fake_quant import unrounded

    squares: list[list[np.ndarray[Any, Any]]] = [[] for _ in artifact.outputs]
    for trial in trials:
        with form.plain_attention():
            rounded = form.call(module, artifact, trial)
            with unrounded(module) as any_is:
                if not any_is:
                    return [0.0] * len(squares)
                exact = form.call(module, artifact, trial)
        for found, ours, theirs in zip(squares, rounded, exact, strict=True):
            if ours.dtype.kind == "f":
                found.append(np.square(ours.astype(np.float64) - theirs).ravel())
            else:
                found.append(np.ones(1))
    return [float(np.sqrt(12 * np.nanmean(np.concatenate(found)))) for found in squares]


def _difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], slack: float) -> str:
    """How they differ, if by more than rounding and ``slack``; empty else."""
    if ours.shape != theirs.shape:
        return f"shape {list(theirs.shape)} instead of {list(ours.shape)}"
    if ours.dtype.kind not in "fc":
        unlike = float(np.mean(ours != theirs)) if ours.size else 0.0
        # a near tie may fall either way
        return f"{unlike:.1%} of the values" if unlike > (0.5 if slack else 0.01) else ""
    finite = np.isfinite(ours)
    if not np.array_equal(finite, np.isfinite(theirs)):
        return "other values are infinite or not a number"
    if not finite.any():
        return ""
    scale = max(float(np.abs(ours[finite]).max()), 1e-3)
    error = float(np.abs(ours[finite] - theirs[finite]).max())
    if error <= max(RELATIVE * scale, slack):
        return ""
    steps = f", {error / slack * STEPS:.2g} steps of quantisation" if slack else ""
    return f"by {error / scale:.2g} of its largest value{steps}"
