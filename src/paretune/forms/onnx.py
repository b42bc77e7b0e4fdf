"""The form ``onnx``: one ``model.onnx`` (ONNX IR protobuf, https://onnx.ai/onnx/repo-docs/IR.html), opened and sealed.

onnx and onnxruntime are imported inside the functions, so that plug-ins that use this file stay cheap to list.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.target import Arrays
from paretune.errors import ArtifactError, WorkloadError
from paretune.forms.onnx_count import count_macs, count_parameters

if TYPE_CHECKING:
    import onnx
    import onnxruntime

FILE = "model.onnx"
LARGE_BYTES = 1_800_000_000
"""Above this a model's weights go into a file beside it: one protobuf message cannot exceed 2 GiB."""

_PRODUCT = re.compile(r"Conv|Gemm|MatMul|Attention|LSTM|GRU")
_INTEGER = re.compile(r"QLinear|QGemm|QAttention|Integer|DynamicQuantize")
"""Of onnxruntime's kernels, those that multiply, and those of them that multiply integers."""

_FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "a .pt, .pt2 or .keras file is not an ONNX model: export it to ONNX first"),
    b"\x89HDF": ("an HDF5 file", "export the model to ONNX first"),
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
}


def load(artifact: Artifact) -> onnx.ModelProto:
    """The model of an ONNX artefact, weights in memory; raises :class:`ArtifactError` as :func:`load_file` does."""
    return load_file(artifact.path(".onnx"))


