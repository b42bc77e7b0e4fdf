"""Steps are applied once, failures are findings, and what a file says is checked before it is believed."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from paretune.ask.artifact import META, Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.event import Event
from paretune.ask.knob import knob
from paretune.build.candidate import KNOWN_BY, Builder, Candidate, read_recipes
from paretune.build.propose import light
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.errors import (
    ArtifactError,
    BuildError,
    CallError,
    OutputError,
    ParetuneError,
    PluginError,
    RecipeError,
    StoppedError,
)

SPEC = (TensorSpec("x", "float32", ("batch", 2)),)
applied: list[str] = []


def seal(fit, content, form):
    (fit.out / "model.bin").write_bytes(content)
    return Artifact.seal(form, fit.out, SPEC, SPEC)


@dataclass(frozen=True)
class Shift:
    """Adds a number to every byte of the model."""

    name: ClassVar[str] = "shift"
    takes: ClassVar[frozenset[str]] = frozenset({"raw"})
    gives: ClassVar[str] = "raw"
    kind: ClassVar[str] = "precision"
    needs: ClassVar[Mapping[str, str]] = {"numpy": "numpy", "no_such_distribution": "x"}
    cost: ClassVar[float] = 1.0
    by: int = knob(1, "how much", low=0, high=255)

    @classmethod
    def light(cls):
        return (cls(),)

    def apply(self, artifact, fit):
        applied.append(f"shift {self.by}")
        fit.progress(0.5, "halfway")
        (fit.scratch / "temporary").mkdir()
        (fit.scratch / "link").symlink_to(fit.scratch / "temporary")
        content = bytes((byte + self.by) % 256 for byte in artifact.path(".bin").read_bytes())
        return seal(fit, content, "raw")


@dataclass(frozen=True)
class Carry(Shift):
    """Carries the model to another form."""

    name: ClassVar[str] = "carry"
    gives: ClassVar[str] = "other"
    kind: ClassVar[str] = "convert"

    def apply(self, artifact, fit):
        applied.append("carry")
        return seal(fit, artifact.path(".bin").read_bytes(), "other")


@dataclass(frozen=True)
class Heeds(Shift):
    """Looks for the patterns that are to stay in float, and may fail after it."""

    name: ClassVar[str] = "heeds"
    fail: bool = knob(False, "whether it fails", choices=(True, False))

    def apply(self, artifact, fit):
        fit.unmatched([pattern for pattern in fit.keep if pattern != "conv*"])
        if self.fail:
            raise BuildError("nothing is left", where="heeds")
        return super().apply(artifact, fit)


@dataclass(frozen=True)
class Given(Shift):
    """Gives the student in the model's place."""

    name: ClassVar[str] = "given"

    def apply(self, artifact, fit):
        (fit.out / "model.bin").write_bytes(fit.student.path(".bin").read_bytes())
        return Artifact.seal("raw", fit.out, SPEC, SPEC, base=fit.student.base)


@dataclass(frozen=True)
class Long(Shift):
    """Keeps what it has so far, and fails or is interrupted after it."""

    name: ClassVar[str] = "long"
    how: str = knob("well", "how it ends", choices=("well", "own", "interrupt"))

    def apply(self, artifact, fit):
        seen = len(list(fit.checkpoints.glob("*")))
        applied.append(f"long after {seen}")
        fit.checkpoints.mkdir(parents=True, exist_ok=True)
        (fit.checkpoints / f"step-{seen}").write_text("half")
        if self.how != "well" and seen == 0:
            raise ERRORS[self.how]
        return super().apply(artifact, fit)


ERRORS = {
    "own": BuildError("operator Foo cannot be treated", where="node 3", do="keep it in float"),
    "runtime": RuntimeError("two\nlines"),
    "silent": ValueError(),
    "exit": SystemExit(2),
    "assertion": AssertionError("x"),
    "type": TypeError("y"),
    "recursion": RecursionError("deep"),
    "library": ArtifactError("is corrupt", where="model.bin"),
    "missing": FileNotFoundError(errno.ENOENT, "No such file", "calibration.cache"),
    "memory": MemoryError(),
    "cuda_memory": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "device": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "disk": OSError(errno.ENOSPC, "No space left on device", "model.bin"),
    "interrupt": KeyboardInterrupt(),
}


