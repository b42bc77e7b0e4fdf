"""Plug-ins are found by entry points, and what is wrong with one is said."""

import importlib
import sys

import pytest

from paretune.ask import plugin
from paretune.errors import PluginError


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed package, as far as the import system sees, with a good, a broken and a demanding plug-in."""
    (tmp_path / "guest.py").write_text(
        "class Good:\n    name, needs = 'guest_good', {}\n"
        "class Demanding:\n    name, needs = 'guest_demanding', {'no_such_module': 'no-such>=2', 'json': 'json', "
        "'no_parent.child': 'no-such>=2'}\n"
    )
    (tmp_path / "guest_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    info = tmp_path / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[paretune.sources]\nguest_broken = guest_broken:Broken\n"
        "[paretune.techniques]\nguest_good = guest:Good\nguest_demanding = guest:Demanding\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    plugin._entries.cache_clear()
    yield
    plugin._entries.cache_clear()
    for name in ("guest", "guest_broken"):
        sys.modules.pop(name, None)


def refused(call, *args):
    with pytest.raises(PluginError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_third_partys_plugin_comes_through_the_same_door(third_party):
    assert {"guest_good", "guest_demanding", "onnx_fold"} <= set(plugin.names("techniques"))
    assert plugin.names("techniques") == sorted(plugin.names("techniques"))
    usable = plugin.usable("techniques")
    assert usable["guest_good"].name == "guest_good"
    assert "guest_demanding" not in usable


def test_a_plugins_sources_are_those_that_run(third_party, tmp_path):
    def digest():
        kind = plugin.load("techniques", "guest_good")
        return plugin.code_of(kind)

    def loaded_anew():
        for name in ("guest", "guest.core"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return digest()

    running = plugin.load("techniques", "guest_good")
    source = (tmp_path / "guest.py").read_text()
    (tmp_path / "guest.py").write_text(source + "# edited while it runs\n")
    alone = plugin.code_of(running)
    assert alone == digest()
    importlib.reload(sys.modules["guest"])
    assert alone != digest(), "as a notebook reloads it"
    assert None is not loaded_anew() != alone
    (tmp_path / "guest.py").unlink()
    package = tmp_path / "guest"
    package.mkdir()
    (package / "__init__.py").write_text("from guest.core import SHIFT\n" + source)
    (package / "core.py").write_text("SHIFT = 1\n")
    first = loaded_anew()
    (package / "core.py").write_text("SHIFT = 22\n")
    second = loaded_anew()
    assert None is not first != second
    (package / ".#core.py").symlink_to("an-editors-lock")
    third = loaded_anew()
    (package / "core.py").write_text("SHIFT = 333\n")
    assert len({first, second, third, loaded_anew()}) == 4, "a file that cannot be read hides no other"
    assert plugin.code_of(plugin.load("techniques", "onnx_fold")) is None


def test_what_is_missing_is_named_with_the_command_that_installs_it(third_party):
    kind = plugin.load("techniques", "guest_demanding")
    assert plugin.missing(kind) == ["no_such_module", "no_parent.child"]
    assert plugin.install_command(kind) == "pip install 'no-such>=2'"
    told = refused(plugin.usable, "techniques", ["guest_demanding"])
    assert "no_such_module" in told
    assert "pip install 'no-such>=2'" in told
    assert plugin.install_command(plugin.load("techniques", "guest_good")) == ""


def test_a_plugin_that_does_not_import_is_named_with_its_package(third_party):
    told = refused(plugin.load, "sources", "guest_broken")
    assert "source guest_broken (package guest): does not import: RuntimeError: two lines" in told
    assert "uninstall" in told


def test_an_unknown_name_brings_the_nearest_one():
    assert "there is no technique 'onnx_fould' — did you mean onnx_fold?" in refused(
        plugin.load, "techniques", "onnx_fould"
    )
    assert "`paretune targets` lists" in refused(plugin.usable, "targets", ["zzz"])


def test_asked_plugins_come_in_the_order_asked():
    assert list(plugin.usable("targets", ["torch", "onnxruntime"])) == ["torch", "onnxruntime"]
