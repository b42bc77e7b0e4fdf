"""The comparison table, and why each candidate that lost did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretune.deliver import quantity
from paretune.deliver.outcome import Candidate, Outcome, run_at
from paretune.deliver.quantity import Figure
from paretune.deliver.readiness import PERCENTILES

_ORDER = {"meets": 0, "undecided": 1, "breaks": 2, "not tested": 3}
_STATUS = {"built": 0, "failed": 1, "skipped": 2}


@dataclass(frozen=True)
class Column:
    """``batch`` is None for what does not depend on the batch size."""

    label: str
    help: str
    batch: int | None = None


@dataclass(frozen=True)
class Row:
    candidate: Candidate
    label: str
    cells: tuple[Figure, ...]
    marks: tuple[str, ...]
    variant: str


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Reason:
    """One reason and the candidates it holds for."""

    text: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Group:
    title: str
    reasons: tuple[Reason, ...]

    @property
    def size(self) -> int:
        return sum(len(reason.candidates) for reason in self.reasons)


def label(candidate: Candidate) -> str:
    """What the candidate stands for in one word or two."""
    if candidate["status"] != "built":
        return str(candidate["status"])
    return str(candidate["verdict"])


def marks(outcome: Outcome, candidate: Candidate) -> tuple[str, ...]:
    """Best, best at a batch size, baseline, reference, front."""
    said = ["best"] if candidate["id"] == outcome.result["best"] else []
    if not said and outcome.best is None and candidate["id"] == outcome.result["nearest"]:
        said.append("nearest")
    by_batch = [batch for batch, name in outcome.result["best_by_batch"].items() if name == candidate["id"]]
    if by_batch and "best" not in said:
        said += [f"best at batch {batch}" for batch in sorted(by_batch, key=int)]
    if candidate["role"] != "candidate":
        said.append(candidate["role"])
    if candidate["in_front"]:
        said.append("front")
    return tuple(said)


def variants(outcome: Outcome) -> dict[str, str]:
    """By id, the knobs that tell a candidate from the others of the same title; empty where the title is enough."""
    same: dict[str, list[Candidate]] = defaultdict(list)
    for one in outcome.candidates:
        same[one["title"]].append(one)
    found: dict[str, str] = {}
    for ones in same.values():
        knobs = [_flat_knobs(one) for one in ones]
        names = dict.fromkeys(name for values in knobs for name in values)
        telling = [name for name in names if len({str(values.get(name)) for values in knobs}) > 1]
        for one, values in zip(ones, knobs, strict=True):
            found[one["id"]] = ", ".join(f"{name[1]}={knob_value(values[name])}" for name in telling if name in values)
    return found


def knob_value(value: Any) -> str:
    """A knob's value as a person would say it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(knob_value, value)) + "]"
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def table(outcome: Outcome) -> Table:
    """Every candidate; a column that is empty for all of them is left out, and named in ``left_out``."""
    ordered = sorted(outcome.candidates, key=lambda one: _rank(outcome, one))
    columns = _columns(outcome)
    cells = [_cells(outcome, one) for one in ordered]
    telling = variants(outcome)
    kept = [place for place in range(len(columns)) if any(row[place].sort is not None for row in cells)]
    left_out = [columns[place] for place in range(len(columns)) if place not in kept]
    rows = tuple(
        Row(one, label(one), tuple(row[place] for place in kept), marks(outcome, one), telling[one["id"]])
        for one, row in zip(ordered, cells, strict=True)
    )
    names = dict.fromkeys(f"{one.label}{f' at batch {one.batch}' if one.batch else ''}" for one in left_out)
    return Table(tuple(columns[place] for place in kept), rows, tuple(names))


def losers(outcome: Outcome) -> list[Group]:
    """Everything that is not the best, grouped by how it lost and then by the reason."""
    titles = {
        "meets": "Meets the budget, but something else is better",
        "undecided": "Undecided: the interval spans a limit",
        "breaks": "Breaks a limit",
        "not tested": "Dropped before it was judged",
        "failed": "Failed to build or to run",
        "skipped": "Not tried",
    }
    grouped: dict[str, dict[str, list[Candidate]]] = {key: defaultdict(list) for key in titles}
    for one in outcome.candidates:
        if one["id"] == outcome.result["best"] or one is outcome.baseline:
            continue
        reason = (one["error"] or one["why"]) if one["status"] == "failed" else (one["why"] or one["error"])
        grouped[label(one)][reason or "no reason was recorded"].append(one)
    return [
        Group(titles[key], tuple(Reason(text, tuple(ones)) for text, ones in reasons.items()))
        for key, reasons in grouped.items()
        if reasons
    ]


def _rank(outcome: Outcome, one: Candidate) -> tuple[Any, ...]:
    first = (
        0 if one["id"] == outcome.result["best"] else 1 if one["role"] == "baseline" else 2
        if one["role"] == "reference" else 3
    )  # fmt: skip
    objective = (one.get("objective") or {}).get("value")
    # a ratio to the baseline whatever the objective is: higher is better
    worth = float("inf") if objective is None else -objective
    return first, _STATUS[one["status"]], _ORDER[one["verdict"]], worth


def _flat_knobs(one: Candidate) -> dict[tuple[int, str], Any]:
    """Every knob of the recipe's steps and of the target; the place keeps equal names of two steps apart."""
    steps = [*(step["knobs"] for step in one["recipe"]), one["settings"]]
    return {(place, name): value for place, knobs in enumerate(steps) for name, value in knobs.items()}


