"""What every target must keep to."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import SkipTest

import numpy as np

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.target import Arrays, Runner, Settings
from paretune.testing import declaration, network, samples

TOLERANCE = 1e-4
"""Greatest absolute difference of FP32 answers of order one, between batch sizes."""


class TargetConformance:
    """Subclass it and set ``target``; override :meth:`artifact` if the sample model cannot be opened by it."""

    target: Any
    settings = Settings(threads=1, batch=4)

    def artifact(self) -> Artifact:
        """What is opened: the sample model in the first form that is accepted."""
        return samples.artifact(min(self.target.accepts))

    def ready(self) -> Any:
        """The target with its default settings; skips where it cannot run."""
        if missing := plugin.missing(self.target):
            raise SkipTest(f"{', '.join(missing)} not installed: {plugin.install_command(self.target)}")
        target = self.target()
        if reason := target.unavailable():
            raise SkipTest(reason)
        return target

    def test_declares_itself(self) -> None:
        wanted = {"name": str, "accepts": frozenset, "reference": bool, "cost": float}
        declaration.check_variables(self.target, wanted)
        assert self.target.accepts
        assert self.target.cost > 0

    def test_knobs_have_ranges_and_legal_defaults(self) -> None:
        declaration.check_knobs(self.target)

    def test_refuses_knobs_outside_their_ranges(self) -> None:
        declaration.check_refusals(self.target)

    def test_light_proposals_are_legal_and_distinct(self) -> None:
        for throughput in (False, True):
            proposed = self.target.light(throughput)
            declaration.check_light(self.target, proposed)
            assert proposed[0] == self.target()

    def test_imports_without_its_framework(self) -> None:
        declaration.check_cheap_import(self.target)

    def test_says_whether_it_can_run(self) -> None:
        if plugin.missing(self.target):
            raise SkipTest("not installed")
        reason = self.target().unavailable()
        assert reason is None or (reason and "\n" not in reason)

    def test_answers_fit_the_artefact(self) -> None:
        artifact = self.artifact()
        with self.ready().open(artifact, self.settings) as runner:
            answers = runner.infer(samples.inputs(artifact, 4))
            assert getattr(runner, "callers", 1) >= 1
        check_answers(artifact, answers, 4)

    def test_same_inputs_give_same_answers_and_stay_unchanged(self) -> None:
        artifact = self.artifact()
        inputs = samples.inputs(artifact, 4)
        kept = tuple(array.copy() for array in inputs)
        with self.ready().open(artifact, self.settings) as runner:
            first, second = runner.infer(inputs), runner.infer(inputs)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(inputs, kept, strict=True))

    def test_answers_outlive_the_next_call_and_the_runner(self) -> None:
        artifact = self.artifact()
        with self.ready().open(artifact, self.settings) as runner:
            first = runner.infer(samples.inputs(artifact, 4, seed=1))
            kept = tuple(array.copy() for array in first)
            second = runner.infer(samples.inputs(artifact, 4, seed=2))
        del runner
        gc.collect()
        assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
        assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    def test_any_batch_size_and_rows_do_not_depend_on_their_mates(self) -> None:
        artifact = self.artifact()
        inputs = samples.inputs(artifact, 7)
        with self.ready().open(artifact, self.settings) as runner:
            whole = runner.infer(inputs)
            check_answers(artifact, whole, 7)
            for start, stop in ((0, 4), (4, 7), (6, 7)):
                part = runner.infer(tuple(array[start:stop] for array in inputs))
                check_answers(artifact, part, stop - start)
                for got, want in zip(part, whole, strict=True):
                    assert np.allclose(got, want[start:stop], rtol=TOLERANCE, atol=TOLERANCE)

    def test_takes_arrays_that_are_not_contiguous(self) -> None:
        artifact = self.artifact()
        inputs = samples.inputs(artifact, 8)
        with self.ready().open(artifact, self.settings) as runner:
            strided = runner.infer(tuple(array[::2] for array in inputs))
            dense = runner.infer(tuple(np.ascontiguousarray(array[::2]) for array in inputs))
        assert all(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(strided, dense, strict=True))

    def test_closes_and_opens_again(self) -> None:
        artifact, target = self.artifact(), self.ready()
        inputs = samples.inputs(artifact, 4)
        with target.open(artifact, self.settings) as runner:
            first = runner.infer(inputs)
            closed = weakref.ref(runner)
        del runner
        gc.collect()
        assert closed() is None, "something still holds the runner after it was closed"
        with target.open(artifact, self.settings) as again:
            assert all(np.array_equal(a, b) for a, b in zip(first, again.infer(inputs), strict=True))

    def test_leaves_the_artefact_as_it_was_and_the_network_alone(self) -> None:
        artifact = self.artifact()
        with network.refused() as attempts, self.ready().open(artifact, self.settings) as runner:
            runner.infer(samples.inputs(artifact, 4))
        assert attempts == []
        assert Artifact.open(artifact.root).digest == artifact.digest

    def test_several_callers_get_their_own_answers(self) -> None:
        self.ready()
        extra = [one for one in self.target.light(True) if one not in self.target.light(False)]
        for target in [one for one in extra if one.unavailable() is None] or [self.target()]:
            artifact = self.artifact()
            with target.open(artifact, Settings(threads=2, batch=4)) as runner:
                check_callers(artifact, runner)


def check_answers(artifact: Artifact, answers: Arrays, batch: int) -> None:
    """Assert that number, dtypes and shapes are those of ``artifact.outputs``."""
    assert isinstance(answers, tuple)
    assert len(answers) == len(artifact.outputs)
    for answer, spec in zip(answers, artifact.outputs, strict=True):
        assert isinstance(answer, np.ndarray)
        assert answer.dtype.name == spec.dtype, f"{spec.name} is {answer.dtype.name}, not {spec.dtype}"
        assert answer.ndim == len(spec.shape)
        assert answer.shape[0] == batch
        assert all(
            isinstance(want, str) or have == want for have, want in zip(answer.shape[1:], spec.shape[1:], strict=True)
        )


def check_callers(artifact: Artifact, runner: Runner) -> None:
    """Assert that ``runner.callers`` threads calling at once each get the answer to their own question."""
    questions = [samples.inputs(artifact, 4, seed) for seed in range(12)]
    wanted = [runner.infer(question) for question in questions]
    with ThreadPoolExecutor(getattr(runner, "callers", 1)) as pool:
        answers = list(pool.map(runner.infer, questions))
    for got, want in zip(answers, wanted, strict=True):
        assert all(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(got, want, strict=True))
