"""A bundle opens as it was packed, with the bare runtime too; it is refused when touched, and whole after any kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.target import Settings
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check.answers import Answers
from paretune.deliver import bundle
from paretune.deliver.bundle import MANIFEST, Bundle, pack, reference
from paretune.errors import ArtifactError, BuildError, PluginError
from paretune.testing import samples

MACHINE = {"threads": 1, "digest": "machine", "cpu": "a CPU"}
ANSWERS = Answers({"accuracy": np.ones(8)}, np.arange(8) % 3, np.linspace(0.5, 0.9, 8), "heldout")
TARGETS = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}


def candidate(form: str) -> Candidate:
    return Candidate(Recipe(), plugin.load("targets", TARGETS[form])())


def packed(into: Path, form: str = "onnx", answers: Answers | None = ANSWERS, title: str = "report") -> Bundle:
    return pack(
        candidate(form), samples.artifact(form), into, machine=MACHINE, workload={"name": "w"},
        evidence={"verdict": "meets"}, answers=answers, report=title,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["onnx", "openvino", "torch"])
def test_opening_gives_what_was_packed(form: str, tmp_path: Path) -> None:
    made = packed(tmp_path / "b", form)
    opened = Bundle.open(tmp_path / "b")
    assert opened == made
    assert opened.artifact.digest == made.artifact.digest
    assert opened.target == candidate(form).target
    assert opened.subject.id == candidate(form).id
    assert opened.manifest["evidence"] == {"verdict": "meets"}
    assert opened.manifest["settings"] == {"threads": 1}
    assert opened.artifact.origin is None, "nothing live lies in a bundle"
    if form != "torch":
        assert opened.artifact == Artifact.describe_from(samples.artifact(form).describe(), tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {MANIFEST, "report.html", "reference.npz", *opened.artifact.files}
    assert not list(tmp_path.glob(".b*")), "nothing half-made stays beside it"
    inputs = samples.inputs(opened.artifact, 3)
    original = samples.module()
    with opened.target.open(opened.artifact, Settings(1, 3)) as runner:
        (answer,) = runner.infer(inputs)
    import torch

    with torch.inference_mode():
        assert np.allclose(answer, original(torch.from_numpy(inputs[0])).numpy(), atol=1e-4)


BARE = {
    "onnx": (
        "import onnxruntime; s = onnxruntime.InferenceSession(p + '/model.onnx')",
        "y = s.run(None, {s.get_inputs()[0].name: x})[0]",
    ),
    "openvino": (
        "import openvino; exact = {'INFERENCE_PRECISION_HINT': 'f32'}",
        "y = openvino.Core().compile_model(p + '/model.xml', 'CPU', exact)([x])[0]",
    ),
    "torch": (
        "import torch; m = torch.export.load(p + '/model.pt2').module()",
        "y = m(torch.from_numpy(x)).detach().numpy()",
    ),
}


@pytest.mark.parametrize("form", list(BARE))
def test_the_bare_runtime_opens_it(form: str, tmp_path: Path) -> None:
    made = packed(tmp_path / "b", form)
    x = samples.inputs(made.artifact, 2)[0]
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['paretune'] = None; import numpy as np; p, d = sys.argv[1:]; "
        f"x = np.load(d + '/x.npy'); {'; '.join(BARE[form])}; np.save(d + '/y.npy', y)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code, str(made.root), str(tmp_path)], check=True, env=environment, cwd="/")
    with made.target.open(made.artifact, Settings(1, 2)) as runner:
        assert np.allclose(np.load(tmp_path / "y.npy"), runner.infer((x,))[0], atol=1e-4)


# -- refusals --------------------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        manifest = json.loads((root / MANIFEST).read_text())
        change(manifest)
        (root / MANIFEST).write_text(json.dumps(manifest))

    return apply


def flip(name: str) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 1
        (root / name).write_bytes(content)

    return apply


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "model": (flip("model.onnx"), "corrupt or was changed"),
    "report": (flip("report.html"), "corrupt or was changed"),
    "reference": (flip("reference.npz"), "corrupt or was changed"),
    "gone": (lambda root: (root / "reference.npz").unlink(), "is missing"),
    "added": (lambda root: (root / "model.bin").write_bytes(b"x"), "does not list"),
    "unlisted": (edit(lambda m: m["files"].pop("report.html")), "does not list"),
    "model unlisted": (edit(lambda m: m["files"].pop("model.onnx")), "lists a model file without"),
    "digest": (edit(lambda m: m["files"].update({"model.onnx": "0" * 64})), "corrupt or was changed"),
    "outside": (edit(lambda m: m["files"].update({"../x": "0" * 64})), "outside its directory"),
    "other digest": (edit(lambda m: m["artifact"]["files"].update({"model.onnx": "0" * 64})), "two that differ"),
    "other model file": (edit(lambda m: m["artifact"]["files"].pop("model.onnx")), "another model"),
    "inputs": (edit(lambda m: m["artifact"]["inputs"][0].update(name="y")), "another model"),
    "form": (edit(lambda m: m["target"].update(name="openvino", options={})), "does not open form onnx"),
    "later": (edit(lambda m: m.update(format=99)), "format 99"),
    "no artefact": (edit(lambda m: m["artifact"].pop("outputs")), "is not a bundle"),
    "no id": (edit(lambda m: m.pop("id")), "is not a bundle"),
    "list": (lambda root: (root / MANIFEST).write_text("[]"), "is not a bundle"),
    "torn": (lambda root: (root / MANIFEST).write_text('{"format": 1'), "is not a bundle"),
    "none": (lambda root: (root / MANIFEST).unlink(), "is not a bundle"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("original") / "b").root


@pytest.mark.parametrize("how", list(TAMPERED))
def test_what_was_touched_is_refused(how: str, original: Path, tmp_path: Path) -> None:
    change, says = TAMPERED[how]
    root = Path(shutil.copytree(original, tmp_path / "b"))
    assert Bundle.open(root).manifest == Bundle.open(original).manifest, "a copy is as good"
    change(root)
    with pytest.raises(ArtifactError, match=says):
        Bundle.open(root)


def test_a_target_that_is_not_installed_is_named(original: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(original, tmp_path / "b"))
    edit(lambda m: m["target"].update(name="onnxruntimes"))(root)
    with pytest.raises(PluginError, match="did you mean onnxruntime"):
        Bundle.open(root)


def test_what_the_system_leaves_in_a_directory_does_no_harm(original: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(original, tmp_path / "b"))
    (root / ".DS_Store").write_bytes(b"x")
    assert Bundle.open(root).artifact.form == "onnx"


def test_a_model_that_needs_its_own_code_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "b")
    monkeypatch.setattr(plugin.load("targets", "torch"), "portable", lambda self, artifact, into: None)
    with pytest.raises(BuildError, match="without its own code"):
        packed(tmp_path / "b", "torch")
    assert Bundle.open(tmp_path / "b").artifact.form == "onnx", "the earlier one stays"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# -- replacing -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.deliver.bundle import Bundle, pack

root, into = Path(sys.argv[1]), Path(sys.argv[2])
artifact = Artifact.describe_from(Artifact.open(root).describe(), root)
candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
machine = {"threads": 1, "digest": "machine"}

def write(title, die_at=None):
    count = 0
    def watch(event, details):
        nonlocal count
        if event.split(".")[0] in ("open", "os", "shutil", "ctypes"):
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
    if die_at:
        sys.addaudithook(watch)
    pack(candidate, artifact, into, machine=machine, workload={}, evidence={"title": title}, report=title)

write("old")
seen, point = [], 0
while True:
    point += 1
    child = os.fork()
    if child == 0:
        write("new", point)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    bundle = Bundle.open(into)
    title = bundle.manifest["evidence"]["title"]
    assert (into / "report.html").read_text() == title, (point, title)
    seen.append(title)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
    if title == "new":
        write("old")
print(point, seen.count("old"), seen.count("new"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="exchanging two directories in one step is Linux's")
def test_an_old_bundle_or_a_new_one_is_there_whole_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    """A real process is killed at each of its steps on the file system in turn."""
    root = samples.artifact("onnx").root
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points, old, new = map(int, done.stdout.split())
    assert points > 20, "it really was killed in between"
    assert old > 10
    assert new > 1, "also after the exchange"


def test_without_an_exchange_the_old_one_steps_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    packed(tmp_path / "b", title="old")
    packed(tmp_path / "b", title="new")
    assert (tmp_path / "b" / "report.html").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# -- reference statistics --------------------------------------------------------------------------------------


def test_the_reference_counts_classes_and_confidence(original: Path) -> None:
    with np.load(original / "reference.npz", allow_pickle=False) as found:
        assert dict(zip(found["classes"], found["class_counts"], strict=True)) == {0: 3, 1: 3, 2: 2}
        assert found["confidence_counts"].sum() == found["examples"] == 8
        assert (found["confidence_edges"][0], found["confidence_edges"][-1]) == (0.5, 0.9)


def test_the_reference_of_floats_is_their_mean_and_spread() -> None:
    values = np.random.default_rng(0).normal(3, 2, (500, 4)).astype(np.float32)
    found = reference(Answers({}, values, values.mean(axis=1), "heldout"))
    assert found["output_mean"] == pytest.approx(values.mean(axis=0))
    assert found["output_std"] == pytest.approx(values.std(axis=0))
    assert sum(array.size for array in found.values()) < 150, "statistics, not examples"
