"""A run's directory: made once, written whole, opened again to be shown, packed or resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.ask.artifact import Artifact
from paretune.ask.event import Event
from paretune.build.candidate import Candidate
from paretune.build.store import write_whole, writing
from paretune.deliver import report, result
from paretune.deliver.bundle import Bundle, pack
from paretune.errors import ArtifactError, CallError

RESULT, CALL, LOG, REPORT, BUNDLE, BASELINE, NEAREST = (
    "result.json", "run.json", "log.jsonl", "report.html", "bundle", "baseline", "nearest",
)  # fmt: skip


def place(out: Path | None, name: str, resume: bool) -> Path:
    """Where a run stands, by its workload's name where no directory was named: the next number, or the last to go on.

    Raises
    ------
    CallError
        If it cannot be a run's: a file, or a directory that holds a run (and ``resume`` was not asked) or other things.
    """
    if out is None:
        number = 1
        while Path("runs", f"{name}-{number}").exists():
            number += 1
        out = Path("runs", f"{name}-{number - 1 if resume and number > 1 else number}")
    if out.exists() and not out.is_dir():
        raise CallError("is a file, not a run's directory", where=str(out), do="name another --out")
    if not out.exists() or not any(out.iterdir()):
        return out
    if not resume:
        raise CallError("exists already", where=str(out), do="add --resume to go on with it, or name another --out")
    if not (out / CALL).is_file() and not (out / LOG).is_file():
        raise CallError("holds no run to go on with", where=str(out), do="name another --out")
    return out


def start(out: Path) -> None:
    """Make a run's directory, or sweep the one to go on with.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        # found out now, not after ten minutes of work
        write_whole(out / ".writable", b"")
        (out / ".writable").unlink()
    for name in (BUNDLE, BASELINE, NEAREST):
        for leftover in out.glob(f".{name}.*"):  # of a run that was killed while packing
            shutil.rmtree(leftover, ignore_errors=True)


class Log:
    """An observer that appends every event but progress to ``log.jsonl``, one JSON document a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("a", buffering=1, encoding="utf-8")
            if path.stat().st_size:
                # a killed run may have left half a line
                self._file.write("\n")

    def on(self, event: Event) -> None:
        if event.kind != "progress":
            line = {"time": round(time.time(), 3), "event": event.kind, "text": event.text, **event.data}
            with writing(self._path):
                self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


def read_log(root: Path) -> list[dict[str, Any]]:
    """The events of a run; half-written lines that a kill left behind are passed over."""
    events = []
    for line in (root / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


@dataclass(frozen=True)
class Choice:
    """One candidate of a run, as the run's result tells of it."""

    run: Run
    entry: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<Choice {self.id}: {self.title}, {self.entry['verdict']}>"

    @property
    def id(self) -> str:
        return str(self.entry["id"])

    @property
    def title(self) -> str:
        return str(self.entry["title"])

    def save(self, into: str | Path) -> Bundle:
        """Write this candidate as a bundle.

        Raises
        ------
        CallError
            If ``into`` exists already.
        """
        into = Path(into)
        if into.exists():
            raise CallError("exists already", where=str(into), do="name another directory")
        return self.run.pack(self.id, into)


@dataclass(frozen=True)
class Run:
    """A finished run: its directory and its result. In a notebook it shows itself."""

    root: Path
    result: Mapping[str, Any]

    def __repr__(self) -> str:
        told = f"best {self.best.id}: {self.best.title}" if self.best else f"none meets: {self.why_none}"
        return f"<Run {self.root}: {told}; report in {self.report}>"

    @classmethod
    def open(cls, root: Path) -> Run:
        """Open a run's directory.

        Raises
        ------
        CallError
            If it is no run, or one that has not finished.
        ArtifactError
            If its result does not fit the schema.
        """
        if not (root / RESULT).is_file():
            unfinished = (root / CALL).is_file()
            what = "is a run that has not finished" if unfinished else "is not a run's directory"
            raise CallError(
                what, where=str(root), do="go on with it by `paretune optimize … --resume`" if unfinished else ""
            )
        return cls(root, result.read(root / RESULT))

    @property
    def best(self) -> Choice | None:
        """The best candidate that meets the budget; None when none does (``why_none`` says why)."""
        return self.choice(self.result["best"]) if self.result["best"] else None

    @property
    def front(self) -> tuple[Choice, ...]:
        """The non-dominated candidates, from the safest answers to the fastest."""
        return tuple(self.choice(name) for name in self.result["front"])

    @property
    def why_none(self) -> str | None:
        """Why no candidate meets the budget: which limit binds, by how much, and what comes nearest."""
        why: str | None = self.result["why_none"]
        return why

    @property
    def report(self) -> Path:
        return self.root / REPORT

    def choice(self, name: str) -> Choice:
        """A candidate by its id (or the unique beginning of it).

        Raises
        ------
        CallError
            If there is none, or more than one.
        """
        every = [*self.result["candidates"], self.result["baseline"]]
        found = [entry for entry in every if name and entry["id"].startswith(name)]
        if len(found) != 1:
            what = "there is no candidate" if not found else "several candidates begin with"
            raise CallError(f"{what} {name!r}", where=str(self.root), do="the report and result.json list the ids")
        return Choice(self, found[0])

    def pack(self, name: str, into: Path) -> Bundle:
        """Write a candidate of this run as a bundle.

        Raises
        ------
        CallError
            If it was not built, or its model opens only with the user's own code.
        ArtifactError
            If its files are gone from the store or were changed.
        """
        entry = self.choice(name).entry
        if entry["status"] != "built" or not entry["runs"]:
            raise CallError(f"candidate {name} was not built: {entry['error'] or entry['why']}", where=str(self.root))
        if entry["id"] == self.result["best"] and (self.root / BUNDLE).is_dir():
            Bundle.open(self.root / BUNDLE)
            with writing(into):
                shutil.copytree(self.root / BUNDLE, into)
            return Bundle.open(into)
        candidate = Candidate.of(
            {"recipe": entry["recipe"], "target": {"name": entry["target"], "options": entry["settings"]}}
        )
        if candidate.recipe.steps:
            artifact = Artifact.open(self.root / entry["runs"][0]["artifact"])
            if artifact.form == "torch" and not any(name.endswith(".pt2") for name in artifact.files):
                raise CallError(
                    f"candidate {name} is a module's parameters, which do not open without its code",
                    where=str(self.root), do="pack a candidate for another target: `paretune report` lists them",
                )  # fmt: skip
        elif (self.root / BASELINE).is_dir():
            artifact = Bundle.open(self.root / BASELINE).artifact
        else:
            raise CallError("the original could not be saved without its own code", where=str(self.root))
        return pack(
            candidate,
            artifact,
            into,
            machine=self.result["machine"],
            workload=self.result["workload"],
            evidence=entry,
            report=self.report.read_text() if self.report.is_file() else None,
        )

    def _repr_html_(self) -> str:
        from html import escape

        page = escape(report.render(self.result), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:900px;border:0"></iframe>'


def save(root: Path, document: dict[str, Any]) -> Run:
    """Validate the result, and write it and its report.

    Raises
    ------
    ArtifactError
        If the result does not fit the schema (a defect of paretune).
    """
    result.validate(document)
    write_whole(root / RESULT, json.dumps(document, indent=1))
    report.write(document, root / REPORT)
    return Run(root, document)


def read_call(root: Path) -> dict[str, Any]:
    """The resolved call of a run.

    Raises
    ------
    ArtifactError
        If ``run.json`` cannot be read.
    """
    try:
        call: dict[str, Any] = json.loads((root / CALL).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(root / CALL)) from error
    return call
