"""Exported programs (``.pt2``): opened only after every member of the archive was checked.

The loader of ``torch.export`` (``torch/export/pt2_archive``, ``torch/_export/serde``) turns parts of the file into
running code: it unpickles sample inputs, weights and constants, evaluates shape expressions with ``sympy.sympify``,
executes guard strings, resolves any dotted name below ``torch`` as an operator, imports modules named in tree
specifications, and pastes argument names into generated Python. Nothing of that may come from a stranger, so a file is
read with ``zipfile`` and ``json`` alone, judged by lists of what is allowed, written anew without what is not needed,
and only that private copy is given to the loader.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import keyword
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from paretune.errors import ArtifactError

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"

_NEEDED = {MODEL, WEIGHTS, CONSTANTS, "archive_format", "archive_version"}
_KNOWN = _NEEDED | {SAMPLES, "byteorder", ".data/version", ".data/serialization_id", "version"}
_PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+", re.ASCII)

_TEXT = re.compile(r"[\w.+/: -]*", re.ASCII)  # no quote, bracket, comma, equals sign or newline: it cannot become code
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(\w+)\.(\w+)", re.ASCII)
_PLAIN = re.compile(
    r"torch\._?sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|invert|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow|rshift|sub"
    r"|truediv|xor)"
    r"|torch\.ops\.higher_order\.(associative_scan|cond|map_impl|scan|while_loop|wrap_with_autocast"
    r"|wrap_with_set_grad_enabled)",
    re.ASCII,
)
_SILENT = ("_assert", "sym_constrain_range")  # the only aten operators without a result that a program needs
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_SYMBOL = re.compile(r"[a-z]{1,4}\d+|true|false|oo|int_oo", re.ASCII)
_FUNCTION = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatPow|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan"
    r"|Gt|Identity|IntTrueDiv|Integer|IsNonOverlappingAndDenseIndicator|LShift|Le|LessThan|Lt|Max|Min|Mod"
    r"|ModularIndexing|Mul|Ne|Not|Or|Piecewise|Pow|PowByNatural|PythonMod|RShift|Rational|RoundDecimal|RoundToInt"
    r"|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt|Unequality|Where|ceiling|floor"
)
_EXPRESSION = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop, ast.Tuple,
)  # fmt: skip


def open_checked(path: Path) -> torch.export.ExportedProgram:
    """The exported program in a ``.pt2`` file, without its sample inputs; no code of the file is run.

    Raises
    ------
    ArtifactError
        If it is no such archive, holds pickled tensors, custom objects, native code, operators that are not plain
        tensor arithmetic, or anything that the format does not have; or if torch cannot read it.
    """
    if not path.is_file():
        raise ArtifactError("there is no such file", where=str(path))
    with tempfile.TemporaryDirectory(prefix="paretune-") as private:
        copy = Path(private) / "model.pt2"
        try:
            with zipfile.ZipFile(path) as archive:
                _rewrite(archive, copy, str(path))
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, RecursionError, NotImplementedError) as error:
            raise ArtifactError(f"is not an exported program: {error}", where=str(path)) from error
        try:
            with quiet():
                return torch.export.load(copy)
        except Exception as error:  # the loader fails in many ways on a file that was cut or is of another version
            reason = str(error).strip().splitlines() or [""]
            raise ArtifactError(
                f"torch {torch.__version__} cannot read it: {type(error).__name__}: {reason[0][:200]}",
                where=str(path),
                do="export the program again with this version of torch",
            ) from error


def _rewrite(archive: zipfile.ZipFile, copy: Path, where: str) -> None:
    members = _members(archive, where)
    model = json.loads(archive.read(members[MODEL]))
    _forget(model)
    _judge(model, "", where)
    weights, constants = json.loads(archive.read(members[WEIGHTS])), json.loads(archive.read(members[CONSTANTS]))
    for config in (weights, constants):
        _judge_payload(config, where)
    if archive.read(members["archive_format"]) != b"pt2":
        raise ArtifactError("is not an exported program: its format is unknown", where=where)
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise ArtifactError("was written on a big-endian machine", where=where, do="export it again on this one")
    writer = torch._C.PyTorchFileWriter(str(copy))
    try:
        writer.set_min_version(6)
        written = {MODEL: model, WEIGHTS: weights, CONSTANTS: constants}
        contents: dict[str, bytes] = {name: json.dumps(value).encode() for name, value in written.items()}
        contents |= {name: archive.read(members[name]) for name in ("archive_format", "archive_version")}
        contents[SAMPLES] = b""
        for name, content in contents.items():
            writer.write_record(name, content, len(content))
        for name in filter(_PAYLOAD.fullmatch, members):
            content = archive.read(members[name])
            writer.write_record(name, content, len(content))
    finally:
        writer.write_end_of_file()


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by their name below its one root folder; refuses every name that is not expected."""
    members: dict[str, zipfile.ZipInfo] = {}
    roots = set()
    for info in archive.infolist():
        root, _, name = info.filename.partition("/")
        roots.add(root)
        if name.startswith("data/aotinductor/"):
            raise ArtifactError(
                "is a compiled package: native code, which cannot be checked", where=where,
                do="export the program with torch.export.save instead",
            )  # fmt: skip
        if name.startswith("extra/"):
            continue
        if name.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")) or name.endswith(".pkl"):
            raise ArtifactError(f"holds a pickled object ({name}), which runs code when read", where=where,
                                do="export the program without custom objects")  # fmt: skip
        if name not in _KNOWN and not _PAYLOAD.fullmatch(name):
            raise ArtifactError(f"is not an exported program: it holds {name or info.filename!r}", where=where)
        if name in members or len(roots) > 1 or info.compress_type != zipfile.ZIP_STORED:
            raise ArtifactError(f"is doctored: {info.filename!r} is doubled, compressed or misplaced", where=where)
        members[name] = info
    missing = _NEEDED - set(members)
    if missing:
        raise ArtifactError(f"is not an exported program: it lacks {', '.join(sorted(missing))}", where=where)
    return members


