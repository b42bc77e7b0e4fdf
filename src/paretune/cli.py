"""The command line: one command per verb."""

from __future__ import annotations

import contextlib
import json as json_
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from paretune.ask.budget import Budget
from paretune.errors import CallError, ParetuneError

app = typer.Typer(
    name="paretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make a trained neural network small and fast within a budget, on the machine where it will run, and prove it."
    "\n\nStart with [bold]paretune demo[/], then [bold]paretune optimize --help[/].",
    epilog="Exit status: 0 done, a candidate meets · 3 none meets (the nearest is saved as RUN/nearest) · "
    "2 the call is wrong · 1 anything else.",
)
MEETS_NONE = 3
INTERRUPTED = 130  # what typer makes of Ctrl-C
DEMO_TARGETS = ["onnxruntime", "openvino", "torch"]


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CallError(f"{text!r} are no batch sizes", where="--batch", do="write them like 1,32") from None


def _configure(context: typer.Context, path: Path | None) -> Path | None:
    """Values from a TOML file stand where a flag was not given: top-level keys, then those of [the command]."""
    if path is None:
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CallError(f"cannot be read: {error}", where=str(path)) from error
    own = document.get(context.info_name or "", {})
    tables = {key for key, value in document.items() if isinstance(value, dict)}
    values = {key: value for key, value in document.items() if key not in tables} | (
        own if isinstance(own, dict) else {}
    )
    own_parameters = {str(parameter.name): parameter for parameter in context.command.params}
    commands = getattr(context.parent.command, "commands", {}) if context.parent else {}
    elsewhere = {parameter.name for command in commands.values() for parameter in command.params}
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in own_parameters:
            if key in document and name in elsewhere:
                continue  # one file serves several commands
            raise CallError(f"{context.info_name} has no setting {key!r}", where=str(path), do="see --help")
        several = getattr(own_parameters[name], "multiple", False)
        found[name] = ",".join(map(str, value)) if isinstance(value, list) and not several else value
    context.default_map = {**found, **(context.default_map or {})}
    return path


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, words on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds every random choice.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of every runtime; default: the physical cores.")]
StoreDir = Annotated[Path | None, typer.Option("--store", help="A store of finished steps to share between runs.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_configure, help="A paretune.toml with the same keys; flags win."),
]
Budget_ = Annotated[
    str, typer.Option("--budget", "-b", help='Limits, such as "p95@1<=5ms, drop<=1pp, size<=5MB, throughput>=200/s".')
]
Minimize = Annotated[str | None, typer.Option(help="The objective, such as p50@32 or size; default: highest speed-up.")]
Target_ = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Targets, comma-separated; default: every installed one that runs here."),
]
Batch = Annotated[str, typer.Option(help="Batch sizes to measure, comma-separated.")]
Time = Annotated[str, typer.Option(help="When to end: 90s, 10m, 1h.")]
Data = Annotated[
    Path | None, typer.Option(help="For model.onnx: a .npz with arrays named like the inputs, and `label`.")
]
ScoreName = Annotated[str, typer.Option("--score", help="For --data: the built-in score.")]