@dataclass(frozen=True)
class Fails(Shift):
    """Fails in the way it is told, having written something."""

    name: ClassVar[str] = "fails"
    how: str = knob("own", "which error", choices=(*ERRORS, "wrapped_disk", "told_disk", "form", "place"))

    def apply(self, artifact, fit):
        applied.append(f"fails {self.how}")
        (fit.out / "half").write_text("half")
        if self.how == "wrapped_disk":
            try:
                raise ERRORS["disk"]
            except OSError as error:
                raise RuntimeError("saving failed") from error
        if self.how == "told_disk":
            raise RuntimeError("onnx: write failed: No space left on device")
        if self.how == "form":
            return seal(fit, b"x", "other")
        if self.how == "place":
            return artifact
        raise ERRORS[self.how]


@dataclass
class Heard:
    events: list[Event] = field(default_factory=list)

    def on(self, event):
        self.events.append(event)

    @property
    def steps(self):
        return [(event.text, event.data["cached"]) for event in self.events if event.kind == "step"]


@pytest.fixture(autouse=True)
def nothing_applied():
    applied.clear()


@pytest.fixture
def builder(tmp_path):
    root = tmp_path / "original"
    root.mkdir()
    (root / "model.bin").write_bytes(b"\0\1\2")
    original = dataclasses.replace(Artifact.seal("raw", root, SPEC, SPEC), origin=object())
    return Builder(Store(tmp_path / "store"), original, Fit(None, None, original, 0, tmp_path), Heard())


def again(builder, **changes):
    return dataclasses.replace(builder, observer=Heard(), **changes)


def trained(builder, data):
    return again(builder, fit=dataclasses.replace(builder.fit, train=Split.whole(data, None, "train")))


def data(count, change=None):
    x = np.random.default_rng(0).normal(size=(count, 2))
    if change is not None:
        x[change] += 1
    return [(row, 0) for row in x]


def failure(builder, step):
    with pytest.raises(BuildError) as caught:
        builder.build(Recipe((step,)))
    assert "\n" not in str(caught.value)
    assert caught.value.where
    return caught.value


def test_nothing_gives_the_original(builder):
    assert builder.build(Recipe()) is builder.original


def test_steps_are_applied_in_order_and_kept(builder):
    made = builder.build(Recipe((Shift(by=3), Carry())))
    assert (made.form, made.path(".bin").read_bytes()) == ("other", b"\3\4\5")
    assert made.root.is_relative_to(builder.store.root)
    assert sorted(path.name for path in made.root.parent.iterdir()) == ["entry.json", "out", "seconds.json"]
    assert {path.name for path in made.root.iterdir()} == {"model.bin", META}
    assert not list((builder.store.root / "scratch").iterdir())
    assert builder.observer.steps == [("shift", False), ("carry", False)]
    progress = [event for event in builder.observer.events if event.kind == "progress"]
    assert [event.text for event in progress] == ["applying shift", "shift: halfway", "applying carry"]


def test_a_finished_step_is_taken_from_the_store_by_every_builder(builder):
    first = builder.build(Recipe((Shift(by=3), Carry())))
    other = again(builder)
    assert other.build(Recipe((Shift(by=3), Carry()))) == first
    assert other.observer.steps == [("shift", True), ("carry", True)]
    assert applied == ["shift 3", "carry"]
    other.build(Recipe((Shift(by=3),)))
    other.build(Recipe((Shift(by=4), Carry())))
    assert applied == ["shift 3", "carry", "shift 4", "carry"]


def test_what_a_long_step_keeps_outlives_an_interruption_and_goes_when_it_is_done(builder):
    with pytest.raises(KeyboardInterrupt):
        builder.build(Recipe((Long(how="interrupt"),)))
    unfinished = builder.store.root / "unfinished"
    assert [path.name for path in unfinished.rglob("step-*")] == ["step-0"]
    again(builder).build(Recipe((Long(how="interrupt"),)))
    assert applied == ["long after 0", "long after 1", "shift 1"]
    assert not list(unfinished.iterdir())
    builder.build(Recipe((Long(by=2),)))
    assert applied[3:] == ["long after 0", "shift 2"]


