"""The bench measures real children, remembers, survives failures, and shows the user's scores what the model gives."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.check import bench as bench_module
from paretune.check.measurement import BatchRun
from paretune.check.plan import Plan
from paretune.errors import DataError, MeasureError
from paretune.sources.torch_module import TorchModule

PLAN = Plan(rounds=3, seconds=0.002, count=3, beside=2)
Bench = Any


def opened(mark: Path) -> int:
    return len(mark.read_text().splitlines()) if mark.exists() else 0


def test_a_measurement_holds_what_was_asked(workbench: Bench, data: Split) -> None:
    subject = workbench.subject(pause_ms=3.0)
    found = workbench.bench.latency([subject], data, (1, 4), PLAN)[subject.id]
    assert (found.id, found.size_bytes, found.parameters, found.macs) == ("fine", 100, 3, 12)
    assert set(found.runs) == {1, 4}
    for batch, run in found.runs.items():
        assert len(run.blocks) == PLAN.rounds, "the first round only warms up"
        assert all(len(block) >= PLAN.count for block in run.blocks)
        assert min(map(min, run.blocks)) >= 3
        assert run.rows_per_s == pytest.approx(batch * 1e3 / np.mean(np.concatenate(run.blocks)), rel=0.2)
        assert run.peak_bytes > 5e6
        assert run.beside == {}


def test_answers_are_scored_one_by_one(workbench: Bench, data: Split) -> None:
    found = workbench.bench.answer(workbench.subject(), data, "heldout", 4)
    x = np.stack([data.examples.item(index)[0] for index in range(10)])[:, :3]
    assert list(found.scores["accuracy"]) == [0, 0] + [1] * 8
    assert list(found.compared) == list(x.argmax(axis=1))
    assert found.confidence == pytest.approx(np.exp(x).max(axis=1) / np.exp(x).sum(axis=1), rel=1e-5)
    assert (found.data, len(found)) == ("heldout", 10)


def test_what_was_measured_is_not_measured_again(workbench: Bench, data: Split, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    subject = workbench.subject(mark=str(mark))

    def both() -> tuple[Any, Any]:
        bench = workbench.bench
        return bench.latency([subject], data, (2,), PLAN)[subject.id], bench.answer(subject, data, "heldout", 2)

    first, answers = both()
    assert opened(mark) == 1, "the child that was timed is the one that answers"
    again, same = both()
    assert opened(mark) == 1
    assert workbench.heard.cached == [("latency", False), ("answers", False), ("latency", True), ("answers", True)]
    assert again == first
    assert np.array_equal(same.compared, answers.compared)
    workbench.bench.latency([subject], data, (2,), Plan(2, 0.002, 3, 2))
    workbench.bench.answer(subject, data.head(9), "heldout", 2)
    assert workbench.heard.cached[4:] == [("latency", False), ("answers", False)], "another plan, other data"


def test_companions_are_measured_in_the_same_rounds_and_stay_stopped(
    workbench: Bench, data: Split, tmp_path: Path
) -> None:
    bench, mark = workbench.bench, tmp_path / "mark"
    standing = workbench.subject(name="standing", mark=str(mark), pause_ms=2.0)
    bench.companions.append(standing)
    assert bench.latency([standing], data, (2,), PLAN)[standing.id].runs[2].beside == {}
    for factor in (2.0, 3.0):
        name = f"x{factor}"
        run = bench.latency([workbench.subject(name=name, factor=factor)], data, (2,), PLAN)[name].runs[2]
        assert list(run.beside) == ["standing"]
        assert len(run.beside["standing"]) == len(run.blocks) == PLAN.rounds
        assert min(map(min, run.beside["standing"])) >= 2
    assert opened(mark) == 1, "it stays open between subjects"
    states = {psutil.Process(child.pid).status() for child in bench._children.values()}
    assert states == {psutil.STATUS_STOPPED}
    assert {name for name, _ in bench._children} == {"standing", "x3.0"}, "the one before has ended"
    bench.close()
    assert not psutil.Process().children()
    assert not list((bench.store.root / "scratch").iterdir())


@pytest.mark.parametrize(("mode", "says"), [("segfault", "SIGSEGV"), ("raise", "no kernel"), ("no_open", "opened")])
def test_a_failing_subject_is_a_remembered_finding_and_the_bench_goes_on(
    mode: str, says: str, workbench: Bench, data: Split, tmp_path: Path
) -> None:
    bench, mark = workbench.bench, tmp_path / "mark"
    bench.companions.append(workbench.subject(name="standing"))
    failing = workbench.subject(mode, mark=str(mark))
    for _ in range(2):
        with pytest.raises(MeasureError, match=f"^rogue: .*{says}") as caught:
            bench.latency([failing], data, (1,), PLAN)
        assert "\n" not in str(caught.value)
    assert opened(mark) == 1, "it is not tried again"
    run = bench.latency([workbench.subject()], data, (1,), PLAN)["fine"].runs[1]
    assert list(run.beside) == ["standing"]
    assert {name for name, _ in bench._children} == {"standing", "fine"}
    assert len(psutil.Process().children()) == 2


def test_a_hanging_subject_is_ended(workbench: Bench, data: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench_module.Child.call

    def impatient(self: Any, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        return real(self, command, min(timeout_s, 1.0) if command == "time" else timeout_s, **arguments)

    monkeypatch.setattr(bench_module.Child, "call", impatient)
    with pytest.raises(MeasureError, match=r"^rogue: hangs: no answer to 'time' within 1 s"):
        workbench.bench.latency([workbench.subject("hang")], data, (1,), PLAN)
    assert not psutil.Process().children()
    assert workbench.bench.latency([workbench.subject()], data, (1,), PLAN)["fine"].runs[1].samples >= 9


@pytest.mark.parametrize(
    ("mode", "says"), [("nan", "answers are not finite for 10 of 10"), ("inf", "not finite"), ("shape", "of shape")]
)
def test_nonsense_is_no_answer(mode: str, says: str, workbench: Bench, data: Split) -> None:
    with pytest.raises(MeasureError, match=f"^rogue: .*{says}"):
        workbench.bench.answer(workbench.subject(mode), data, "heldout", 4)
    assert not psutil.Process().children()
    assert len(workbench.bench.answer(workbench.subject(), data, "heldout", 4)) == 10


def test_a_companion_that_was_killed_idle_is_opened_again(workbench: Bench, data: Split, tmp_path: Path) -> None:
    bench, mark = workbench.bench, tmp_path / "mark"
    standing = workbench.subject(name="standing", mark=str(mark))
    bench.companions.append(standing)
    bench.latency([standing], data, (1,), PLAN)
    (child,) = bench._children.values()
    os.kill(child.pid, signal.SIGKILL)
    child._process.wait()
    assert bench.latency([workbench.subject()], data, (1,), PLAN)["fine"].runs[1].beside["standing"]
    assert opened(mark) == 2


def test_the_death_of_a_companion_is_not_remembered_of_the_subject(workbench: Bench, data: Split) -> None:
    bench, innocent = workbench.bench, workbench.subject()
    bench.companions.append(workbench.subject("segfault", name="standing"))
    with pytest.raises(MeasureError, match="SIGSEGV"):
        bench.latency([innocent], data, (1,), PLAN)
    assert not psutil.Process().children()
    bench.companions.clear()
    bench.companions.append(workbench.subject(name="standing"))
    assert bench.latency([innocent], data, (1,), PLAN)[innocent.id].runs[1].samples >= 9


SESSIONS = Plan(rounds=2, seconds=0.002, count=3, beside=2, sessions=4)


def test_every_session_opens_its_processes_anew_and_is_a_step_of_its_own(
    workbench: Bench, data: Split, tmp_path: Path
) -> None:
    bench, marks = workbench.bench, [tmp_path / "standing", tmp_path / "subject"]
    bench.companions.append(workbench.subject(name="standing", mark=str(marks[0])))
    subject = workbench.subject(mark=str(marks[1]), pause_ms=1.0)
    heard: list[int] = []
    run = bench.latency([subject], data, (1, 2), SESSIONS, heard=heard.append)["fine"].runs[2]
    assert heard == [0, 1, 2, 3]
    assert (run.sessions, len(run.blocks), len(run.beside["standing"])) == (4, 8, 8)
    assert [opened(mark) for mark in marks] == [8, 8], "once a session and batch size"
    assert not psutil.Process().children()
    assert run.rows_per_s == pytest.approx(2e3 / np.mean(np.concatenate(run.blocks)), rel=0.2)
    longer = Plan(rounds=2, seconds=0.002, count=3, beside=2, sessions=5)
    again = bench.latency([subject], data, (1, 2), longer)["fine"].runs[2]
    assert again.blocks[:8] == run.blocks, "finished sessions are not repeated"
    assert opened(marks[1]) == 10


def test_sessions_end_when_it_is_enough_but_not_before_three(workbench: Bench, data: Split) -> None:
    found = workbench.bench.latency([workbench.subject()], data, (1,), SESSIONS, enough=lambda: True)
    assert found["fine"].runs[1].sessions == 3


def test_several_are_measured_in_the_same_rounds_beside_the_companions(workbench: Bench, data: Split) -> None:
    bench = workbench.bench
    bench.companions += [workbench.subject(name="standing", pause_ms=2.0), workbench.subject(name="second")]
    slow = workbench.subject(name="slow", pause_ms=3.0)
    found = bench.latency([slow, bench.companions[1]], data, (1,), SESSIONS)
    assert set(found) == {"slow", "second"}
    assert set(found["slow"].runs[1].beside) == {"standing", "second"}
    assert set(found["second"].runs[1].beside) == {"standing"}, "nothing stands beside itself"
    assert found["slow"].runs[1].beside["second"] == found["second"].runs[1].blocks
    assert min(map(min, found["slow"].runs[1].blocks)) >= 3
    assert min(map(min, found["slow"].runs[1].beside["standing"])) >= 2


def test_who_failed_among_several_is_named_and_remembered(workbench: Bench, data: Split, tmp_path: Path) -> None:
    bench, mark = workbench.bench, tmp_path / "mark"
    both = [workbench.subject(), workbench.subject("segfault", name="bad", mark=str(mark))]
    for _ in range(2):
        with pytest.raises(MeasureError, match="SIGSEGV") as caught:
            bench.latency(both, data, (1,), SESSIONS)
        assert caught.value.guilty == "bad"
        assert not psutil.Process().children()
    assert opened(mark) == 1
    assert bench.latency(both[:1], data, (1,), SESSIONS)["fine"].runs[1].sessions == 4


def bad_nan(outputs: Any, labels: Any) -> Any:
    return np.where(labels == 0, np.nan, 1.0)


def bad_length(outputs: Any, labels: Any) -> Any:
    return np.ones(len(labels) + 1)


def bad_single(outputs: Any, labels: Any) -> Any:
    return 0.5


def bad_raise(outputs: Any, labels: Any) -> Any:
    raise KeyError("missing")


def bad_words(outputs: Any, labels: Any) -> Any:
    return {"right": True}


def bad_none(outputs: Any, labels: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("score", "kind", "says"),
    [
        (bad_nan, MeasureError, r"is not finite for \d+ examples"),
        (bad_length, DataError, r"returned shape \(5,\) for 4 examples — return one number for every example"),
        (bad_single, DataError, r"returned shape \(\) for 4 examples"),
        (bad_raise, DataError, r"failed: KeyError\('missing'\)"),
        (bad_words, DataError, r"returned a dict, not numbers"),
        (bad_none, DataError, r"returned a NoneType, not numbers"),
    ],
)
def test_a_score_that_misbehaves_is_named(
    score: Callable[..., Any], kind: type[Exception], says: str, workbench: Bench, data: Split
) -> None:
    workbench.bench.scores = {"mine": score}
    with pytest.raises(kind, match=f"^score mine: {says}"):
        workbench.bench.answer(workbench.subject(), data, "heldout", 4)
    workbench.bench.scores = {"good": lambda outputs, labels: list(np.ones(len(labels), bool))}
    assert list(workbench.bench.answer(workbench.subject(), data, "heldout", 4).scores["good"]) == [1.0] * 10


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_a_score_sees_the_models_own_structure_in_its_own_tensors(
    kind: Any, workbench: Bench, data: Split, tmp_path: Path
) -> None:
    import torch

    seen: list[tuple[Any, Any]] = []

    def score(outputs: Any, labels: Any) -> torch.Tensor:
        seen.append((outputs, labels))
        second = outputs["total"] if kind == "dict" else outputs[1]
        return second.to(torch.bfloat16)

    root = tmp_path / "pair"
    root.mkdir()
    specs = tuple(TensorSpec(name, "float32", ("batch", *rest)) for name, rest in (("y", (3,)), ("total", ())))
    workbench.model = Artifact.seal("rogue", root, workbench.model.inputs, specs, output_kind=kind)
    workbench.bench.scores, workbench.bench.native = {"mine": score}, TorchModule().native
    found = workbench.bench.answer(workbench.subject("pair"), data, "heldout", 5)
    x = np.stack([data.examples.item(index)[0] for index in range(10)])[:, :3]
    assert found.scores["mine"] == pytest.approx(x.sum(axis=1), rel=0.01)
    outputs, labels = seen[0]
    assert isinstance(outputs, dict if kind == "dict" else tuple)
    assert all(isinstance(part, torch.Tensor) for part in (*(outputs.values() if kind == "dict" else outputs), labels))
    if kind == "dict":
        assert list(outputs) == ["y", "total"]


def test_a_score_may_do_without_labels(workbench: Bench) -> None:
    import torch

    given: list[Any] = []
    workbench.bench.native = torch.as_tensor
    workbench.bench.scores = {"mine": lambda outputs, labels: given.append(labels) or outputs.sum(dim=1)}
    bare = Split.whole([(np.ones(4, np.float32), None)] * 3, None, "heldout")
    assert list(workbench.bench.answer(workbench.subject(), bare, "heldout", 2).scores["mine"]) == [3, 3, 3]
    assert given == [None, None]


def test_few_examples_are_repeated_to_fill_a_batch(workbench: Bench, data: Split) -> None:
    feed = workbench.bench._feed(data.head(3), workbench.model, 7, limit=8)
    (batch,) = feed.read()
    x = np.stack([data.examples.item(index)[0] for index in range(3)])
    assert np.array_equal(batch[0], np.concatenate([x, x, x])[:7])


def test_a_feed_for_timing_holds_whole_batches_alone(model: Artifact, data: Split) -> None:
    bound = dataclasses.replace(model, inputs=(TensorSpec("x", "float32", (4, 4)),))
    for artifact, rows in ((model, [4, 4]), (bound, [4, 4, 4])):
        assert [len(x) for (x,) in bench_module.whole_batches(data, artifact, 4)] == rows, "a fixed batch is filled up"
    assert [len(x) for (x,) in bench_module.whole_batches(data, model, 4, count=1)] == [4]


def test_a_feed_belongs_to_its_data_not_to_a_place_in_memory(workbench: Bench) -> None:
    bench = workbench.bench
    roots = set()
    for value in range(5):
        split = Split.whole([(np.full(4, value, np.float32), 0)], None, "heldout")
        feed = bench._feed(split, workbench.model, 1)
        assert feed.read()[0][0][0, 0] == value
        roots.add(feed.root)
        del split
    assert len(roots) == 5


def test_a_pace_that_changes_is_not_settled() -> None:
    def run(*medians: float) -> BatchRun:
        blocks = tuple((value, value, value) for value in medians)
        return BatchRun(1, blocks, {}, 1.0, 1, None, None, None, None)

    assert run(1, 1, 1, 1.05).settled
    assert not run(1, 1, 1.3, 1.3).settled
    assert run(1).settled
