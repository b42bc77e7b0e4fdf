"""A live ``torch.nn.Module``, or a function that returns one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.target import Arrays
from paretune.errors import DataError, WorkloadError

if TYPE_CHECKING:
    import torch

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
FACTORY_SEED = 0
"""Under which a user's function makes its module; one that seeds by itself has its own."""
LOOKED_AT = 64
"""Examples whose lengths are looked at for axes that vary."""


@dataclass(frozen=True)
class TorchModule:
    """Front door for modules. The module is copied, put to eval mode and run on the first examples; never changed."""

    name: ClassVar[str] = "torch_module"
    gives: ClassVar[str] = "torch"
    home: ClassVar[str] = "torch"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14"}

    def read(self, model: object, examples: Split | None, into: Path) -> Artifact | None:
        """Save the parameters as ``model.safetensors`` and seal; ``Artifact.origin`` is the live module.

        Inputs are named like ``forward``'s parameters, or like the data's keys. Multiply-accumulates are those of
        ``torch.utils.flop_counter``, which counts matrix products and convolutions.

        Raises
        ------
        WorkloadError
            If it is a pickled file, a function that returns something else, a model that cannot be copied or that
            takes one example at a time only, or if there are no examples.
        DataError
            If the model does not take the examples.
        """
        if isinstance(model, str | Path):
            _refuse_pickle(Path(model))
            return None
        module = _module_of(model)
        if module is None:
            return None
        from paretune.forms import torch as form
        from paretune.forms import torch_count

        if examples is None or not len(examples):
            raise WorkloadError(
                "a module alone does not say what it takes", where="Workload.model",
                do="give data, or export it with torch.export or to ONNX",
            )  # fmt: skip
        _demand_made(module)
        twin = form.detach_copy(module)
        names = _names(module, examples)
        keyword = examples.keys is not None
        inputs = examples.input_specs(names)
        outputs, kind = _outputs(twin, inputs, keyword, examples)
        if not keyword:
            taken = {spec.name for spec in outputs}
            inputs = tuple(
                TensorSpec(f"{spec.name}_in" if spec.name in taken else spec.name, spec.dtype, spec.shape)
                for spec in inputs
            )
        form.save(module, into)
        return Artifact.seal(
            "torch",
            into,
            inputs,
            outputs,
            keyword_inputs=keyword,
            output_kind=kind,
            precision=torch_count.precision(module),
            parameters=torch_count.parameters(module),
            macs=torch_count.macs(twin, tuple(names) if keyword else None, next(examples.batches(1)).inputs),
            origin=module,
        )

    def native(self, array: Any) -> torch.Tensor:
        """A numpy array as a tensor."""
        from paretune.forms import torch as form

        return form.native(array)


def _refuse_pickle(path: Path) -> None:
    """Raise :class:`WorkloadError` for a file that only unpickling could open.

    A ``.pt2`` says what it wants to be: whether it is one, the front door of exported programs tells.
    """
    if path.suffix == ".pt2":
        return
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        head = b""
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    archived = head.startswith(b"PK") and b"data.pkl" in head
    if path.suffix in PICKLES or pickled or archived:
        raise WorkloadError(
            "is a pickle, which runs any code it holds when opened, so paretune never opens one", where=str(path),
            do="load it yourself in Python (weights_only=True) and pass the nn.Module, or export it to .pt2 or .onnx",
        )  # fmt: skip


def _module_of(model: object) -> torch.nn.Module | None:
    """The live module in what the user gave; None when it is not of this kind."""
    import torch

    factory = inspect.isroutine(model) or isinstance(model, functools.partial)
    if factory or (inspect.isclass(model) and issubclass(model, torch.nn.Module)):
        from paretune.training import random_state

        try:
            # a fresh student is the same one in every process: else a resumed run would find nothing of it again
            with random_state.seeded(FACTORY_SEED, torch.device("cpu")):
                made = model()  # type: ignore[operator]
        except Exception as error:
            raise WorkloadError(f"the function that makes it failed: {error!r}", where="Workload.model") from error
        if not isinstance(made, torch.nn.Module):
            raise WorkloadError(
                f"the function returned a {type(made).__qualname__}, not a torch.nn.Module", where="Workload.model",
                do="return the module, or give the model itself",
            )  # fmt: skip
        model = made
    if isinstance(model, torch.jit.ScriptModule):
        raise WorkloadError(
            "is a TorchScript module, whose code is not at hand", where="Workload.model",
            do="give the nn.Module it was scripted or traced from",
        )  # fmt: skip
    if not isinstance(model, torch.nn.Module):
        return None
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.Module) else model


def _demand_made(module: torch.nn.Module) -> None:
    """Refuse a module whose lazy layers do not know their shapes yet."""
    import torch

    kinds = (torch.nn.parameter.UninitializedParameter, torch.nn.parameter.UninitializedBuffer)
    tensors = (*module.named_parameters(), *module.named_buffers())
    lazy = next((name for name, one in tensors if isinstance(one, kinds)), "")
    if lazy:
        raise WorkloadError(
            f"{lazy} has no shape yet", where="Workload.model", do="run the model once on an example, then give it"
        )