def test_a_student_is_in_the_key_and_its_artefacts_have_its_handle(builder, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.bin").write_bytes(b"\5")
    student = Artifact.seal("raw", tmp_path / "student", SPEC, SPEC, base="student")
    student = dataclasses.replace(student, origin=object())
    other = again(builder, fit=dataclasses.replace(builder.fit, student=student))
    assert other.build(Recipe((Given(),))).origin is student.origin
    assert other.build(Recipe((Given(), Carry()))).origin is None, "Carry gives another form"
    assert other.build(Recipe((Shift(),))).origin is builder.original.origin
    builder.build(Recipe((Shift(),)))
    assert applied == ["carry", "shift 1", "shift 1"]


def test_what_a_failed_step_kept_stays(builder):
    failure(builder, Long(how="own"))
    assert [path.name for path in (builder.store.root / "unfinished").rglob("step-*")] == ["step-0"]


def twice(outputs, labels):
    return 2 * outputs


@pytest.mark.parametrize("change", [{"seed": 1}, {"keep": ("conv*",)}, {"loss": twice}])
def test_what_determines_a_step_is_in_its_key(builder, change):
    builder.build(Recipe((Shift(),)))
    again(builder, fit=dataclasses.replace(builder.fit, **change)).build(Recipe((Shift(),)))
    assert len(applied) == 2


@pytest.mark.parametrize("fail", [False, True])
def test_patterns_that_name_nothing_are_told_of_a_stored_step_too(builder, fail):
    for cached in (False, True):
        heard = []
        fit = dataclasses.replace(builder.fit, keep=("conv*", "layer9"), unmatched=heard.append)
        other = again(builder, fit=fit)
        if fail:
            failure(other, Heeds(fail=True))
        else:
            other.build(Recipe((Heeds(), Carry())))
        assert heard == [["layer9"]], "a step that does not look for patterns says nothing of them"
        assert other.observer.steps[0] == ("heeds", cached)


def test_other_training_data_are_told_apart(builder):
    count = KNOWN_BY
    variants = [data(count), data(count + 1), data(count, change=0), data(count, change=count - 1), data(count)]
    for variant in variants:
        trained(builder, variant).build(Recipe((Shift(),)))
    assert len(applied) == 4
    trained(builder, [(x, 1) for x, _ in data(count)]).build(Recipe((Shift(),)))
    assert len(applied) == 5


@dataclass(frozen=True)
class Trains(Shift):
    """Learns from every example, and may be stopped before its end."""

    name: ClassVar[str] = "trains"
    stops: ClassVar[list[Exception]] = []

    @classmethod
    def light(cls):
        return ()

    def apply(self, artifact, fit):
        fit.checkpoints.mkdir(parents=True, exist_ok=True)
        time.sleep(0.05)
        if self.stops:
            raise self.stops.pop()
        return super().apply(artifact, fit)


def test_what_is_trained_on_is_told_apart_by_every_example(builder):
    count = 4 * KNOWN_BY
    variants = [data(count, change=place) for place in range(40)]
    for variant in variants:
        trained(builder, variant).build(Recipe((Trains(),)))
    assert len(applied) == 40


@pytest.mark.parametrize("ended", [StoppedError("the time was over"), MemoryError("too much")])
def test_a_step_tells_what_it_took_though_it_was_stopped_or_done_before(builder, ended):
    Trains.stops.append(ended)
    with pytest.raises(ParetuneError):
        builder.build(Recipe((Trains(),)))
    _, seconds = builder.built(Recipe((Trains(),)))
    assert seconds >= 0.1, "both tries"
    other = again(builder)
    assert other.built(Recipe((Trains(), Carry())))[1] >= seconds
    assert other.observer.steps[0] == ("trains", True)


def test_only_the_form_that_the_live_model_has_carries_it(builder):
    live = object()
    carrying = dataclasses.replace(builder, original=dataclasses.replace(builder.original, origin=live))
    assert carrying.build(Recipe((Shift(),))).origin is live
    assert carrying.build(Recipe((Shift(), Carry()))).origin is None, "its runtime would load what it never runs"


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("own", "node 3: operator Foo cannot be treated — keep it in float"),
        ("runtime", "fails: RuntimeError: two lines"),
        ("silent", "fails: ValueError: no message"),
        ("exit", "fails: SystemExit: 2"),
        ("assertion", "fails: AssertionError: x"),
        ("type", "fails: TypeError: y"),
        ("recursion", "fails: RecursionError: deep"),
        ("library", "model.bin: is corrupt"),
        ("missing", "calibration.cache"),
        ("form", "fails: returned form other"),
        ("place", "fails: returned form raw at original"),
    ],
)
def test_any_failure_is_a_finding_and_is_remembered(builder, how, what):
    error = failure(builder, Fails(how=how))
    assert what in str(error)
    later = again(builder)
    assert str(failure(later, Fails(how=how))) == str(error)
    assert applied == [f"fails {how}"]
    assert later.observer.steps == [("fails", True)]
    (failed,) = builder.store.root.glob("??/*/failed.json")
    assert {path.name for path in failed.parent.iterdir()} == {"failed.json", "entry.json"}


