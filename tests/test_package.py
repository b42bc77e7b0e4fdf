"""The public names, what importing them costs, and that everything promised is there."""

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from itertools import chain
from pathlib import Path

import pytest

import paretune

PUBLIC = [
    "Budget",
    "Bundle",
    "ParetuneError",
    "Run",
    "SetScore",
    "Workload",
    "batch_size",
    "compare",
    "diagnose",
    "front",
    "judge",
    "load",
    "measure",
    "optimize",
    "pack",
    "scenarios",
    "train",
]
FRAMEWORKS = ["torch", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "safetensors", "accelerate"]
HEAVY = [*FRAMEWORKS, "plotly", "scipy", "sklearn"]
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())}


def run(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_public_names_are_these():
    assert paretune.__all__ == PUBLIC
    assert sorted(paretune._PLACES) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_what_it_says_and_tells_what_it_does(name):
    found = getattr(paretune, name)
    assert found.__name__ == name
    assert callable(found)
    assert inspect.getdoc(found)
    assert found.__module__ == paretune._PLACES[name]


def test_type_checkers_see_the_same_names():
    tree = ast.parse(inspect.getsource(paretune))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == paretune._PLACES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'paretune' has no attribute 'optimise'"):
        _ = paretune.optimise
    assert not hasattr(paretune, "nothing")


@pytest.mark.parametrize(
    "code", ["import paretune", "import paretune; paretune.Workload; paretune.Budget; paretune.ParetuneError"]
)
def test_importing_loads_no_framework(code):
    assert run(f"import sys; {code}; print(*[name for name in {HEAVY!r} if name in sys.modules])") == ""


def test_stages_load_no_framework():
    assert run(f"import sys, paretune.optimize; print(*[name for name in {FRAMEWORKS!r} if name in sys.modules])") == ""


@pytest.mark.parametrize(
    "code",
    [
        "import paretune.optimize",
        "import paretune.optimize, paretune.measure; from paretune import optimize, measure",
        "from paretune.optimize import optimize as first; import paretune",
        "import paretune; paretune.optimize; import paretune.optimize",
        "import importlib, paretune; importlib.import_module('paretune.optimize')",
    ],
)
def test_a_module_does_not_hide_the_verb_of_its_name(code):
    assert run(
        f"{code}; import paretune; print(type(paretune.optimize).__name__, type(paretune.measure).__name__)"
    ) == ("function function")


def test_nothing_is_sent_from_the_runtimes():
    assert run("import os, paretune; print(os.environ['ORT_DISABLE_TELEMETRY'])") == "1"


def test_types_ship():
    assert files("paretune").joinpath("py.typed").is_file()


@pytest.mark.parametrize("group", ["sources", "techniques", "targets"])
def test_every_plugin_declared_resolves_under_its_own_name(group):
    declared = PROJECT["entry-points"][f"paretune.{group}"]
    installed = {entry.name: entry for entry in importlib.metadata.entry_points(group=f"paretune.{group}")}
    assert declared
    for name, place in declared.items():
        assert installed[name].value == place
        kind = installed[name].load()
        assert kind.name == name
        assert inspect.getdoc(kind)
        assert set(kind.needs) <= _installable()


def _installable() -> set[str]:
    """Modules that the project's own requirements, extras included, install."""
    return {re.match(r"[\w-]+", one)[0].replace("-", "_") for one in REQUIRED}


def test_a_plugins_requirement_is_the_projects():
    for group in ("sources", "techniques", "targets"):
        for name in PROJECT["entry-points"][f"paretune.{group}"]:
            (entry,) = importlib.metadata.entry_points(group=f"paretune.{group}", name=name)
            assert set(entry.load().needs.values()) <= REQUIRED, name


def test_the_command_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="paretune")
    assert script.value == PROJECT["scripts"]["paretune"]
    assert callable(script.load())


def test_the_version_is_one():
    assert importlib.metadata.version("paretune") == PROJECT["version"]


def test_the_result_schema_ships():
    schemas = [path for path in files("paretune").joinpath("deliver").iterdir() if path.name.endswith(".json")]
    assert any("$schema" in json.loads(path.read_text(encoding="utf-8")) for path in schemas)
