"""How often the intervals cover the truth, how often the choice is wrong, and what a held-out set can prove.

    python benchmarks/coverage.py                  everything, ten minutes on one core; writes docs/statistics.md
    python benchmarks/coverage.py --quick          fewer runs and cells, a minute; writes nothing
    python benchmarks/coverage.py --only flips-pp  one table; the names are those of the markers in docs/statistics.md

Everything is simulated from ``--seed``, cell by cell, so that a cell's figures hang on nothing but the seed, the number
of runs and the functions of ``paretune.check`` that it calls. Prints markdown, and puts every table between its markers
in the document.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from scipy import stats
from simulation import accuracy, latency, selection, sets
from simulation import planted as truths
from simulation.cell import Cell, plain, summary, table

from paretune.check.power import chance_to_prove, examples_needed, half_width, provable_limit

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "statistics.md"


@dataclass(frozen=True)
class Size:
    """How many runs a cell has, and how much of everything is left out."""

    flips: int
    scores: int
    latency: int
    sets: int
    compared: int
    searches: int
    itself: int
    planted: int
    counts: tuple[int, ...]
    score_counts: tuple[int, ...]
    set_counts: tuple[int, ...]


FULL = Size(2000, 2000, 2000, 2000, 2000, 2000, 1000, 200, accuracy.COUNTS, (50, 200, 1000, 5000), sets.COUNTS)
QUICK = Size(200, 100, 100, 60, 100, 60, 100, 20, (50, 1000), (50, 1000), (100, 500))
SMALL = Size(20, 10, 4, 3, 5, 3, 10, 2, (50, 200), (50,), (100,))
Tables = dict[str, Callable[[Size, int], str]]


def covered(cells: Iterable[Cell], corner: str) -> str:
    cells = list(cells)
    return f"{table(cells, corner)}\n\n{summary(cells)}"


def enumerated(size: Size, seed: int) -> str:
    counts = (50, 200, 1000) if size is FULL else (50,)
    rows = [[name, *(f"{end:.2f}" for end in ends)] for name, ends in accuracy.enumerated(counts)]
    return plain(["interval", "least, %", "most from ten expected flips on, %"], rows)


def a_against_a(size: Size, seed: int) -> str:
    runs = size.itself
    bound = int(stats.binom.ppf(0.999, runs, 0.05))
    found = [
        (f"ratio of p50, {machine.name}", latency.against_itself(machine, runs, seed)) for machine in latency.MACHINES
    ]
    for rate in (0.005, 0.05, 0.2):
        cells = list(accuracy.flips("pp", runs, seed + 1, ("half are losses",), (rate,), (1000,)))
        found.append((f"drop, n = 1,000, {100 * rate:g} % flip either way", runs - cells[0].held))
    rows = [[name, str(number), "yes" if number <= bound else "**no**"] for name, number in found]
    return plain([f"the same twice, {runs:,} times", "called different", f"at most {bound}"], rows)


def planted(size: Size, seed: int) -> str:
    runs = size.planted
    rows = [
        [
            machine.name,
            *(f"{100 * latency.found_slower(machine, by, runs, seed) / runs:.0f}" for by in (1.01, 1.03, 1.1)),
        ]
        for machine in latency.MACHINES
    ]
    return plain(["called slower, % of runs", "+1 %", "+3 %", "+10 %"], rows)


def planted_drop(size: Size, seed: int) -> str:
    rows = []
    for rate in (0.005, 0.01, 0.02, 0.05, 0.1):
        row = [f"{100 * rate:g} %"]
        for count in (1000, 5000, 10_000):
            # what proves "at least 0" of a drop proves "at most 0" of the same gain
            told = chance_to_prove(0, count, rate, -0.5)
            seen = truths.drops_seen(count, rate, 0.5, size.flips, seed) / size.flips
            off = 2.576 * (told * (1 - told) / size.flips) ** 0.5
            agree = abs(seen - told) <= off + 0.5 / size.flips
            row.append(f"{100 * told:.1f} / {100 * seen:.1f}" if agree else f"**{100 * told:.1f} / {100 * seen:.1f}**")
        rows.append(row)
    return plain(["flips", "n = 1,000", "n = 5,000", "n = 10,000"], rows)


def planted_slice(size: Size, seed: int) -> str:
    runs = size.planted
    rows = []
    for lost_pp in (0.0, 4.0, 6.0, 8.0):
        found = truths.bad_class(lost_pp, 2.0, runs, seed)
        rows.append([f"{lost_pp:g} pp", *(f"{100 * number / runs:.1f}" for number in found)])
    return plain(["one class loses", "the average holds, %", "that class breaks, %", "a good one accused, %"], rows)


def chosen(size: Size, seed: int) -> str:
    rows = []
    for world in selection.WORLDS:
        for tally in selection.searches(world, size.searches, seed):
            share = 100 * tally.broke / tally.searches
            # more than the 99 % bound of a perfect 5 %
            bad = tally.broke > stats.binom.ppf(0.99, tally.searches, 0.05)
            shown = f"**{share:.1f}**" if bad else f"{share:.1f}"
            rows.append([tally.world, tally.way, f"{100 * tally.chose / tally.searches:.1f}", shown])
    return plain(["candidates", "way of choosing", "chose one, %", "chose one that breaks, %"], rows)


RATES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.045, 0.06, 0.1, 0.2)


def by_rate(cell: Callable[[int, float], str]) -> str:
    head = ["examples", *(f"{100 * rate:g} %" for rate in RATES)]
    counts = (200, 381, 500, 1000, 2000, 5000, 10_000, 50_000)
    return plain(head, [[f"{count:,}", *(cell(count, rate) for rate in RATES)] for count in counts])


def provable(size: Size, seed: int) -> str:
    return by_rate(lambda count, rate: f"{provable_limit(count, rate):.2f}")


def widths(size: Size, seed: int) -> str:
    return by_rate(lambda count, rate: f"{half_width(count, rate):.2f}")


def chances(size: Size, seed: int) -> str:
    return by_rate(lambda count, rate: f"{chance_to_prove(1, count, rate):.2f}")


def needed(size: Size, seed: int) -> str:
    limits = (0.5, 1.0, 2.0, 5.0)
    rows = [
        [f"{100 * rate:g} %", *(f"{number:,}" if (number := examples_needed(limit, rate)) else "–" for limit in limits)]
        for rate in RATES
    ]
    return plain(["flips", *(f"≤ {limit:g} pp" for limit in limits)], rows)


def percentiles(place: int) -> Callable[[Size, int], str]:
    shape = latency.SHAPES[place]
    return lambda size, seed: covered(latency.percentiles(size.latency, seed, shape), f"{shape.text} samples")


TABLES: Tables = {
    "enumerated": enumerated,
    "flips-pp": lambda size, seed: covered(accuracy.flips("pp", size.flips, seed, counts=size.counts), "pp"),
    "flips-relative": lambda size, seed: covered(accuracy.flips("%", size.flips, seed, counts=size.counts), "%"),
    "scores-pp": lambda size, seed: covered(accuracy.scores("pp", size.scores, seed, size.score_counts), "pp"),
    "scores-relative": lambda size, seed: covered(accuracy.scores("%", size.scores, seed, size.score_counts[:3]), "%"),
    "methods": lambda size, seed: table(accuracy.compared(size.compared, seed), "n = 200"),
    "sets": lambda size, seed: covered(
        [cell for cells in sets.CELLS for cell in cells(size.sets, seed, size.set_counts)], "pp"
    ),
    "percentiles": percentiles(0),
    "percentiles-few": percentiles(1),
    "ratios": lambda size, seed: covered(latency.ratios(size.latency, seed, latency.SHAPES[0]), "1.3 times as fast"),
    "itself": a_against_a,
    "planted": planted,
    "planted-drop": planted_drop,
    "planted-slice": planted_slice,
    "selection": chosen,
    "widths": widths,
    "provable": provable,
    "chances": chances,
    "needed": needed,
}


def put(document: str, name: str, text: str) -> str:
    """The document with ``text`` between the markers of ``name``."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(document):
        raise SystemExit(f"the document has no markers for {name}")
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of tables, comma-separated", default=",".join(TABLES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const=QUICK, default=FULL)
    size.add_argument(
        "--small", dest="size", action="store_const", const=SMALL, help="seconds: does everything run at all"
    )
    parser.add_argument("--document", type=Path, help="where to put the tables; with all runs, docs/statistics.md")
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := set(names) - set(TABLES):
        parser.error(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    document = asked.document or (DOCUMENT if asked.size is FULL else None)
    for name in names:
        begin = time.process_time()
        text = TABLES[name](asked.size, asked.seed)
        print(f"## {name}, {time.process_time() - begin:.0f} s\n\n{text}\n", flush=True)
        if document:
            document.write_text(put(document.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