@pytest.mark.parametrize("how", ["memory", "cuda_memory", "device"])
def test_what_another_try_may_mend_is_a_finding_that_is_not_remembered(builder, how):
    told = str(failure(builder, Fails(how=how)))
    assert told.startswith("fails: the memory is not enough") == (how != "device")
    failure(again(builder), Fails(how=how))
    assert applied == [f"fails {how}"] * 2
    assert not list((builder.store.root / "scratch").iterdir())
    assert not list(builder.store.root.glob("??/*"))


def test_a_step_that_is_stopped_did_not_fail_and_keeps_what_it_has(builder):
    asked = []

    def stop(step):
        asked.append(step.name)
        return "the time was over" if len(asked) == 1 else ""

    stopped = again(builder, stop=stop)
    with pytest.raises(StoppedError, match="shift: stopped at 50%: the time was over"):
        stopped.build(Recipe((Shift(),)))
    assert not list(builder.store.root.glob("??/*"))
    stopped.build(Recipe((Shift(),)))
    assert applied == ["shift 1"] * 2
    assert asked == ["shift"] * 2


def test_two_processes_make_a_step_once(builder):
    """One waits while the other is at it, and takes what the other made."""
    code = (
        "import sys, time; from pathlib import Path; from paretune.build.store import Store; "
        "store, key = Store(Path(sys.argv[1])), sys.argv[2]\n"
        "with store.alone(key):\n"
        "    print('held', flush=True); time.sleep(1)\n"
        "    store.put(key, 'build', lambda at: (at / 'failed.json').write_text("
        '\'{"what": "made there", "where": "there", "do": ""}\'))\n'
    )
    key = builder._key(Shift(), builder.original)
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(builder.store.root), key], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    assert failure(builder, Shift()).what == "made there"
    assert other.wait() == 0
    other.stdout.close()
    assert applied == []
    assert any("waiting for another process" in event.text for event in builder.observer.events)
    assert builder.observer.steps == [("shift", True)]


def test_a_loss_that_changes_while_it_trains_is_known_by_what_it_was(builder):
    class Counts:
        def __init__(self):
            self.seen = 0

        def __call__(self, outputs, labels):
            self.seen += 1

    loss = Counts()
    other = again(builder, fit=dataclasses.replace(builder.fit, loss=loss))
    first = other._key(Shift(), builder.original)
    loss(None, None)
    assert other._key(Shift(), builder.original) == first


@pytest.mark.parametrize("how", ["disk", "wrapped_disk", "told_disk"])
def test_a_full_disk_is_no_failure_of_the_technique(builder, how):
    for _ in range(2):
        with pytest.raises(OutputError, match=r"no space left on device — free some space"):
            builder.build(Recipe((Fails(how=how),)))
    assert applied == [f"fails {how}"] * 2
    assert not list(builder.store.root.glob("??/*"))


