"""Rewriting an ONNX graph without changing what it computes: folding, clean-up, shapes, a newer operator set."""

from __future__ import annotations

import heapq
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.errors import ArtifactError, BuildError, ParetuneError
from paretune.forms import onnx as form

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = np.ndarray[Any, Any]
STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
MIN_OPSET = 13
"""The first operator set with per-axis QuantizeLinear."""


def fold(model: onnx.ModelProto, threads: int = 1) -> onnx.ModelProto:
    """Constants folded, batch normalisation in the convolution before it, dead code removed, shapes inferred.

    By onnxruntime's offline optimiser at its ``basic`` level, whose result holds standard operators and free axes like
    the model it was given. The order of the weights is made the same in every process, and every node has a name.

    Raises
    ------
    BuildError
        If onnxruntime does not open the model, or its result holds operators that the model did not.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, folded = Path(scratch) / "given.onnx", Path(scratch) / "folded.onnx"
        form.write(model, given)
        try:
            _optimise(given, folded, threads)
            result = form.load_file(folded)
        except ParetuneError:
            raise
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise BuildError(f"onnxruntime cannot optimise the model: {form.first_line(error)}") from error
    foreign = _domains(result) - _domains(model) - STANDARD
    if foreign:
        raise BuildError(f"onnxruntime's optimiser put operators of {', '.join(sorted(foreign))} into the model")
    return tidy(result)


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without functions and what no output needs, with named nodes, sorted weights and inferred shapes."""
    import onnx
    import onnx.inliner

    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.inliner.inline_local_functions(model) if model.functions else model)
    _clean(copy.graph)
    used = _domains(copy) | {""}
    kept = [entry for entry in copy.opset_import if entry.domain in used]
    _replace(copy.opset_import, sorted(kept, key=lambda entry: str(entry.domain)))
    _name_nodes(copy)
    del copy.graph.value_info[:]
    try:
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # shapes are a help, not a need: a foreign operator or a 2 GiB model has none
        return copy
    _replace(copy.graph.value_info, sorted(copy.graph.value_info, key=lambda value: str(value.name)))
    return copy


def upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in operator set 13 or newer; raises :class:`BuildError` if an operator cannot be converted."""
    import onnx

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), MIN_OPSET)
    if opset >= MIN_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, MIN_OPSET)
    except Exception as error:  # the converter raises plain RuntimeErrors
        raise BuildError(
            f"operator set {opset} cannot be converted to {MIN_OPSET}: {form.first_line(error)}",
            do=f"export the model with opset {MIN_OPSET} or newer",
        ) from error


def kept_nodes(model: onnx.ModelProto, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the nodes that a pattern (``fnmatch``) matches, and the patterns that match none."""
    names = [node.name for graph in form.graphs(model.graph) for node in graph.node if node.name]
    kept = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    return kept, idle


def opened(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session of the graph as it stands, without optimisation; raises :class:`BuildError` if there can be none."""
    import onnxruntime

    plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        form.write(model, path)
        try:
            return form.session(path, threads, graph_optimization_level=plain)
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise BuildError(f"onnxruntime does not open the model: {form.first_line(error)}") from error


def run(model: onnx.ModelProto, feed: Mapping[str, Array], threads: int = 1) -> Mapping[str, Array]:
    """The outputs by name for one batch of inputs by name; the graph runs as it stands, without optimisation.

    Raises
    ------
    BuildError
        If onnxruntime does not open or run the model.
    """
    session = opened(model, threads)
    outputs = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
    except Exception as error:
        raise BuildError(f"onnxruntime does not run the model: {form.first_line(error)}") from error


def same(before: Mapping[str, Array], after: Mapping[str, Array], tolerance: float = 1e-4) -> str:
    """Why two sets of outputs differ (name and largest error relative to the output's own scale); empty if they agree.

    ``tolerance`` is relative to the largest magnitude of each output; NaN and infinity must stand in the same places.
    """
    if list(before) != list(after):
        return f"outputs {', '.join(before)} became {', '.join(after)}"
    for name, expected in before.items():
        found = after[name]
        if expected.shape != found.shape or expected.dtype != found.dtype:
            return f"{name} is {found.dtype}{list(found.shape)} instead of {expected.dtype}{list(expected.shape)}"
        if expected.dtype.kind != "f":
            if not np.array_equal(expected, found):
                return f"{name} differs"
            continue
        scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))) or 1.0
        if not np.allclose(found, expected, rtol=0, atol=tolerance * scale, equal_nan=True):
            worst = float(np.nanmax(np.abs(found - expected)))
            return f"{name} is off by {worst:.2g} where its largest value is {scale:.2g}"
    return ""


def _optimise(given: Path, folded: Path, threads: int) -> None:
    import onnxruntime

    form.session(
        given,
        threads,
        graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        optimized_model_filepath=str(folded),
    )
    if not folded.is_file():
        raise ArtifactError("onnxruntime wrote no optimised model", where=str(folded))


def _domains(model: onnx.ModelProto) -> set[str]:
    return {
        "" if node.domain == "ai.onnx" else node.domain for graph in form.graphs(model.graph) for node in graph.node
    }


def _order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes in topological order, as near to the given one as it allows: converters append where they please."""
    maker = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waiting, users = {}, defaultdict(list)
    for place, node in enumerate(graph.node):
        needs = {maker[name] for name in _read_by(node) if name in maker}
        waiting[place] = len(needs)
        for need in needs:
            users[need].append(place)
    ready = [place for place, count in waiting.items() if not count]
    ordered = []
    while ready:
        place = heapq.heappop(ready)
        ordered.append(graph.node[place])
        for user in users[place]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return ordered


def _clean(graph: onnx.GraphProto) -> None:
    """Sort the nodes; drop those, and the weights, that no output depends on."""
    needed = {output.name for output in graph.output}
    live: list[onnx.NodeProto] = []
    for node in reversed(_order(graph)):
        if needed.intersection(name for name in node.output if name):
            live.append(node)
            needed.update(_read_by(node))
    weights = sorted((tensor for tensor in graph.initializer if tensor.name in needed), key=lambda one: str(one.name))
    for field, values in ((graph.node, live[::-1]), (graph.initializer, weights)):
        _replace(field, values)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, those that its nested graphs take from outside included."""
    read = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            read.update(output.name for output in graph.output)
            for inner in graph.node:
                read |= _read_by(inner)
    return read


def _replace(field: Any, values: list[Any]) -> None:
    """Put ``values``, which may stand in ``field`` themselves, in the place of what it holds."""
    copies = []
    for value in values:
        copies.append(type(value)())
        copies[-1].CopyFrom(value)
    del field[:]
    field.extend(copies)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Unnamed nodes get ``OpType_3``: a name is how a person keeps a node in float."""
    taken = {node.name for graph in form.graphs(model.graph) for node in graph.node}
    for place, node in enumerate(node for graph in form.graphs(model.graph) for node in graph.node):
        if node.name:
            continue
        name = f"{node.op_type}_{place}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