def _forget(model: Any) -> None:
    """Empty, in place, what the program runs without and what the loader would resolve or execute."""
    if not isinstance(model, dict):
        raise ValueError("its model is not a JSON object")
    model["guards_code"] = []
    pending = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("metadata"), dict):
                value["metadata"] = {}
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _judge(value: Any, key: str, where: str) -> None:
    """Refuse anything in the program's JSON that the loader could turn into code; ``key`` names the value's place."""
    if key in ("as_custom_obj", "custom_obj") or (key == "custom_obj_values" and value):
        raise ArtifactError("holds a custom object", where=where, do="export the program without custom objects")
    if isinstance(value, dict):
        for name, part in value.items():
            _judge_text(name, "", where)
            _judge(part, name, where)
    elif isinstance(value, list):
        for part in value:
            _judge(part, key, where)
    elif isinstance(value, str):
        _judge_text(value, key, where)


def _judge_text(text: str, key: str, where: str) -> None:
    if key in ("target", "as_operator"):
        _judge_operator(text, where)
    elif key == "expr_str":
        _judge_expression(text, where)
    elif key in ("in_spec", "out_spec"):
        _judge_tree(text, where)
    elif key in ("as_string", "as_strings"):
        return  # an argument's value: generated code holds its repr
    elif key == "forward_arg_names" or (key in ("name", "as_name") and text):
        if not text.isidentifier() or (key == "forward_arg_names" and keyword.iskeyword(text)):
            raise ArtifactError(f"names an argument {text[:80]!r}", where=where)
    elif not _TEXT.fullmatch(text):
        raise ArtifactError(f"holds the text {text[:80]!r} where a name belongs", where=where)


def _judge_operator(target: str, where: str) -> None:
    if _PLAIN.fullmatch(target):
        return
    refusal = ArtifactError(
        f"calls {target[:80]!r}, which is not one of torch's own tensor operators", where=where,
        do="export a program of aten operators, or give the nn.Module itself",
    )  # fmt: skip
    match = _OPERATOR.fullmatch(target)
    if match is None:
        raise refusal
    namespace, name, overload = match.groups()
    try:
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
    except (AttributeError, RuntimeError):
        raise refusal from None
    files = any("file" in argument.name and "str" in str(argument.type) for argument in schema.arguments)
    if files or (not schema.returns and not name.startswith(_SILENT)):
        raise refusal


def _judge_expression(text: str, where: str) -> None:
    """Refuse a shape expression that is more than arithmetic on symbols: the loader evaluates it as Python."""
    refusal = ArtifactError(f"holds the shape expression {text[:80]!r}", where=where)
    try:
        tree = ast.parse(text, mode="eval") if len(text) < 5000 else None
    except SyntaxError:
        tree = None
    if tree is None:
        raise refusal
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        fine = isinstance(node, _EXPRESSION)
        if isinstance(node, ast.Name):
            fine = (_FUNCTION if id(node) in called else _SYMBOL).fullmatch(node.id) is not None
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            fine = re.fullmatch(r"[\w.+-]*", node.value, re.ASCII) is not None
        if not fine:
            raise refusal


def _judge_tree(text: str, where: str) -> None:
    """Refuse a tree specification with other containers than tuples, lists and dicts: reading them imports modules."""

    def judge(node: Any) -> None:
        if node["type"] not in _TREES:
            raise ArtifactError(
                f"takes or returns a {str(node['type'])[:80]}", where=where,
                do="let the model take and return tensors, tuples, lists or dicts",
            )  # fmt: skip
        _judge(json.loads(node["context"]) if node["context"] is not None else None, "context", where)
        if "__enum__" in (node["context"] or ""):
            raise ArtifactError("has an enumeration as a key", where=where)
        for child in node["children_spec"]:
            judge(child)

    try:
        version, root = json.loads(text)
        judge(root)
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"has a malformed tree specification: {error}", where=where) from error
    if version != 1:
        raise ArtifactError(f"has a tree specification of version {str(version)[:20]}", where=where)


def _judge_payload(config: Any, where: str) -> None:
    """Refuse pickled tensors and shapes that are not plain numbers in a configuration of weights or constants."""
    for name, entry in config["config"].items():
        if entry.get("use_pickle") is not False or entry.get("tensor_meta") is None:
            raise ArtifactError(
                f"holds {name!r} as a pickle, which runs code when read", where=where,
                do="export the program with plain tensors",
            )  # fmt: skip
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry["path_name"]), re.ASCII):
            raise ArtifactError(f"keeps {name!r} in {str(entry['path_name'])[:80]!r}", where=where)
    _judge(config, "", where)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch and its exporters print, log and warn of, none of which a user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def tidy(program: torch.export.ExportedProgram) -> None:
    """Remove, in place, what tells of the machine and the user's data: source lines, the sample inputs' values."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for key in ("stack_trace", "from_node", "source_fn_stack"):
                node.meta.pop(key, None)
    if program.example_inputs is not None:
        blank = torch.utils._pytree.tree_map_only(torch.Tensor, torch.zeros_like, program.example_inputs)
        program._example_inputs = blank


def save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the program as ``path`` (``.pt2``), without source lines and with zeros as sample inputs."""
    tidy(program)
    with quiet():
        torch.export.save(program, path)
