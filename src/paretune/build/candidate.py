"""Candidate: a recipe applied to the workload's model, and the target it is meant for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.code import fingerprint_of
from paretune.ask.event import Event, Observer
from paretune.ask.knob import make, values_of
from paretune.ask.target import Target
from paretune.build import history
from paretune.build.crew import Crew
from paretune.build.passing import is_passing, lacks_memory
from paretune.build.recipe import Recipe, demand_keys, titled
from paretune.build.store import FAILED, Store, key_of, write_whole
from paretune.build.technique import Fit, Technique
from paretune.errors import BuildError, CallError, OutputError, ParetuneError, RecipeError, StoppedError


@dataclass(frozen=True)
class Candidate:
    """What might be the answer: how the artefact is made, and what opens it.

    ``reach`` is a latency, such as ``"p50@1<=2ms"``, for which a step's share of the multiply-accumulates is still to
    be chosen (see :mod:`paretune.reach`); empty where all knobs stand.
    """

    recipe: Recipe
    target: Target
    reach: str = ""

    @property
    def id(self) -> str:
        """Short and stable: the same recipe, knobs, target and reach have the same id in every run."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        target = titled(self.target.name, self.target)
        title = f"{self.recipe.title} → {target}" if self.recipe.steps else target
        return f"{title} for {self.reach}" if self.reach else title

    @property
    def options(self) -> dict[str, Any]:
        """The target's knob values."""
        return dict(values_of(self.target))

    def describe(self) -> dict[str, Any]:
        wanted = {"reach": self.reach} if self.reach else {}
        target = {"name": self.target.name, "options": self.options}
        return {"recipe": self.recipe.describe(), "target": target, **wanted}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Candidate:
        """The candidate that :meth:`describe` described.

        Raises
        ------
        RecipeError, PluginError
            If it is not of that shape, or names what does not exist.
        """
        demand_keys(described, ("recipe", "target", "reach"), "candidate")
        target = described.get("target")
        if isinstance(target, str):
            target = {"name": target}
        if not isinstance(target, Mapping) or not isinstance(target.get("name"), str):
            raise RecipeError("names no target", where="recipe", do='add "target": {"name": NAME, "options": {…}}')
        demand_keys(target, ("name", "options"), "target")
        if not isinstance(described.get("recipe"), list):
            raise RecipeError(
                "has no list of steps", where="recipe", do='add "recipe": [{"technique": NAME, "knobs": {…}}]'
            )
        kind = plugin.load("targets", target["name"])
        plugin.require(kind, target["name"])
        made: Target = make(kind, target.get("options", {}), target["name"])
        reach = described.get("reach", "")
        if not isinstance(reach, str):
            raise RecipeError(f"{reach!r} is no latency", where="reach", do='write it like "p50@1<=2ms"')
        return cls(Recipe.of(described["recipe"]), made, reach.strip())


def read_recipes(path: Path) -> list[Candidate]:
    """The candidates of a ``--recipe`` file: ``{"candidates": [{"recipe": […], "target": {…}}, …]}``.

    Raises
    ------
    RecipeError
        If it is not such a file.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"cannot be read as JSON: {error}", where=str(path), do='write {"candidates": [{"recipe": […], …}]}'
        ) from error
    entries = document.get("candidates") if isinstance(document, dict) else document
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(
            "holds no list of candidates", where=str(path), do='write {"candidates": [{"recipe": […], …}]}'
        )
    return [_entry(entry, f"{path}: candidate {number}") for number, entry in enumerate(entries, 1)]


def _entry(entry: Mapping[str, Any], where: str) -> Candidate:
    try:
        return Candidate.of(entry)
    except CallError as error:
        raise type(error)(error.what, where=f"{where}: {error.where}" if error.where else where, do=error.do) from error


UNMATCHED = "unmatched.json"
"""Beside a finished step's artefact: the patterns of ``keep`` that named nothing in its model."""
SECONDS = "seconds.json"
"""Beside a finished step's artefact: what making it took, over all tries but those that were killed."""
ALIKE_S = 10.0
"""How long a process that failed waits for the first one to say that it failed too."""
KNOWN_BY = 300
"""By so many drawn examples, and their number, training data is told from other data where nothing is trained."""