@app.command(no_args_is_help=True)
def optimize(
    workload: Annotated[str, typer.Argument(help="file.py:name, package.module:name, or model.onnx with --data.")],
    budget: Budget_ = "",
    minimize: Minimize = None,
    target: Target_ = None,
    batch: Batch = "1",
    time: Time = "10m",
    out: Annotated[Path | None, typer.Option(help="The run's directory; default: runs/NAME-N.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run; finished steps are not repeated.")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Use these techniques alone (names or patterns).")] = None,
    without: Annotated[str | None, typer.Option(help="Leave these techniques out (names or patterns).")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="PATTERN=fp32: nodes or modules that stay in float; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A JSON file with a fixed list of candidates.")] = None,
    heldout_limit: Annotated[int | None, typer.Option(min=2, help="Use at most this many held-out examples.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of every interval.")] = 0.95,
    data: Data = None,
    score: ScoreName = "accuracy",
    seed: Seed = 0,
    threads: Threads = None,
    store: StoreDir = None,
    config: Config = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Search for the fastest form of a model that meets a budget on this machine, and prove it.

    Example: [bold]paretune optimize examples/cifar10.py:resnet56 --budget "drop<=1pp" --batch 1,32 --time 10m[/]

    Ctrl-C once ends the search and confirms the best so far. Exit status 3: nothing meets; the report says why.
    """
    limits = Budget.parse(budget, minimize, confidence)  # a slip of the pen is told before a model is loaded
    sizes = _sizes(batch)
    work, given = _workload(workload, data, score)
    _optimize(
        work, json, out, budget=limits, minimize=minimize, targets=_split(target), batch=sizes, time=time,
        resume=resume, only=_split(only), without=_split(without) or [], keep=_kept(keep or []), recipes=recipe,
        heldout_limit=heldout_limit, confidence=confidence, seed=seed, threads=threads, store=store,
        call={"workload": given, "data": str(data) if data else None},
    )  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's directory; it must not exist.")] = Path("runs/demo"),
    time: Time = "90s",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted demo.")] = False,
    seed: Seed = 0,
    threads: Threads = None,
    store: StoreDir = None,
    config: Config = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole road on data that ships with a dependency: train a digit reader, optimise it, prove it.

    Less than two minutes on two cores. The budget: at most one point of accuracy lost on 1,000 held-out digits.
    """
    from paretune import demo as embedded

    _optimize(
        embedded.digits(), json, out, budget=embedded.BUDGET, targets=DEMO_TARGETS, batch=[1, 32], time=time,
        resume=resume, seed=seed, threads=threads, store=store, call={"workload": "paretune.demo:digits"},
    )  # fmt: skip


@app.command(no_args_is_help=True)
def measure(
    what: Annotated[
        str, typer.Argument(metavar="BUNDLE|MODEL", help="A bundle's directory, or an .onnx or .pt2 file.")
    ],
    workload: Annotated[
        str | None, typer.Argument(help="Whose held-out data to score on; without: no accuracy.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Another target than the bundle's.")] = None,
    batch: Batch = "1",
    data: Data = None,
    score: ScoreName = "accuracy",
    seed: Seed = 0,
    threads: Threads = None,
    config: Config = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The same numbers again, here and now: latency, memory and size, and scores where there is data."""
    from paretune import terminal
    from paretune.measure import measure as run

    work = None
    if workload is not None or data is not None:
        work, _ = _workload(workload or what, data, score)
    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(
            what, work, target=target, batch=_sizes(batch), threads=threads, seed=seed, observers=[progress]
        ).describe()
    if json:
        _print(found)
        return
    for warning in found["warnings"]:
        words.print(f"! {warning}", style="yellow", markup=False)
    result.print(terminal.measured(found))


@app.command(no_args_is_help=True)
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a finished run: its table and verdict; writes its report.html anew."""
    from paretune import terminal
    from paretune.deliver import report as page
    from paretune.deliver.run import Run

    found = Run.open(run)
    page.write(found.result, found.report)
    if json:
        _print(found.result)
        return
    result, words = terminal.consoles(json)
    result.print(terminal.table(found.result))
    words.print(f"report: {found.report}", markup=False)


@app.command(no_args_is_help=True)
def pack(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    id: Annotated[str, typer.Option("--id", help="The candidate's id (or its unique beginning).")],
    out: Annotated[Path, typer.Option("--out", help="The bundle's directory; it must not exist.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write any other candidate of a run as a bundle."""
    from paretune.deliver.run import Run

    bundle = Run.open(run).choice(id).save(out)
    if json:
        _print({"bundle": str(bundle.root), **bundle.manifest})
    else:
        typer.echo(f"{bundle.manifest['title']} → {out}")


def _listing(group: str, json: bool) -> None:
    from paretune import terminal
    from paretune.ask import plugin
    from paretune.ask.knob import knobs_of

    entries = []
    for name in plugin.names(group):
        kind = plugin.load(group, name)
        needs = plugin.install_command(kind)
        reason = getattr(kind(), "unavailable", lambda: None)() if not needs else None
        takes = sorted(getattr(kind, "takes", None) or getattr(kind, "accepts", None) or ())
        entries.append(
            {
                "name": name,
                "takes": takes,
                "gives": getattr(kind, "gives", None),
                "knobs": [knob.describe() for knob in knobs_of(kind).values()] if group != "sources" else [],
                "installed": not needs,
                "needs": needs or reason or None,
                "about": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
            }
        )
    if json:
        _print(entries)
    else:
        terminal.consoles(json)[0].print(terminal.listing(entries))


@app.command()
def techniques(json: Json = False, debug: Debug = False) -> None:
    """What can be done to a model: each technique, its knobs, and what a missing one needs."""
    _listing("techniques", json)


@app.command()
def targets(json: Json = False, debug: Debug = False) -> None:
    """Where a model can run: each runtime, its settings, and what a missing one needs."""
    _listing("targets", json)


@app.command()
def sources(json: Json = False, debug: Debug = False) -> None:
    """What can be given as a model."""
    _listing("sources", json)


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"paretune {installed('paretune')}")
        raise typer.Exit


def _workload(where: str, data: Path | None, score: str) -> tuple[Any, str]:
    from paretune.ask.arrays import from_npz
    from paretune.ask.workload import load

    if data is not None:
        return from_npz(Path(where), data, score), str(where)
    if where.endswith((".onnx", ".pt2")):
        raise CallError("a model file needs --data FILE.npz", where=where, do="or name a workload as file.py:name")
    return load(where), where


def _kept(patterns: list[str]) -> list[str]:
    kept = []
    for pattern in patterns:
        name, _, kind = pattern.rpartition("=")
        if kind != "fp32" or not name:
            raise CallError(f"{pattern!r} cannot be read", where="--keep", do="write PATTERN=fp32")
        kept.append(name)
    return kept


def _optimize(work: Any, json: bool, out: Path | None, **options: Any) -> None:
    from paretune import terminal
    from paretune.optimize import optimize as run

    result, words = terminal.consoles(json)
    with terminal.Progress(words) as progress:
        found = run(work, observers=[progress], out=out, **options)
    if json:
        _print(found.result)
    else:
        result.print(terminal.table(found.result))
        words.print(f"report: {found.report}", markup=False, soft_wrap=True)
        if found.best is not None:
            words.print(
                f"bundle: {found.root / 'bundle'}" if found.result.get("bundle") else "no bundle could be written",
                markup=False,
                soft_wrap=True,
            )
    if found.best is None:
        raise typer.Exit(MEETS_NONE)


_document: list[TextIO] = []
"""Where a document goes while stdout is kept for it."""


def _print(document: Any) -> None:
    out = _document[-1] if _document else sys.stdout
    out.write(json_.dumps(document, indent=1) + "\n")
    out.flush()


@contextlib.contextmanager
def _stdout_for_the_document(json: bool) -> Iterator[None]:
    """With ``--json``, whatever else is printed (by a user's workload, or by a runtime's C++) goes to stderr."""
    if not json:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            whole = sys.stdout.fileno() == 1
        except (OSError, ValueError):  # not a real one
            whole = False
        if whole:
            sys.stdout.flush()
            kept = os.dup(1)
            _document.append(stack.enter_context(os.fdopen(kept, "w", encoding="utf-8")))
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        else:
            _document.append(sys.stdout)
        stack.callback(_document.pop)
        with contextlib.redirect_stdout(sys.stderr):
            yield


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one line, never in a traceback (except with ``--debug``)."""
    given = sys.argv[1:] if arguments is None else arguments
    with _stdout_for_the_document("--json" in given):
        code = _guarded(lambda: app(args=given), "--debug" in given)
    sys.exit(code)


def _guarded(run: Callable[[], Any], debug: bool) -> int:
    try:
        run()
        return 0
    except SystemExit as error:  # usage errors are told by typer
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == INTERRUPTED:
            return _complain("interrupted; finished steps are kept, and --resume goes on from them", 1)
        return code
    except KeyboardInterrupt:
        return _complain("interrupted", 1)
    except ParetuneError as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        return _complain(f"something unforeseen: {type(error).__name__}: {text} — --debug shows where", 1)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"paretune: error: {text}\n")
    return code
