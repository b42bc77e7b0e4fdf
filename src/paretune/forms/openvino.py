"""The openvino form: ``model.xml`` and ``model.bin`` (OpenVINO IR, version 11).

https://docs.openvino.ai/2025/documentation/openvino-ir-format.html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from paretune.ask.artifact import Artifact
from paretune.errors import ArtifactError

XML = "model.xml"
_TELEMETRY = "openvino_telemetry"
_NO_MODULE: Any = None  # what the import system takes as "not installed"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import openvino or nncf inside: both send a usage event over the network on import otherwise.

    Their own fallback for a missing telemetry package is used, and stays in use after the import.
    """
    absent = _TELEMETRY not in sys.modules
    if absent:
        sys.modules[_TELEMETRY] = _NO_MODULE
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(_TELEMETRY, None)


def framework() -> Any:
    """The ``openvino`` module, imported so that it does not reach for the network."""
    with without_telemetry():
        import openvino
    return openvino


@cache
def core() -> Any:
    """The one ``openvino.Core`` of this process."""
    return framework().Core()


@cache
def capabilities() -> frozenset[str]:
    """What this CPU computes natively, in OpenVINO's words: ``FP32``, ``BF16``, ``FP16``, ``INT8`` …"""
    return frozenset(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def seal(
    model: Any,
    root: Path,
    like: Artifact,
    *,
    compress_to_fp16: bool,
    named: Collection[str] = frozenset(),
    **facts: Any,
) -> Artifact:
    """Save an ``openvino.Model`` into ``root`` and seal it; the same model gives the same bytes.

    Parameters
    ----------
    model
        Its inputs and outputs are those of ``like``, by name or, where a name was lost, by position. Node names that
        OpenVINO made up are replaced: they count over the life of a process.
    root
        An existing directory.
    like
        The artefact it was made of: its specs, call convention, precision, parameters, macs and notes are kept.
    compress_to_fp16
        Store float weights in 16 bits; they are widened again when the model is compiled.
    named
        Node names that are the model's own, although they look like those that OpenVINO makes up (``MatMul_3``).
    facts
        Attributes of :class:`Artifact` that differ from those of ``like``.

    Raises
    ------
    ArtifactError
        If the number of inputs or outputs is another one.
    """
    _name_ports(model.inputs, [spec.name for spec in like.inputs], "inputs")
    _name_ports(model.outputs, [spec.name for spec in like.outputs], "outputs")
    _rename(model, named)
    path = root / XML
    framework().save_model(model, path, compress_to_fp16=compress_to_fp16)
    _strip_tools(path)
    kept = {
        name: getattr(like, name)
        for name in ("keyword_inputs", "output_kind", "precision", "parameters", "macs", "notes")
    }
    return Artifact.seal("openvino", root, like.inputs, like.outputs, **kept | facts)


def load(artifact: Artifact) -> Any:
    """The artefact as an ``openvino.Model``, uncompiled.

    Raises
    ------
    ArtifactError
        If OpenVINO cannot read the files.
    """
    path = artifact.path(".xml")
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO cannot read it: {reason(error)}", where=str(path)) from error


def positions(ports: Sequence[Any], names: Sequence[str]) -> list[int]:
    """Where the ports (of a model or a compiled model) with these tensor names stand.

    Raises
    ------
    ArtifactError
        If a name is missing.
    """
    found = []
    for name in names:
        hits = [index for index, port in enumerate(ports) if name in port.get_names()]
        if not hits:
            raise ArtifactError(f"the model has no input or output named {name!r}", do="build the artefact again")
        found.append(hits[0])
    return found


def reason(error: BaseException) -> str:
    """The telling line of an OpenVINO exception: the last one that is not about where in OpenVINO it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if not re.match(r"Exception from |Check '.*' failed at |FrontEnd API failed", line)
    ]
    return (telling or lines or [type(error).__name__])[-1].rstrip(".")


def _name_ports(ports: Sequence[Any], names: Sequence[str], what: str) -> None:
    if len(ports) != len(names):
        raise ArtifactError(f"the converted model has {len(ports)} {what} and the original {len(names)}")
    known = set().union(*(port.get_names() for port in ports))
    if known.issuperset(names):
        return
    for port, name in zip(ports, names, strict=True):
        if name not in port.get_names():
            port.get_tensor().add_names({name})


def _rename(model: Any, named: Collection[str]) -> None:
    """Give nodes that OpenVINO named itself (``Constant_131407``) a name that depends on the model alone."""
    ops = list(model.get_ordered_ops())
    taken = {op.get_friendly_name() for op in ops}
    # a folded or fused operator may bear the name of one of another type
    made_up = [op for op in ops if re.fullmatch(r"[A-Z]\w*_\d+", name := op.get_friendly_name()) and name not in named]
    fresh: dict[str, str] = {}
    index = 0
    for op in made_up:
        while (name := f"{op.get_type_name()}_n{index}") in taken:
            index += 1
        index += 1
        fresh[op.get_friendly_name()] = name
    for op in ops:
        # names derived from a made-up one carry it before a slash: Constant_131407/fq_weights_1
        parts = op.get_friendly_name().split("/")
        renamed = "/".join(fresh.get(part, part) for part in parts)
        if renamed != op.get_friendly_name():
            op.set_friendly_name(renamed)


def _strip_tools(path: Path) -> None:
    """Remove the model-level ``rt_info``, which holds versions and options of the tools that wrote the file."""
    text = path.read_text()
    end = text.rfind("</rt_info>")
    tail = text[end + len("</rt_info>") :] if end >= 0 else ""
    if tail.split() == ["</net>"]:
        start = text.rfind("\t<rt_info>\n", text.rfind("</edges>"), end)
        if start >= 0:
            path.write_text(text[:start] + "</net>\n")
