"""An exported program: a ``.pt2`` file, or a live ``torch.export.ExportedProgram``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split, fit_inputs
from paretune.errors import ArtifactError, WorkloadError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TorchProgram:
    """Front door for exported programs. A file is judged before torch sees it; no code in it is run."""

    name: ClassVar[str] = "torch_program"
    gives: ClassVar[str] = "torch"
    home: ClassVar[str] = "torch"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14"}

    def read(self, model: object, examples: Split | None, into: Path) -> Artifact | None:
        """Save the program as ``model.pt2``, without source lines and sample inputs, and seal it.

        Names, dtypes and free axes are the program's own, so no examples are needed; given ones are checked.

        Raises
        ------
        ArtifactError
            If the file is no exported program or is unsafe to open.
        WorkloadError
            If a live program cannot be saved and opened again, or an input is not a tensor.
        DataError
            If the examples do not fit the program's inputs.
        """
        path = Path(model) if isinstance(model, str | Path) else None
        if path is not None and path.suffix != ".pt2":
            return None
        import torch

        if path is None and not isinstance(model, torch.export.ExportedProgram):
            return None
        from paretune.forms import torch_program as form

        if path is not None:
            if not path.is_file():
                raise WorkloadError("there is no such file", where=str(path))
            program = form.open_checked(path)
        else:
            assert isinstance(model, torch.export.ExportedProgram)
            program = model
        inputs, outputs, keyword, kind = _specs(program)
        try:
            form.save(program, into / "model.pt2")
            if path is None:
                form.open_checked(into / "model.pt2")
        except ArtifactError as error:
            raise WorkloadError(f"the exported program {error.what}", where="Workload.model", do=error.do) from error
        if examples is not None and len(examples):
            like = Artifact("torch", into, {}, inputs, outputs)
            fit_inputs(next(examples.batches(1)).inputs, examples.keys, like, examples.name)
        return Artifact.seal(
            "torch",
            into,
            inputs,
            outputs,
            keyword_inputs=keyword,
            output_kind=kind,
            parameters=sum(program.state_dict[name].numel() for name in program.graph_signature.parameters),
        )

    def native(self, array: Any) -> torch.Tensor:
        """A numpy array as a tensor."""
        from paretune.forms import torch as form

        return form.native(array)


def _specs(
    program: torch.export.ExportedProgram,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], bool, Any]:
    """Specs of inputs and outputs, whether it is called by keyword, and the kind of what it returns."""
    import torch

    from paretune.forms import torch as form

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = list(program.graph_signature.user_inputs)
    tensors: list[Any] = [values.get(name) if isinstance(name, str) else name for name in names]
    for name, value in zip(names, tensors, strict=True):
        if not isinstance(value, torch.Tensor):
            raise WorkloadError(
                f"is {value!r}, not a tensor",
                where=f"input {name}",
                do="export the program with tensors as inputs only",
            )
    tree = program.call_spec.in_spec
    if tree is None:
        raise WorkloadError("does not say how it is called", where="Workload.model", do="export it with torch.export")
    args, kwargs = torch.utils._pytree.tree_unflatten(names, tree)
    if any(not isinstance(part, str) for part in (*args, *kwargs.values())):
        raise WorkloadError(
            "takes its inputs in nested containers", where="Workload.model",
            do="export a program that takes tensors, by position or by name",
        )  # fmt: skip
    keyword = bool(kwargs) and not args
    called = [*args, *(kwargs if keyword else kwargs.values())]
    inputs = tuple(_spec(str(name), value) for name, value in zip(called, tensors, strict=True))

    out_tree = program.call_spec.out_spec
    results = [values.get(name) for name in program.graph_signature.user_outputs if isinstance(name, str)]
    if out_tree is None or len(results) != out_tree.num_leaves:
        results_tree: Any = tuple(results)
    else:
        results_tree = torch.utils._pytree.tree_unflatten(results, out_tree)
    out_names, out_tensors, kind = form.flatten_outputs(results_tree)
    outputs = tuple(_spec(name, value) for name, value in zip(out_names, out_tensors, strict=True))
    symbols = _axis_names(inputs)
    return (
        tuple(_renamed(spec, symbols) for spec in inputs),
        tuple(_renamed(spec, symbols) for spec in outputs),
        keyword,
        kind,
    )


def _spec(name: str, value: torch.Tensor) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else str(axis) for axis in value.shape)
    kind = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name, "float32" if kind in ("bfloat16", "float16") else kind, shape)


def _axis_names(inputs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Symbol → name: a free first axis is ``batch``, the others are ``length_1`` … by their place."""
    names: dict[str, str] = {}
    for spec in inputs:
        for place, axis in enumerate(spec.shape):
            if isinstance(axis, str) and axis not in names:
                name = f"length_{place}" if place else "batch"
                names[axis] = name if name not in names.values() else f"{name}_{axis}"
    return names


def _renamed(spec: TensorSpec, names: Mapping[str, str]) -> TensorSpec:
    shape = tuple(names.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)
    return TensorSpec(spec.name, spec.dtype, shape)