def test_an_interrupt_goes_through_and_leaves_nothing(builder):
    with pytest.raises(KeyboardInterrupt):
        builder.build(Recipe((Fails(how="interrupt"),)))
    assert not list(builder.store.root.glob("??/*"))
    assert not list((builder.store.root / "scratch").iterdir())


def test_forms_that_do_not_connect_are_refused_before_anything_is_done(builder):
    with pytest.raises(RecipeError, match="shift takes raw, not other"):
        builder.build(Recipe((Carry(), Shift())))
    with pytest.raises(RecipeError, match="second precision"):
        builder.build(Recipe((Shift(by=1), Shift(by=2))))
    assert applied == []


def test_a_changed_entry_is_not_used(builder):
    made = builder.build(Recipe((Shift(),)))
    made.path(".bin").write_bytes(b"\7\7\7")
    with pytest.raises(ArtifactError, match="sha256"):
        again(builder).build(Recipe((Shift(),)))


# -- candidates as text ----------------------------------------------------------------------------------------


def proposals():
    from paretune.ask import plugin

    return [one.candidate for one in light("torch", plugin.usable("techniques"), plugin.usable("targets"))]


def test_reading_what_was_written_is_the_identity(tmp_path):
    every = proposals()
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps({"candidates": [one.describe() for one in every]}))
    assert read_recipes(path) == every
    path.write_text(json.dumps([one.describe() for one in every]))
    assert [one.id for one in read_recipes(path)] == [one.id for one in every]


def test_ids_are_short_different_and_the_same_in_every_process():
    every = proposals()
    ids = [one.id for one in every]
    assert len(set(ids)) == len(ids)
    assert all(len(id) == 8 for id in ids)
    described = json.dumps([one.describe() for one in every[:5]])
    code = (
        "import json, sys; from paretune.build.candidate import Candidate; "
        "print(*[Candidate.of(one).id for one in json.loads(sys.argv[1])])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, described], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ids[:5]


def test_titles_read_from_the_model_to_the_target():
    short = Candidate.of({"recipe": [], "target": "torch"})
    long = Candidate.of({"recipe": [{"technique": "torch_to_onnx"}], "target": {"name": "onnxruntime"}})
    assert (short.title, long.title) == ("torch", "torch_to_onnx → onnxruntime")


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        (None, RecipeError, "cannot be read as JSON"),
        ("{", RecipeError, "cannot be read as JSON"),
        ("[" * 100_000, RecipeError, "cannot be read as JSON"),
        ("{}", RecipeError, "holds no list of candidates"),
        ("3", RecipeError, "holds no list of candidates"),
        ('{"candidates": []}', RecipeError, "holds no list of candidates"),
        ("[3]", RecipeError, "holds no list of candidates"),
        ('[{"recipe": []}]', RecipeError, "candidate 1: recipe: names no target"),
        ('[{"recipe": [], "target": "torch"}, {"target": "torch"}]', RecipeError, "candidate 2: recipe: has no list"),
        ('[{"recipe": [], "target": {"name": 3}}]', RecipeError, "names no target"),
        ('[{"recipe": [], "target": "tourch"}]', PluginError, "did you mean torch?"),
        ('[{"recipe": [], "target": {"name": "torch", "options": 3}}]', RecipeError, "3 are no knobs"),
        ('[{"recipe": [], "target": {"name": "torch", "option": {}}}]', RecipeError, "'option' says nothing here"),
        ('[{"recipe": [], "target": "torch", "options": {}}]', RecipeError, "candidate: 'options' says nothing here"),
        ('[{"recipe": [{"technique": "torch_to_onnx", "knob": {}}], "target": "torch"}]', RecipeError, "'knob' says"),
        ('[{"recipe": [], "target": {"name": "torch", "options": {"x": 1}}}]', RecipeError, "has no knob 'x'"),
        ('[{"recipe": [{"technique": "nothing"}], "target": "torch"}]', PluginError, "no technique 'nothing'"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, text, kind, what):
    path = tmp_path / "recipes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind) as caught:
        read_recipes(path)
    assert what in str(caught.value)
    assert str(path) in caught.value.where
    assert caught.value.do
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CallError)