def _columns(outcome: Outcome) -> list[Column]:
    columns = [
        Column(f"{name} drop", f"{name} of the original minus that of the candidate; below zero is a gain")
        for name in outcome.score_names
    ]
    priced = (("cost", ""), ("cost of right ones", " right")) if outcome.priced else ()
    for batch in outcome.batches:
        columns += [
            Column("speed-up", f"p50 of the original over p50 of the candidate at batch {batch}, interleaved", batch),
            Column("over reference", f"p50 of the reference over p50 of the candidate at batch {batch}", batch),
            *(
                Column(name, f"{name[1:]} % of the calls at batch {batch} took at most this", batch)
                for name in PERCENTILES
            ),
            Column("throughput", f"examples per second at batch {batch}", batch),
            Column("peak memory", f"of the whole process at batch {batch}", batch),
            Column("energy", f"for one call at batch {batch}", batch),
            *(Column(name, f"of a thousand{kind} predictions at batch {batch}", batch) for name, kind in priced),
        ]
    columns += [
        Column("agreement", "share of answers that are the original's"),
        *(Column(name, "mean over the examples") for name in outcome.score_names),
        Column("size", "the model's files on disk, and in per cent of the original's"),
        Column("parameters", "number of parameters"),
        Column("MACs", "multiply-accumulates for one example"),
    ]
    return columns


def _cells(outcome: Outcome, one: Candidate) -> list[Figure]:
    missing = {
        "failed": f"failed: {one['error'] or one['why'] or 'no reason was recorded'}",
        "skipped": f"not tried: {one['why'] or one['error'] or 'no reason was recorded'}",
    }.get(one["status"])
    unscored = missing or "its answers were not scored"
    uncounted = missing or "not counted for this form"
    cells = [
        quantity.measured(one["drops"].get(name), quantity.in_unit(outcome.drop_unit(name)), unscored)
        for name in outcome.score_names
    ]
    for batch in outcome.batches:
        cells += _run_cells(one, batch, missing)
        cells += _cost_cells(one, batch, missing) if outcome.priced else []
    cells.append(quantity.measured(one["agreement"], quantity.share, unscored))
    for name in outcome.score_names:
        write = quantity.share if outcome.drop_unit(name) == "pp" else quantity.number
        cells.append(quantity.measured(one["scores"].get(name), write, unscored))
    return [
        *cells,
        _size(outcome, one, missing),
        quantity.single(one["parameters"], quantity.count, uncounted),
        quantity.single(one["macs"], quantity.count, uncounted),
    ]


def _size(outcome: Outcome, one: Candidate, missing: str | None) -> Figure:
    size, original = one["size_bytes"], outcome.baseline["size_bytes"]
    figure = quantity.single(size, quantity.byte_size, missing or "not known")
    if figure.sort is None or not original:
        return figure
    return Figure(figure.text, f"{quantity.number(100 * size / original)}{quantity.SPACE}%", figure.sort)


def _run_cells(one: Candidate, batch: int, missing: str | None) -> list[Figure]:
    run = run_at(one, batch)
    if run is None:
        return [Figure(why=missing or f"not measured at batch {batch}")] * (5 + len(PERCENTILES))
    samples = "too few samples for it" if run["samples"] is None else f"{run['samples']:,} samples are too few for it"
    throughput = run["throughput_per_s"]
    if not isinstance(throughput, dict):
        throughput = {"value": throughput}
    return [
        quantity.measured(run["speedup"], quantity.times, "not measured beside the original"),
        quantity.measured(
            run["speedup_over_reference"], quantity.times, "there is no reference, or it was not measured"
        ),
        *(quantity.measured(run["latency_ms"][name], quantity.milliseconds, samples) for name in PERCENTILES),
        quantity.measured(throughput, quantity.per_second),
        quantity.single(run["peak_memory_bytes"], quantity.byte_size, "the system did not tell"),
        _energy(run.get("energy_j")),
    ]


def _energy(energy: Mapping[str, Any] | None) -> Figure:
    """In mJ, with its interval; what is estimated says so."""
    if energy is None:
        return Figure(why="this machine tells no energy")
    ends = {end: None if energy.get(end) is None else 1e3 * energy[end] for end in ("value", "low", "high")}
    return _sourced(quantity.measured(ends, quantity.millijoule, f"energy is {energy['kind']}"), energy["kind"])


def _cost_cells(one: Candidate, batch: int, missing: str | None) -> list[Figure]:
    run = run_at(one, batch)
    cost = run.get("cost") if run else None
    if cost is None:
        return [Figure(why=missing or "its cost is not known")] * 2

    def money(value: float) -> str:
        return f"{quantity.number(value)}{quantity.SPACE}{cost['currency']}".rstrip(quantity.SPACE)

    why = {"per_thousand": "its energy is unavailable", "per_thousand_correct": "no answers are right or wrong"}
    return [_sourced(quantity.measured(cost[name], money, said), cost["kind"]) for name, said in why.items()]


def _sourced(figure: Figure, kind: str) -> Figure:
    if kind != "estimated" or figure.sort is None:
        return figure
    return Figure(figure.text, f"{figure.span}, estimated" if figure.span else "estimated", figure.sort)
