"""The loop: from a workload and a budget to a verified bundle. A composition of the verbs of the stages."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from paretune.ask import plugin
from paretune.ask.budget import Budget
from paretune.ask.event import Broadcast, Observer
from paretune.ask.knob import knobs_of, values_of
from paretune.ask.rates import Rates
from paretune.ask.score import named
from paretune.ask.target import Target
from paretune.ask.workload import Workload
from paretune.build.candidate import Candidate, read_recipes
from paretune.build.store import Store, write_whole
from paretune.check.machine import default_threads, fingerprint
from paretune.conclude import conclude
from paretune.confirm import confirm
from paretune.deliver.run import CALL, LOG, Log, Run, place, read_call, start
from paretune.errors import BudgetError, CallError, ParetuneError
from paretune.journal import Journal, listeners
from paretune.loop import Loop
from paretune.subject import batch_sizes


def optimize(
    workload: Workload,
    budget: str | Budget = "",
    *,
    targets: Sequence[str] | None = None,
    batch: Sequence[int] = (1,),
    time: str | float = "10m",
    out: str | Path | None = None,
    resume: bool = False,
    minimize: str | None = None,
    confidence: float = 0.95,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    keep: Sequence[str] = (),
    recipes: str | Path | Sequence[Candidate] | None = None,
    heldout_limit: int | None = None,
    prices: str | Path | None = None,
    watts_per_core: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    store: str | Path | None = None,
    observers: Sequence[Observer] | None = None,
    call: Mapping[str, Any] | None = None,
) -> Run:
    """Make a workload's model small and fast within a budget, and prove it.

    Parameters
    ----------
    workload
        The model, its data and its score.
    budget
        Limits such as ``"p95@1<=5ms, drop<=1pp"``.
    targets
        Names of targets; None: every installed one that runs here.
    batch
        Batch sizes to measure.
    time
        When to end: ``"10m"``, ``"90s"``, or seconds. What is confirmed by then is the answer.
    out, resume
        The run's directory; ``resume`` goes on with one that exists, repeating no finished step.
    minimize
        The objective, such as ``"p50@32"`` or ``"size"``; None: the highest p50 speed-up.
    only, without
        Techniques to use alone, or not to use, by name (``fnmatch`` patterns). One that trains is used, with its
        default knobs, where ``only`` has its whole name.
    keep
        Patterns of node or module names that stay in float.
    recipes
        A fixed list of candidates, or the file of one, in place of the search.
    heldout_limit
        Use at most this many held-out examples.
    prices, watts_per_core
        A price file (see :class:`paretune.ask.rates.Rates`), for costs; the watts of a busy core, for energy where no
        counter can be read.
    seed, threads, store
        Seed of every random choice; CPU threads of every runtime; a store shared between runs.
    observers
        Receive every event. None: plain lines on stderr where a person is watching (a terminal, a prompt or a
        notebook), nothing elsewhere; ``()``: nothing anywhere.

    Returns
    -------
    Run
        ``best`` (None when nothing meets), ``front``, ``report``; in a notebook it shows itself.

    Raises
    ------
    ParetuneError
        With what is wrong, where, and what to do.
    """
    _refuse_processes()
    limits = budget if isinstance(budget, Budget) else Budget.parse(budget, minimize, confidence)
    rated = isinstance(budget, Budget) and prices is None and watts_per_core is None
    limits = limits.at(limits.rates if rated else Rates.of(prices, watts_per_core))
    sizes = limits.batches(batch_sizes(batch))
    _check_limits(limits, list(named(workload.score)))
    usable, asked = _targets(targets)
    techniques = _techniques(only, without)
    limit_s = seconds_of(time)
    root = place(Path(out) if out is not None else None, workload.name, resume)
    if (root / CALL).is_file():
        _check_same(read_call(root), call or {"workload": workload.name}, root)
    fixed = read_recipes(Path(recipes)) if isinstance(recipes, str | Path) else recipes
    fresh = not root.exists()
    start(root)
    log = Log(root / LOG)
    watch = Broadcast((log, *listeners(observers)))
    stored = Store(Path(store) if store is not None else root / "store")
    stored.sweep()
    machine = fingerprint(threads or default_threads())
    resolved = {
        **(call or {"workload": workload.name}), "budget": limits.text, "minimize": minimize, "confidence": confidence,
        "batch": list(sizes), "time_s": limit_s, "targets": asked, "techniques": sorted(techniques), "keep": list(keep),
        "rates": limits.rates.describe(), "seed": seed, "threads": machine["threads"], "heldout_limit": heldout_limit,
        "versions": machine["libraries"],
    }  # fmt: skip
    write_whole(root / CALL, json.dumps(resolved, indent=1))
    journal = Journal(watch, limit_s)
    loop = Loop(workload, limits, sizes, asked, root, stored, machine, seed, journal, tuple(sorted(techniques)))
    for text in _idle(workload, only, techniques, fixed):
        loop.journal.warn(text)
    if resume and fresh:
        loop.journal.say("warning", f"there is no run at {root} to go on with: it starts here")
    try:
        with loop.interruptible():
            loop.prepare(heldout_limit, tuple(keep), fixed)
            loop.references(usable)
            loop.search(fixed, techniques, {name: usable[name] for name in asked}, only or ())
            confirm(loop)
        return conclude(loop)
    except ParetuneError:
        if fresh and all(trial.ranked is None for trial in loop.trials):
            # not even the original was judged: the mended call may have the same --out
            shutil.rmtree(root, ignore_errors=True)
        raise
    finally:
        loop.close()
        log.close()


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    if before.get("workload") != now["workload"]:
        raise CallError(
            f"is a run of {before.get('workload')}, not of {now['workload']}", where=str(out), do="name another --out"
        )


def _check_limits(budget: Budget, scores: list[str]) -> None:
    """Refuse, before any work is done, limits that nothing could meet."""
    for limit in budget.limits:
        if limit.score is not None and limit.score not in scores:
            raise BudgetError(
                f"there is no score {limit.score!r}", where=f"budget {limit.text!r}",
                do=f"the workload has {', '.join(scores)}",
            )  # fmt: skip


def _targets(wanted: Sequence[str] | None) -> tuple[dict[str, type[Target]], list[str]]:
    usable: dict[str, type[Target]] = plugin.usable("targets", wanted)
    if wanted is None:
        usable = {name: kind for name, kind in usable.items() if kind.light(False)[0].unavailable() is None}
    if not usable:
        raise CallError("no target is asked or installed", where="targets", do="`paretune targets` lists them")
    return usable, list(usable)


def _techniques(only: Sequence[str] | None, without: Sequence[str]) -> dict[str, Any]:
    known = plugin.names("techniques")
    for pattern in (*(only or ()), *without):
        if not any(fnmatch(name, pattern) for name in known):
            plugin.load("techniques", pattern)  # raises, with the nearest name
    usable = plugin.usable("techniques")
    for name in only or ():
        if name in known and any(fnmatch(name, pattern) for pattern in without):
            raise CallError(f"{name} is both asked and left out", where="techniques", do="drop it from one of the two")
        if name in known:
            plugin.require(plugin.load("techniques", name), name)

    def wanted(name: str, kind: Any) -> bool:
        if any(fnmatch(name, pattern) for pattern in without):
            return False
        # a conversion is a road, not a choice: without it the asked techniques could not be reached
        return only is None or kind.kind == "convert" or any(fnmatch(name, pattern) for pattern in only)

    return {name: kind for name, kind in usable.items() if wanted(name, kind)}


def _idle(
    workload: Workload, only: Sequence[str] | None, techniques: Mapping[str, Any], fixed: Sequence[Candidate] | None
) -> list[str]:
    """What was asked for, and nothing will be done with, in words."""
    idle = []
    for name, kind in techniques.items() if fixed is None else ():
        meant = [pattern for pattern in only or () if fnmatch(name, pattern)]
        if meant and name not in meant and not kind.light():
            idle.append(
                f"{name} trains, which no pattern asks for: give --only its whole name, or put it into a --recipe"
            )
        taught = "made" in (getattr(knobs_of(kind).get("student"), "choices", None) or ())
        if name in meant and taught and values_of(kind())["student"] == "artifact" and not _prunes(techniques, only):
            idle.append(
                f"{name} by itself teaches the original to answer as it does, and nothing gets smaller: name what "
                f'prunes too, or put {{"technique": "{name}", "knobs": {{"student": "made"}}}} into a --recipe'
            )
    if fixed is not None and only:
        idle.append("--only is not used: a --recipe says what is tried")
    steps = [step for candidate in fixed or () for step in candidate.recipe.steps]
    if workload.student is not None and not any("given" in values_of(step).values() for step in steps):
        idle.append(
            "Workload.student is not used: a --recipe must put it in the model's place, "
            '{"technique": "torch_distill", "knobs": {"student": "given"}} say'
        )
    return idle


def _prunes(techniques: Mapping[str, Any], only: Sequence[str] | None) -> bool:
    return any(kind.kind == "prune" and name in (only or ()) for name, kind in techniques.items())


def _refuse_processes() -> None:
    """One process alone may write a run and time it; ``accelerate launch`` starts several."""
    many = os.environ.get("WORLD_SIZE", "1")
    if many.isdecimal() and int(many) > 1:
        raise CallError(
            f"is one of {many} processes, and a run is made by one", where="optimize",
            do="let `accelerate launch -m paretune train` make the steps that train, and then start this "
            "without it, with the same --store",
        )  # fmt: skip


def seconds_of(text: str | float) -> float:
    """``"10m"``, ``"90s"``, ``"1.5h"`` or a number of seconds.

    Raises
    ------
    CallError
        If it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|)\s*", str(text))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise CallError(f"{text!r} is no length of time", where="time", do="write it like 10m, 90s or 1.5h")
    return seconds
