"""The form ``torch``: parameters in ``model.safetensors``, laid onto the user's own live module; or a ``model.pt2``.

A live module is never changed: everything happens on a copy. Beside the parameters stands ``module.json`` with what
else decides the module's answers (its code and plain attributes, as digests), so that a changed ``forward`` changes the
artefact's digest. A module whose structure was changed has ``edits.json`` too: the changes, in order.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.code import code_of, digest_of
from paretune.ask.target import Arrays
from paretune.errors import ArtifactError, WorkloadError
from paretune.forms import torch_edits, torch_program

WEIGHTS = "model.safetensors"
CODE = "module.json"
EDITS = "edits.json"
PROGRAM = "model.pt2"
_GIVEN = frozenset({"torch", *sys.stdlib_module_names})  # whose classes are known by their versions
_MODULES_OWN = frozenset(vars(torch.nn.Module()))  # mode, tensors, submodules and hooks

Kind = Literal["single", "tuple", "dict"]


def save(module: torch.nn.Module, root: Path, edits: Sequence[torch_edits.Edit] = ()) -> None:
    """Write ``model.safetensors`` and ``module.json`` below ``root``; the same module gives the same bytes.

    Tensors that share memory are stored once, under the first of their names. ``edits`` are all the changes of
    structure that lead from the user's own module to this one, those of earlier steps first.
    """
    kept: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            continue  # extra state stays with the live module
        tensor = value.detach()
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if first.setdefault(place, name) != name:
            shared[name] = first[place]
        else:
            kept[name] = tensor.cpu().contiguous().clone()
    save_file(kept, root / WEIGHTS)
    described = {"shared": shared, "code": fingerprint(module)}
    (root / CODE).write_text(json.dumps(described, indent=1, sort_keys=True))
    if edits:
        torch_edits.write(edits, root / EDITS)


def edits_of(artifact: Artifact) -> tuple[torch_edits.Edit, ...]:
    """The changes of structure that the artefact holds, in order.

    Raises
    ------
    ArtifactError
        If they cannot be read.
    """
    return torch_edits.read(artifact.root / EDITS) if EDITS in artifact.files else ()


def restore(artifact: Artifact) -> torch.nn.Module:
    """The module in eval mode on the CPU: a copy of the user's own, edited, with the artefact's parameters; or the
    module of its program.

    Raises
    ------
    ArtifactError
        If the user's own module is needed and not there, or the parameters do not fit it.
    """
    if any(name.endswith(".pt2") for name in artifact.files):
        with torch_program.quiet():
            return torch_program.open_checked(artifact.path(".pt2")).module()
    if not isinstance(artifact.origin, torch.nn.Module):
        raise ArtifactError(
            "holds a module's parameters without its code", where=str(artifact.root),
            do="give the workload whose model it was made from",
        )  # fmt: skip
    module = detach_copy(artifact.origin)
    torch_edits.make(edits_of(artifact), module)
    try:
        state = load_file(artifact.root / WEIGHTS)
        shared = json.loads((artifact.root / CODE).read_text())["shared"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(artifact.root)) from error
    state |= {name: state[kept] for name, kept in shared.items()}
    wanted = {name for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    if wanted != set(state):
        raise ArtifactError(
            f"its parameters do not fit the module: {', '.join(sorted(wanted ^ set(state))[:3])} on one side only",
            where=str(artifact.root), do="give the workload whose model it was made from",
        )  # fmt: skip
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ArtifactError(f"its parameters do not fit the module: {error}", where=str(artifact.root)) from error
    return module


def detach_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy on the CPU, in eval mode; the module itself keeps its mode, its device and its hooks.

    Raises
    ------
    WorkloadError
        If it cannot be copied.
    """
    try:
        with torch_program.quiet():
            twin = copy.deepcopy(module).cpu()
    except Exception as error:  # a user's own __deepcopy__ or __getstate__ may fail in any way
        normed = "graph leaves" in str(error)  # the weight that an old hook computes anew in every pass
        raise WorkloadError(
            f"{type(module).__qualname__} cannot be copied: {error}", where="Workload.model",
            do="use torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm, or keep no "
            "computed tensors in attributes" if normed else "give a function that makes and returns the module",
        ) from error  # fmt: skip
    if not is_program(twin):
        twin.eval()
    return twin


def is_program(module: torch.nn.Module) -> bool:
    """Whether it is what ``ExportedProgram.module()`` returns, which has no training mode to leave."""
    return isinstance(module, torch.fx.GraphModule) and hasattr(module, "_in_spec")


def native(array: Any) -> torch.Tensor:
    """A tensor with the array's values, in memory of its own when the array is read-only or not in C order."""
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C"))


def call_flat(
    module: torch.nn.Module, names: tuple[str, ...] | None, tensors: tuple[torch.Tensor, ...]
) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...], Kind]:
    """Call with copies of tensors in order (``names``: as keyword arguments), as a model may write into what it gets;
    the outputs as :func:`flatten_outputs` gives."""
    return call_bare(module, names, tuple(tensor.clone() for tensor in tensors))


def call_bare(
    module: torch.nn.Module, names: tuple[str, ...] | None, tensors: tuple[torch.Tensor, ...]
) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...], Kind]:
    """As :func:`call_flat`, with the tensors themselves: for what is traced or timed, where a copy would be seen."""
    if is_program(module):
        args, kwargs = pytree.tree_unflatten(list(tensors), cast(Any, module._in_spec))
        return flatten_outputs(module(*args, **kwargs))
    if names is not None:
        return flatten_outputs(module(**dict(zip(names, tensors, strict=True))))
    return flatten_outputs(module(*tensors))


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused kernels of ``nn.TransformerEncoder``: they hide the products they are made of, and answer zero
    at padded positions, where every exported graph answers something else."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def keywords(artifact: Artifact) -> tuple[str, ...] | None:
    """The names by which the module is called, None when it is called by position."""
    return tuple(spec.name for spec in artifact.inputs) if artifact.keyword_inputs else None