def load_file(path: Path) -> onnx.ModelProto:
    """The checked model in a file, weights in memory. Nothing in the file is run.

    Raises
    ------
    WorkloadError
        If there is no such file.
    ArtifactError
        If it is no ONNX model (a pickle, a zip …), is cut off, breaks the ONNX specification, or names external data
        that is missing or lies outside the file's own directory.
    """
    import onnx

    if not path.is_file():
        raise WorkloadError("there is no such file", where=str(path))
    _refuse_foreign(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own error, which has no typed home
        raise ArtifactError(
            "cannot be read as ONNX: the file is cut off or is something else", where=str(path), do="export it again"
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError("holds no ONNX graph", where=str(path), do="export the model to ONNX again")
    _load_external(model, path)
    check(model, str(path))
    return model


def check(model: onnx.ModelProto, where: str) -> None:
    """Raise :class:`ArtifactError` unless ``model`` obeys the ONNX specification (``where`` names it)."""
    import onnx

    if _weight_bytes(model) > LARGE_BYTES:
        return  # the checker takes one message of at most 2 GiB; the runtime checks such a model when it opens it
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own and protobuf's errors
        raise ArtifactError(f"is not valid ONNX: {first_line(error)}", where=where, do="export it again") from error


def seal(model: onnx.ModelProto, root: Path, like: Artifact | None = None, **facts: Any) -> Artifact:
    """Write ``root/model.onnx`` and seal it; the same model gives the same bytes.

    Metadata and doc strings are dropped, because exporters put source paths there; outputs in bfloat16, which numpy
    lacks, are cast to float32. Specs come from the graph: numpy's dtype names, free axes as strings, a free first axis
    named ``batch``.

    Parameters
    ----------
    model
        Weights in memory. It is not changed.
    root
        A directory that holds nothing else.
    like
        The artefact this one was made of: input and output order (where the names agree), ``keyword_inputs``,
        ``output_kind``, ``precision``, ``parameters``, ``macs`` and ``notes`` are taken from it.
    facts
        Fields of :class:`Artifact` that override all that.

    Raises
    ------
    ArtifactError
        If the model breaks the ONNX specification, or an input or output is not a tensor or states no type.
    """
    import onnx

    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    _strip(clean)
    _cast_bfloat16_outputs(clean)
    check(clean, str(root))
    root.mkdir(parents=True, exist_ok=True)
    inputs, outputs = specs(clean)
    known = {} if like is None else _inherited(like)
    known.setdefault("parameters", count_parameters(clean))
    known.setdefault("macs", count_macs(clean))
    write(clean, root / FILE)
    return Artifact.seal(
        "onnx",
        root,
        _ordered(inputs, like.inputs if like else ()),
        _ordered(outputs, like.outputs if like else ()),
        **{"output_kind": "single" if len(outputs) == 1 else "tuple", **known, **facts},
    )


def specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Specs of the inputs (without initialisers, which old files list as inputs) and outputs, in graph order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def session(path: Path, threads: int, **options: Any) -> onnxruntime.InferenceSession:
    """A quiet onnxruntime CPU session; ``options`` are attributes of ``onnxruntime.SessionOptions``.

    The number of threads is always set: onnxruntime's own default escapes the process's CPU affinity.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def kernel_counts(path: Path, inputs: Arrays, threads: int = 1) -> dict[str, int]:
    """How often each kind of kernel ran in one inference, by onnxruntime's own profile: ``{"QLinearConv": 19, …}``.

    ``inputs`` are in the order of the graph's inputs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        opened = session(path, threads, enable_profiling=True, profile_file_prefix=str(Path(scratch) / "profile"))
        names = [value.name for value in opened.get_inputs()]
        opened.run(None, dict(zip(names, inputs, strict=True)))
        events = json.loads(Path(opened.end_profiling()).read_text())
    ran = (event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"))
    return dict(sorted(Counter(event["args"]["op_name"] for event in ran).items()))


def told_kernels(counts: Mapping[str, int]) -> str:
    """Of the products that :func:`kernel_counts` saw, how many ran in integers and which did not, in words."""
    products = {kind: count for kind, count in counts.items() if _PRODUCT.search(kind)}
    integer = {kind: count for kind, count in products.items() if _INTEGER.search(kind)}
    floats = {kind: count for kind, count in products.items() if kind not in integer}
    whole = f"{sum(integer.values())} of {sum(products.values())} products in integers"
    kinds = [", ".join(f"{count} {kind}" for kind, count in some.items()) for some in (integer, floats)]
    done = f" ({kinds[0]})" if kinds[0] else ""
    return f"onnxruntime computes {whole}{done}" + (f", and in float {kinds[1]}" if kinds[1] else "")


def cpus() -> int:
    """How many CPUs this process may use: the number of threads for work at building time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_inputs(inputs: tuple[TensorSpec, ...], batch: int, seed: int, length: int = 8) -> Arrays:
    """Seeded inputs that fit the specs, for comparing two versions of a model.

    Floats are standard normal; integers and booleans are 0 or 1, which any table of tokens contains; a free first axis
    is ``batch`` long, any other free axis ``length``.
    """
    rng = np.random.default_rng(seed)
    made = []
    for spec in inputs:
        shape = [axis if isinstance(axis, int) else length if place else batch for place, axis in enumerate(spec.shape)]
        dtype = np.dtype(spec.dtype)
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        made.append(np.asarray(values).astype(dtype))
    return tuple(made)


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save the model, weights inside the file where one protobuf message can hold them, else in ``PATH.data``."""
    import onnx

    if _weight_bytes(model) <= LARGE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data",
        size_threshold=1024,
    )  # fmt: skip


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph nested in its nodes (the branches of ``If``, the body of ``Loop`` …)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def first_line(error: Exception) -> str:
    """The first line of an error's text, which for onnx and onnxruntime says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).removesuffix(".")


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ArtifactError("is empty", where=str(path))
    # a pickle of protocol 2 and above starts with PROTO and its number; an ONNX file with a field tag below 0x80
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        raise ArtifactError(
            "is a Python pickle, which is never opened: it can run any code", where=str(path),
            do="export the model to ONNX",
        )  # fmt: skip
    for magic, (what, do) in _FOREIGN.items():
        if head.startswith(magic):
            raise ArtifactError(f"is {what}, not an ONNX model", where=str(path), do=do)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    bodies = [node for function in model.functions for node in function.node]
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        bodies.extend(graph.node)
    for node in bodies:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    folder = path.parent.resolve()
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        entry = {item.key: item.value for item in tensor.external_data}
        location = entry.get("location", "")
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or folder not in file.parents:
            raise ArtifactError(
                f"{tensor.name!r} names external data outside the file's directory: {location!r}", where=str(path),
                do="do not use this file unless you know who made it",
            )  # fmt: skip
        if not file.is_file():
            raise ArtifactError(f"its external data {location!r} is missing", where=str(path), do="copy both files")
        if not _fits(entry, file.stat().st_size):
            raise ArtifactError(f"its external data {location!r} is cut off", where=str(path), do="copy it again")
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # the checker's own errors, among others
            raise ArtifactError(f"its external data does not load: {first_line(error)}", where=str(path)) from error
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


def _fits(entry: Mapping[str, str], size: int) -> bool:
    try:
        offset, length = int(entry.get("offset", 0)), int(entry.get("length", 0))
    except ValueError:
        return False
    return offset >= 0 and length >= 0 and offset + length <= size


def _strip(model: onnx.ModelProto) -> None:
    """Drop metadata and doc strings at every level, but for what the user noted on the model as a whole."""
    kept = [prop for prop in model.metadata_props if not prop.key.startswith(("pkg.", "namespace", "onnx."))]
    del model.metadata_props[:]
    model.metadata_props.extend(sorted(kept, key=lambda prop: str(prop.key)))
    model.doc_string = ""
    for function in model.functions:
        _bare([function, *function.node, *function.value_info])
    for graph in graphs(model.graph):
        _bare([graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info])
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = ""


def _bare(parts: list[Any]) -> None:
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _cast_bfloat16_outputs(model: onnx.ModelProto) -> None:
    import onnx

    for output in model.graph.output:
        if output.type.tensor_type.elem_type != onnx.TensorProto.BFLOAT16:
            continue
        inner = f"{output.name}_bfloat16"
        for graph in graphs(model.graph):
            for node in graph.node:
                node.input[:] = [inner if name == output.name else name for name in node.input]
                node.output[:] = [inner if name == output.name else name for name in node.output]
        model.graph.node.append(
            onnx.helper.make_node("Cast", [inner], [output.name], name=f"{inner}_cast", to=onnx.TensorProto.FLOAT)
        )
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or not value.type.tensor_type.elem_type:
        raise ArtifactError(
            f"is a {kind or 'value of unstated type'}, and only tensors are taken", where=value.name,
            do="export the model with tensors as inputs and outputs (for scikit-learn: zipmap=False)",
        )  # fmt: skip
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ArtifactError("has no stated shape", where=value.name, do="run ONNX shape inference on the model first")
    shape: list[int | str] = []
    for place, axis in enumerate(tensor.shape.dim):
        fixed = axis.WhichOneof("value") == "dim_value" and axis.dim_value > 0
        name = "batch" if place == 0 else axis.dim_param or f"{value.name}_{place}"
        shape.append(axis.dim_value if fixed else name)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, tuple(shape))


def _inherited(like: Artifact) -> dict[str, Any]:
    facts = {name: getattr(like, name) for name in ("keyword_inputs", "output_kind", "precision", "notes")}
    counts = {name: getattr(like, name) for name in ("parameters", "macs") if getattr(like, name) is not None}
    return {**facts, **counts}


def _ordered(found: tuple[TensorSpec, ...], like: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """``found`` in the order of ``like`` where both have the same names, else as it is."""
    by_name = {spec.name: spec for spec in found}
    if set(by_name) != {spec.name for spec in like}:
        return found
    return tuple(by_name[spec.name] for spec in like)


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) or 8 * int(np.prod(tensor.dims)) for tensor in _tensors(model))
