"""An ONNX model: a file, or a ``ModelProto`` in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split, fit_inputs
from paretune.errors import ArtifactError, BuildError
from paretune.forms import onnx as form
from paretune.forms import onnx_optimize

if TYPE_CHECKING:
    import onnx

BUILT_IN = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})


class OnnxFile:
    """Front door for ``.onnx`` files and ``onnx.ModelProto``; nothing in the file is run but by onnxruntime."""

    name: ClassVar[str] = "onnx_file"
    gives: ClassVar[str] = "onnx"
    home: ClassVar[str] = "onnxruntime"
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx>=1.19", "onnxruntime": "onnxruntime>=1.23"}

    def read(self, model: object, examples: Split | None, into: Path) -> Artifact | None:
        """Check the model and seal it, its batch axis made free where that changes no answer.

        Raises
        ------
        WorkloadError
            If the file does not exist.
        DataError
            If the examples do not fit the inputs.
        ArtifactError
            If the model is not valid ONNX, or onnxruntime does not open it (an operator without a runtime, say).
        """
        if isinstance(model, str | Path) and str(model).endswith(".onnx"):
            where = str(model)
            loaded = form.load_file(Path(model))
        elif type(model).__name__ == "ModelProto" and type(model).__module__.startswith("onnx"):
            where = "model"
            loaded = model
            form.check(loaded, where)
        else:
            return None
        _refuse_unknown(loaded, where)
        loaded, note = _freed(_shaped(loaded), where)
        artifact = form.seal(loaded, into, notes=(note,) if note else ())
        if examples is not None:
            _check_examples(examples, artifact)
        return artifact

    def native(self, array: Any) -> Any:
        """The numpy array itself."""
        return array


def _shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """With shapes on every output: old exporters leave them out."""
    import onnx

    if all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # sealing says which output has none
        return model


def _refuse_unknown(model: onnx.ModelProto, where: str) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    unknown = {
        f"{node.domain}.{node.op_type}"
        for graph in form.graphs(model.graph)
        for node in graph.node
        if node.domain not in BUILT_IN and (node.domain, node.op_type) not in own
    }
    if unknown:
        raise ArtifactError(
            f"uses custom operators that onnxruntime does not have: {', '.join(sorted(unknown))}", where=where,
            do="export the model with standard operators only",
        )  # fmt: skip


def _check_examples(examples: Split, artifact: Artifact) -> None:
    """The examples against the inputs; a fixed batch size is the runtime's affair, not the data's."""
    free = tuple(dataclasses.replace(spec, shape=("batch", *spec.shape[1:])) for spec in artifact.inputs if spec.shape)
    loose = dataclasses.replace(artifact, inputs=free)
    head = examples.head(2)
    fit_inputs(next(head.batches(2)).inputs, head.keys, loose, examples.name)


def _freed(model: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, str]:
    """The model with a free batch axis and an empty note, or as it was and why.

    It is opened in any case, so that what onnxruntime cannot run is refused here.
    """
    try:
        onnx_optimize.opened(model)
    except BuildError as error:
        raise ArtifactError(error.what, where=where, do="export it with operators that onnxruntime has") from error
    inputs, outputs = form.specs(model)
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    if not any(isinstance(size, int) for size in sizes):
        return model, ""
    note = "the batch size is fixed in the file, and freeing it fails or changes the answers"
    size = sizes.pop()
    if sizes or not isinstance(size, int) or any(spec.shape[:1] != (size,) for spec in outputs):
        return model, note
    free = _free_axes(model)
    for candidate in (free, _free_reshapes(free, size)):
        if _agrees(model, candidate, inputs, size):
            return candidate, ""
    return model, note


def _agrees(fixed: onnx.ModelProto, free: onnx.ModelProto, inputs: tuple[TensorSpec, ...], size: int) -> bool:
    """Whether ``free`` gives the same rows at batch 1, 2 and 3 as ``fixed`` gives at its own batch size."""
    chunks = [form.random_inputs(inputs, size, seed) for seed in range(-(-3 // size))]
    names = [spec.name for spec in inputs]
    rows = {name: np.concatenate(parts) for name, *parts in zip(names, *chunks, strict=True)}
    try:
        answers = [onnx_optimize.run(fixed, dict(zip(names, chunk, strict=True))) for chunk in chunks]
        expected = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
        return not any(
            onnx_optimize.same(
                {name: value[:batch] for name, value in expected.items()},
                onnx_optimize.run(free, {name: value[:batch] for name, value in rows.items()}),
            )
            for batch in (1, 2, 3)
        )
    except BuildError:
        return False


def _free_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs have a first axis named ``batch``; shapes in between are forgotten."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in (*copy.graph.input, *copy.graph.output):
        if value.name not in weights:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return copy


def _free_reshapes(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """A copy in which a Reshape to a constant shape that starts with the batch size follows the batch instead."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    added = []
    for place, node in enumerate(copy.graph.node):
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        shape = [] if tensor is None else onnx.numpy_helper.to_array(tensor).tolist()
        if not shape or shape[0] != size:
            continue
        # 0 copies the axis of the input, which is the batch wherever the other entry already is -1
        shape[0] = 0 if -1 in shape else -1
        name = f"{node.input[1]}_free_{place}"
        added.append(onnx.numpy_helper.from_array(np.asarray(shape, np.int64), name))
        node.input[1] = name
    copy.graph.initializer.extend(added)
    return copy