def call(module: torch.nn.Module, artifact: Artifact, inputs: Arrays, *, bare: bool = False) -> Arrays:
    """Run one batch without gradients: arrays in the order of ``artifact.inputs`` → ``artifact.outputs``.

    bfloat16 and float16 answers come back as float32. The model gets copies, as it may write into them; ``bare``: the
    arrays themselves where they can be tensors, for what is timed.
    """
    run = call_bare if bare else call_flat
    with torch.inference_mode():
        tensors = run(module, keywords(artifact), tuple(native(array) for array in inputs))[1]
        return tuple(to_array(tensor) for tensor in tensors)


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor as a numpy array; bfloat16 and float16 become float32."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


def flatten_outputs(outputs: Any) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...], Kind]:
    """Names, tensors and kind of whatever a module returned.

    One tensor is ``output``; those of a tuple or list are ``output_0`` …; those of a mapping or of a dataclass keep
    their keys, in order. Nested ones are flattened; None is left out.

    Raises
    ------
    WorkloadError
        If there is anything but tensors in it.
    """
    if isinstance(outputs, torch.Tensor):
        return ("output",), (outputs,), "single"
    fields = _fields(outputs)
    if fields is not None:
        pairs = [pair for key, value in fields.items() for pair in _leaves(value, str(key))]
        kind: Kind = "dict"
    else:
        parts = outputs if isinstance(outputs, tuple | list) else [outputs]
        tensors = [tensor for part in parts for _, tensor in _leaves(part, "output")]
        pairs = [(f"output_{place}", tensor) for place, tensor in enumerate(tensors)]
        kind = "tuple"
    if not pairs:
        raise WorkloadError("the model returned no tensor", where="Workload.model")
    return tuple(name for name, _ in pairs), tuple(tensor for _, tensor in pairs), kind


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return None


def _leaves(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    fields = _fields(value)
    if isinstance(value, torch.Tensor):
        yield name, value
    elif fields is not None:
        for key, part in fields.items():
            yield from _leaves(part, f"{name}_{key}")
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _leaves(part, f"{name}_{place}")
    elif value is not None:
        raise WorkloadError(
            f"{name} is a {type(value).__qualname__}, and only tensors can be compared", where="what the model returns",
            do="return tensors, or tuples or dicts of them (for transformers: use_cache=False)",
        )  # fmt: skip


def sample_inputs(specs: tuple[TensorSpec, ...], batch: int, length: int = 8, seed: int | None = None) -> Arrays:
    """Inputs that fit the specs: zeros, or with a seed standard normal floats and integers 0 or 1.

    A free axis is ``batch`` long when it is called so, else ``length``.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    made = []
    for spec in specs:
        shape = tuple(
            axis if isinstance(axis, int) else batch if axis == "batch" or not place else length
            for place, axis in enumerate(spec.shape)
        )
        dtype = np.dtype(spec.dtype)
        if rng is None:
            values: Any = np.zeros(shape)
        else:
            values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made.append(np.asarray(values).astype(dtype))
    return tuple(made)


def fingerprint(module: torch.nn.Module) -> dict[str, Any]:
    """What decides a module's answers beside its parameters, as digests and without any path.

    Of every class of the user's own: its qualified name and the sha256 of its code, with the functions and plain
    values that its methods use from their own file. Of every submodule: attributes (plain values, tensors, containers,
    objects, functions with what these were closed over), hooks, buffers that ``state_dict`` leaves out, and which
    parameters are frozen.
    """
    classes: dict[str, dict[str, None]] = {}  # digests in order
    known: set[type] = set()
    for kind in map(type, module.modules()):
        for one in kind.__mro__:  # what it inherits decides as much
            if one not in known and one.__module__.partition(".")[0] not in _GIVEN:
                known.add(one)
                classes.setdefault(_short(one), {})[str(digest_of(one))] = None
    state = hashlib.sha256()
    for name, part in module.named_modules():
        label = _short(type(part))
        # where two classes have one name, which of them stands here
        which = f"={digest_of(type(part))}" if len(classes.get(label, ())) > 1 else ""
        state.update(f"{name}:{label}{which}:{_plain(part)}".encode())
        for key in sorted(part._non_persistent_buffers_set):
            buffer = part._buffers.get(key)
            state.update(key.encode() + (b"" if buffer is None else to_array(buffer).tobytes()))
    still = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    state.update(",".join(still).encode())  # a training leaves them as they are
    # files in two folders may define a class of one name, and one inherit from the other
    digests = {label: "+".join(found) for label, found in sorted(classes.items())}
    return {"classes": digests, "state": state.hexdigest()}


def _short(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}"


def _plain(module: torch.nn.Module) -> str:
    """The submodule's own attributes as text: plain values as they are, and digests of what else it holds: tensors,
    containers, functions with what they were closed over, hooks, objects."""
    given = type(module).__module__.startswith("torch.")
    found = [module.extra_repr()] if given else []
    for key, value in sorted(vars(module).items()):
        if key in _MODULES_OWN or (given and key.startswith("_")) or isinstance(value, torch.nn.Module):
            continue
        if torch_edits.is_plain(value):
            found.append(f"{key}={value!r}")
        elif isinstance(value, types.MethodType):  # what it is bound to may be the module itself
            found.append(f"{key}={code_of(value)}")
        elif (digest := digest_of(value)) is not None:
            found.append(f"{key}={digest}")
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return ";".join([*found, *(str(digest_of(hook)) for hook in hooks)])