@dataclass(frozen=True)
class Builder:
    """Applies recipes step by step, each step once: a finished one is taken from the store."""

    store: Store
    original: Artifact
    fit: Fit
    observer: Observer
    stop: Callable[[Technique], str] = lambda step: ""
    """Asked while a step works: why it is to stop, or nothing."""
    crew: Crew | None = None
    """The processes that make each step together; None where this one is alone."""

    def build(self, recipe: Recipe) -> Artifact:
        """The artefact of the recipe applied to the original model.

        Raises
        ------
        BuildError
            If a step cannot be applied; remembered, so that a resumed run does not try again (but where memory was not
            enough or a device failed, as another try or another machine may do better).
        StoppedError
            If ``stop`` gave a reason in a step's midst: nothing is remembered but what the step itself kept.
        OutputError
            If the store cannot be written.
        RecipeError
            If the forms do not connect.
        """
        return self.built(recipe)[0]

    def built(self, recipe: Recipe) -> tuple[Artifact, float]:
        """As :meth:`build`, and the seconds that its steps took when they were made, if only once for many recipes."""
        recipe.gives(self.original.form)
        artifact, seconds = self.original, 0.0
        for step in recipe.steps:
            artifact, took = self._step(step, artifact)
            seconds += took
        return artifact, seconds

    def _key(self, step: Technique, artifact: Artifact) -> str:
        return key_of(
            "build",
            {
                "technique": step.name,
                "knobs": values_of(step),
                "artifact": artifact.digest,
                "original": self.original.digest,
                "student": None if self.fit.student is None else self.fit.student.digest,
                "train": self._train if step.light() else self._all_of_train,
                "loss": self._loss,
                "keep": self.fit.keep,
                "seed": self.fit.seed,
                "versions": {module: _version(module) for module in ("paretune", *step.needs)},
                "code": plugin.code_of(type(step)),
            },
        )

    @cached_property
    def _loss(self) -> str | None:
        return None if self.fit.loss is None else fingerprint_of(self.fit.loss)

    @cached_property
    def _all_of_train(self) -> str | None:
        """What a training learns from: it decodes every example anyway, and a mended one changes what comes of it."""
        return None if self.fit.train is None else self.fit.train.digest

    @cached_property
    def _train(self) -> list[Any] | None:
        # every example would be decoded for a digest of all; these are the ones that calibration reads first
        train = self.fit.train
        return None if train is None else [train.name, len(train), train.take(KNOWN_BY, self.fit.seed).digest]

    def _open(self, place: Path) -> Artifact:
        artifact = Artifact.open(place / "out")
        owner = self.fit.student if artifact.base == "student" else self.original
        if owner is None or owner.form != artifact.form:
            return artifact  # a runtime that does not run the live module is not to load it, nor its framework
        return dataclasses.replace(artifact, origin=owner.origin)

    def _step(self, step: Technique, artifact: Artifact) -> tuple[Artifact, float]:
        key = self._key(step, artifact)
        place = self.store.get(key)
        started = time.perf_counter()
        cached = place is not None
        if self.crew is not None:
            place, cached = self._make_together(self.crew, step, artifact, key)
        elif place is None:
            place, cached = self._make(step, artifact, key)
        seconds = time.perf_counter() - started
        self.observer.on(
            Event("step", step.name, {"step": "build", "key": key, "cached": cached, "seconds": round(seconds, 3)})
        )
        unmatched = place / UNMATCHED
        if unmatched.exists():
            self.fit.unmatched(json.loads(unmatched.read_text()))
        failure = place / FAILED
        if failure.exists():
            told = json.loads(failure.read_text())
            raise BuildError(told["what"], where=told["where"], do=told["do"])
        made = self._open(place)
        return dataclasses.replace(made, history=(*artifact.history, *history.read(place))), _seconds_in(place)

    def _make(self, step: Technique, artifact: Artifact, key: str) -> tuple[Path, bool]:
        """The step's entry, and whether another process made it while this one waited."""

        def wait() -> None:
            self._tell(step, 0.0, "waiting for another process that makes the same")

        with self.store.alone(key, wait):
            place = self.store.get(key)
            if place is not None:
                return place, True
            self.observer.on(Event("progress", f"applying {step.name}", {"fraction": 0.0}))
            place = self.store.put(key, "build", lambda scratch: self._apply(step, artifact, scratch, key))
            if not (place / FAILED).exists():
                shutil.rmtree(self.store.unfinished(key), ignore_errors=True)
            return place, False

    def _make_together(self, crew: Crew, step: Technique, artifact: Artifact, key: str) -> tuple[Path, bool]:
        """As :meth:`_make`: all apply the step, and the first one's result is kept.

        Raises
        ------
        BuildError
            If they have different keys, or other stores.
        ParetuneError
            If this one fails alone, or for want of memory, say: the others wait for it in vain, so that all must end.
        """
        if not crew.alike(key):
            raise BuildError(
                "the processes that were started together have different models, data or knobs", where=step.name,
                do="seed whatever makes them, and give all the same call",
            )  # fmt: skip
        try:
            if crew.first:
                with self.store.alone(key):
                    cached = crew.agree(self.store.get(key) is not None)
                    if not cached:
                        self.observer.on(Event("progress", f"applying {step.name}", {"fraction": 0.0}))
                        self.store.put(key, "build", lambda scratch: self._apply(step, artifact, scratch, key))
            else:
                cached = crew.agree(False)
                if not cached:
                    self._follow(step, artifact, key)
        except BuildError as error:
            raise ParetuneError(error.what, where=error.where, do=error.do) from error
        crew.wait()
        place = self.store.get(key)
        if place is None:
            raise BuildError(
                "the first process's result is not in this one's store", where=str(self.store.root),
                do="give all processes one store, on a disk that they share",
            )  # fmt: skip
        if crew.first and not (place / FAILED).exists():
            shutil.rmtree(self.store.unfinished(key), ignore_errors=True)
        return place, cached

    def _follow(self, step: Technique, artifact: Artifact, key: str) -> None:
        """Apply a step beside the first process, for its sake alone."""
        scratch = self.store.scratch()
        try:
            self._apply(step, artifact, scratch, key)
            if not (scratch / FAILED).exists():
                return
            # where the first one failed too, it is writing that down; where it did not, it waits for this one in vain
            until = time.monotonic() + ALIKE_S
            while self.store.get(key) is None:
                if time.monotonic() > until:
                    told = json.loads((scratch / FAILED).read_text())
                    raise BuildError(told["what"], where=told["where"], do=told["do"])
                time.sleep(0.1)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _tell(self, step: Technique, fraction: float, what: str) -> None:
        self.observer.on(Event("progress", f"{step.name}: {what}", {"fraction": fraction}))
        reason = self.stop(step)
        if reason:
            raise StoppedError(f"stopped at {fraction:.0%}: {reason}", where=step.name)

    def _apply(self, step: Technique, artifact: Artifact, scratch: Path, key: str) -> None:
        said: list[list[str]] = []
        entries: list[history.Entry] = []
        unfinished, began = self.store.unfinished(key), time.perf_counter()
        before = _seconds_in(unfinished)
        fit = dataclasses.replace(
            self.fit, scratch=scratch, progress=partial(self._tell, step), record=entries.append,
            unmatched=lambda patterns: said.append(list(patterns)), checkpoints=unfinished,
        )  # fmt: skip
        try:
            made = step.apply(artifact, fit)
            if made.form != step.gives or made.root != fit.out:
                raise BuildError(f"returned form {made.form} at {made.root.name}", where=step.name)
            history.write(entries, scratch)
            (scratch / SECONDS).write_text(json.dumps(before + time.perf_counter() - began))
        except (OutputError, StoppedError):
            _keep_seconds(unfinished, before + time.perf_counter() - began)
            raise
        except (Exception, SystemExit) as error:
            _keep_seconds(unfinished, before + time.perf_counter() - began)
            _raise_if_full(error, scratch)
            # a technique may fail in any way on a model nobody foresaw: a finding, not the end of the run
            told = _told(error, step.name)
            if is_passing(error):
                raise told from error
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            document = {"what": told.what, "where": told.where or step.name, "do": told.do}
            (scratch / FAILED).write_text(json.dumps(document))
        for patterns in said[-1:] if self.fit.keep else ():
            (scratch / UNMATCHED).write_text(json.dumps(patterns))
        for leftover in scratch.iterdir():
            if leftover.name not in ("out", FAILED, UNMATCHED, SECONDS, history.FILE):
                shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def _keep_seconds(unfinished: Path, seconds: float) -> None:
    """For the next try, which goes on from what is there; a full disk loses them, as a kill does."""
    if unfinished.is_dir():
        with contextlib.suppress(OSError, OutputError):
            write_whole(unfinished / SECONDS, json.dumps(seconds))


def _raise_if_full(error: BaseException, scratch: Path) -> None:
    """A full disk is the run's end and not the technique's failure: it must not be remembered as one."""
    told: BaseException | None = error
    while told is not None:
        number = told.errno if isinstance(told, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(told):
            do = "free some space, or write to another disk"
            raise OutputError(os.strerror(number or errno.ENOSPC).lower(), where=str(scratch.parent), do=do) from error
        told = told.__cause__ or told.__context__


def _told(error: BaseException, name: str) -> ParetuneError:
    if isinstance(error, ParetuneError):
        return error
    if lacks_memory(error):
        return BuildError("the memory is not enough", where=name, do="free some, or leave it out")
    return BuildError(_one_line(error), where=name)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def _seconds_in(place: Path) -> float:
    try:
        return float(json.loads((place / SECONDS).read_text()))
    except (OSError, ValueError, TypeError):
        return 0.0


@cache
def _version(module: str) -> str:
    """Of the package that holds a module, which may have another name."""
    for name in (module, *packages_distributions().get(module.partition(".")[0], ())):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "unknown"