def _names(module: torch.nn.Module, examples: Split) -> list[str]:
    """Names of the inputs: the data's keys, or the parameters of ``forward`` that take them by position."""
    if examples.keys is not None:
        return list(examples.keys)
    count = len(next(examples.batches(1)).inputs)
    named = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            named.append(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            named += [f"{parameter.name}_{place}" for place in range(count - len(named))]
    if len(named) < count:
        raise DataError(
            f"gives {count} inputs and the model's forward takes {len(named)}: {', '.join(named) or 'none'}",
            where=examples.name,
        )
    return named[:count]


def _run(
    module: torch.nn.Module, inputs: tuple[TensorSpec, ...], keyword: bool, split: Split
) -> tuple[Arrays, tuple[str, ...], tuple[torch.Tensor, ...], Any]:
    """Run a split as one batch; its inputs, and the names, tensors and kind of the outputs."""
    import torch

    from paretune.forms import torch as form
    from paretune.forms.torch_program import quiet

    arrays = next(split.batches(len(split))).inputs
    names = tuple(spec.name for spec in inputs)
    try:
        with quiet(), torch.inference_mode():
            return (arrays, *form.call_flat(module, names if keyword else None, tuple(map(form.native, arrays))))
    except WorkloadError:
        raise
    except Exception as error:  # the user's forward may fail in any way
        given = ", ".join(
            f"{name} {array.dtype.name}{list(array.shape)}" for name, array in zip(names, arrays, strict=True)
        )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the model does not take it ({given}): {type(error).__name__}: {reason}",
            where=f"{split.name}[{split.indices[0]}]", do=_advice(module, names, arrays),
        ) from error  # fmt: skip


def _advice(module: torch.nn.Module, names: tuple[str, ...], arrays: Arrays) -> str:
    floats = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.dtype.is_floating_point}
    for name, array in zip(names, arrays, strict=True):
        if floats and array.dtype.kind == "f" and array.dtype.name not in floats:
            wanted = sorted(floats)[0]
            return f"input {name} is {array.dtype.name} and the parameters are {wanted}: convert it in the dataset"
        if floats and array.dtype.kind == "u":
            return f"input {name} is {array.dtype.name}: convert it in the dataset to what the model was trained on"
    missing = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in names
    ]
    if missing:
        return f"the data lacks the input {', '.join(missing)}"
    return "check the inputs: an item holds them without a batch axis, in the order of forward or by its names"


def _outputs(
    module: torch.nn.Module, inputs: tuple[TensorSpec, ...], keyword: bool, examples: Split
) -> tuple[tuple[TensorSpec, ...], Any]:
    """Specs of the outputs: an axis is free when it follows the batch, or an input's axis of varying length."""
    first = Split(examples.examples, examples.indices[:1])
    alone, names, one, kind = _run(module, inputs, keyword, first)
    paired = Split(examples.examples, (examples.indices * 2)[:2] if len(examples) > 1 else examples.indices * 2)
    try:
        _, _, two, _ = _run(module, inputs, keyword, paired)
    except DataError as error:
        raise WorkloadError(
            f"takes one example and fails on two at once: {error.what}", where="Workload.model",
            do="let forward take a batch of any size",
        ) from error  # fmt: skip
    other = _other_length(inputs, alone, examples)
    varied = None if other is None else _run(module, inputs, keyword, other)
    specs = []
    for place, (name, tensor) in enumerate(zip(names, one, strict=True)):
        after = None if varied is None else varied[2][place]
        shape: list[int | str] = []
        for axis, length in enumerate(tensor.shape):
            changed = after is not None and after.shape[axis] != length
            if length == 1 and two[place].shape[axis] == 2 and "batch" not in shape:
                shape.append("batch")
            elif changed:
                shape.append(_free_name(inputs, alone, length, axis))
            else:
                # padding makes a batch as long as its longest example: fixed only where one example alone varies not
                shape.append(int(length))
        dtype = "float32" if str(tensor.dtype) in ("torch.bfloat16", "torch.float16") else str(tensor.dtype)[6:]
        specs.append(TensorSpec(name, dtype, tuple(shape)))
    if len({spec.name for spec in specs}) != len(specs):
        raise WorkloadError("two outputs have the same name", where="what the model returns", do="name them apart")
    return tuple(specs), kind


def _other_length(inputs: tuple[TensorSpec, ...], alone: Arrays, examples: Split) -> Split | None:
    """One example whose inputs differ in length from the first one's, None when all are alike."""
    if all(isinstance(axis, int) for spec in inputs for axis in spec.shape[1:]):
        return None
    shapes = [array.shape for array in alone]
    for index in examples.indices[:LOOKED_AT]:
        split = Split(examples.examples, (index,))
        if [array.shape for array in next(split.batches(1)).inputs] != shapes:
            return split
    return None


def _free_name(inputs: tuple[TensorSpec, ...], alone: Arrays, length: int, axis: int) -> str:
    for spec, array in zip(inputs, alone, strict=True):
        for place, free in enumerate(spec.shape):
            if place and isinstance(free, str) and array.shape[place] == length:
                return free
    return f"length_{axis}"
