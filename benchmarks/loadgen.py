"""MLCommons' LoadGen and paretune on the same opened runner: do they say the same of the same queries?

    pip install 'paretune[loadgen]'
    python benchmarks/loadgen.py RUN/bundle

One child per shape. In every round, in an order drawn by seed, it is sent queries of paretune's own, queries of
LoadGen's, and queries of LoadGen's that a runner answers which infers nothing (``paretune.check.loadgen.null``).

**The same queries** (the exit status). LoadGen's summary of each of its runs is set beside paretune's of the very same
queries, which the child timed by its own clock: from when a query reached it (single-, multi-stream), from when LoadGen
had scheduled it (server, by LoadGen's trace), from when all were there (offline). What LoadGen sees more is its Python
binding. That is not read off these queries: it is the same difference on the queries of the round's null run, at the
same percentile (offline: seconds of the whole run), and it is taken off LoadGen's figure. The ratio of what is left to
paretune's figure has Student's interval over the rounds' logarithms, at 1 - 0.05 / (number of figures), so that all are
read together at 95 %.

They agree if that whole interval lies within the one that paretune states for a run: at 95 %, the wider of order
statistics and stretches of the run (offline: of throughput), as shares of the figure, the geometric mean over rounds;
an end that a run leaves open is that of order statistics. Whether the ratio's interval holds 1 would be the wrong
question: the chance of the queries is in both figures and cancels, so that noise alone would make them agree, and with
rounds enough a tenth of a microsecond would part them. This way noise counts against agreement, and what may be left
is less than what paretune itself says it does not know. With too few queries for an interval nothing agrees.

**The turns** (information, not judged). LoadGen's figure in its turns over paretune's in its own is the product of two
ratios: LoadGen's over our clock's of the same queries, around the runner alone and with the binding left in (server:
from when it was due); and our clock's in LoadGen's turns over our clock's in our own, which is the runner's own pace:
it is slower where a load generator works between its calls and takes the caches.

The runner has one thread less than there are cores, as LoadGen writes its log in a thread of its own. Exit status 1
when one of the figures does not agree. Inputs are CIFAR-10's test images where PARETUNE_DATA has them and the bundle
takes such, else seeded random ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from paretune.ask.data import Split
from paretune.check import early_stopping
from paretune.check.bench import whole_batches
from paretune.check.feed import Feed
from paretune.check.load import QUANTILES, SAMPLES, Schedule, Trace, summarise, throughput
from paretune.check.loadgen import Loadgen, LoadgenSummary, drive
from paretune.check.machine import available_cpus, fingerprint, measuring_lock
from paretune.check.process import Child
from paretune.check.statistics import Estimate, order_interval
from paretune.subject import sample_of, subject_of

RATE = "samples/s"
FIGURES = {"offline": (RATE,)}
LATENCIES = ("p50", "p90", "p99")
LEAST = 400
"""So many queries bound a p99 from both sides; offline, which has no percentiles, takes fewer batches."""


@dataclass
class Shape:
    """What was said of one shape, round by round: of our queries, of LoadGen's, and of those that nobody inferred."""

    name: str
    own: list[Trace] = field(default_factory=list)
    theirs: list[LoadgenSummary] = field(default_factory=list)
    null: list[LoadgenSummary] = field(default_factory=list)

    @property
    def figures(self) -> tuple[str, ...]:
        return FIGURES.get(self.name, LATENCIES)


def quantile(samples: np.ndarray, q: float) -> float:
    """As LoadGen takes it: no interpolation."""
    return float(np.sort(samples)[int(len(samples) * q)])


def told(run: LoadgenSummary, figure: str) -> float:
    """What LoadGen's summary says: ms, or samples a second."""
    return run.throughput_per_s if figure == RATE else run.latency_ms[figure]


def seen(run: LoadgenSummary, figure: str) -> float:
    """What our clock says of the same queries."""
    return run.samples / run.trace.seconds if figure == RATE else quantile(run.trace.latency_ms, QUANTILES[figure])


def around(trace: Trace, figure: str, samples: int | None = None) -> float:
    """What our clock says of the runner alone; server: with the queue, which is the point of it."""
    if figure == RATE:
        return (samples or trace.schedule.samples * len(trace.service_ms)) / trace.seconds
    times = trace.latency_ms if trace.schedule.shape == "server" else trace.service_ms
    return quantile(times, QUANTILES[figure])


def excess(run: LoadgenSummary, figure: str) -> float:
    """What LoadGen's clock sees more than ours of the same queries: ms, or seconds of the whole run.

    Of a null run, it is the binding's part.
    """
    if figure == RATE:
        return run.samples / told(run, figure) - run.trace.seconds
    return told(run, figure) - seen(run, figure)


def without(run: LoadgenSummary, figure: str, part: float) -> float:
    """LoadGen's figure less the binding's part, which is ms, or seconds of the whole run."""
    if figure == RATE:
        return run.samples / (run.samples / told(run, figure) - part)
    return told(run, figure) - part


def stated(run: LoadgenSummary, figure: str) -> tuple[float, float] | None:
    """The ends of the 95 % interval that we state for this run, as shares of the figure; None: too few queries.

    An end that is open, as stretches of the run differ too much, is that of order statistics.
    """
    if figure == RATE:
        own = throughput(run.trace)
        return (own.low / own.value, own.high / own.value) if own.low > 0 and math.isfinite(own.high) else None
    q, latency = QUANTILES[figure], np.sort(run.trace.latency_ms)
    ends = order_interval(len(latency), q, 0.95)
    if ends is None:
        return None
    own = summarise(run.trace)["latency_ms"][figure]
    low, high = own["low"] or float(latency[ends[0]]), own["high"] or float(latency[ends[1]])
    return low / own["value"], high / own["value"]


def geometric(values: list[float]) -> float:
    return float(np.exp(np.log(values).mean()))


def ratio(above: list[float], below: list[float], confidence: float) -> Estimate:
    """The geometric mean over rounds of one over the other, with Student's interval of the logarithms."""
    logs = np.log(np.array(above) / np.array(below))
    if len(logs) < 2:
        return Estimate(float(np.exp(logs.mean())), 0.0, math.inf)
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return Estimate(*(float(np.exp(logs.mean() + by)) for by in (0.0, -half, half)))


def compare(shapes: list[Shape]) -> list[dict]:
    """LoadGen's figures and ours of the same queries, and whether they agree."""
    confidence = 1 - 0.05 / sum(len(shape.figures) for shape in shapes)
    return [_compared(shape, figure, confidence) for shape in shapes for figure in shape.figures]


def _compared(shape: Shape, figure: str, confidence: float) -> dict:
    unit = 1e6 if figure == RATE else 1e3
    parts = [excess(run, figure) for run in shape.null]
    ours = [seen(run, figure) for run in shape.theirs]
    left = [without(run, figure, part) for run, part in zip(shape.theirs, parts, strict=True)]
    found = ratio(left, ours, confidence)
    ends = [stated(run, figure) for run in shape.theirs]
    bounds = None if None in ends else tuple(geometric(list(side)) for side in zip(*ends, strict=True))
    return {
        "shape": shape.name,
        "figure": figure,
        "ours": geometric(ours),
        "loadgen": geometric([told(run, figure) for run in shape.theirs]),
        "above_us": unit * float(np.mean([excess(run, figure) for run in shape.theirs])),
        "binding_us": unit * float(np.mean(parts)),
        **found.describe(),
        "bounds": bounds,
        "agree": bounds is not None and bounds[0] <= found.low and found.high <= bounds[1],
    }


def turns(shapes: list[Shape]) -> list[dict]:
    """LoadGen's figure in its turns over ours in our own, in its two factors."""
    rows = []
    for shape in shapes:
        for figure in shape.figures:
            theirs = [told(run, figure) for run in shape.theirs]
            between = [around(run.trace, figure, run.samples) for run in shape.theirs]
            own = [around(trace, figure) for trace in shape.own]
            pairs = {"whole": (theirs, own), "clocks": (theirs, between), "pace": (between, own)}
            rows.append(
                {
                    "shape": shape.name,
                    "figure": figure,
                    "loadgen": geometric(theirs),
                    "ours_between": geometric(between),
                    "ours": geometric(own),
                    **{name: ratio(*pair, 0.95).describe() for name, pair in pairs.items()},
                }
            )
    return rows


def early(shapes: list[Shape]) -> dict:
    """LoadGen's early stopping against ours on the very same queries."""
    runs = [run for shape in shapes if shape.name == "single-stream" for run in shape.theirs]
    same = sum(run.discarded == (early_stopping.place(run.queries, 0.9) or 0) - 1 for run in runs)
    gaps = [run.early_stopping_ms["p90"] - early_stopping.estimate(run.trace.latency_ms, 0.9) for run in runs]
    return {"runs": len(runs), "same_query_chosen": same, "gap_us": float(np.median(gaps)) * 1e3}


def images() -> Split | None:
    """CIFAR-10's test images as held-out data, where they are."""
    try:
        from bare_runtime import test_images

        pixels, labels = test_images()
    except (ImportError, OSError):
        return None
    return Split.whole(list(zip(pixels[:512], labels[:512], strict=True)), None, "CIFAR-10")


def measure(bundle: Path, asked: argparse.Namespace, scratch: Path) -> tuple[list[Shape], str]:
    machine = fingerprint(asked.threads or max(1, len(available_cpus()) - 1))
    subject, title, _, _ = subject_of(bundle, None, None, scratch, machine)
    given = images() if tuple(subject.artifact.inputs[0].shape[1:]) == (3, 32, 32) else None
    data = sample_of(given, subject.artifact, max(SAMPLES.values()), asked.seed)
    random = np.random.default_rng(asked.seed)
    shapes = []
    for name, rows in SAMPLES.items():
        feed = Feed.write(whole_batches(data, subject.artifact, rows), scratch / f"feed-{name}")
        with (
            Child(subject.artifact, subject.target, machine["threads"], rows, scratch, spare=1) as child,
            measuring_lock(),
        ):
            shapes.append(interleave(child, feed, name, rows, asked, random, scratch))
    return shapes, f"{title}, inputs: {data.name}"


def interleave(child, feed, name: str, rows: int, asked, random, scratch: Path) -> Shape:
    alone = child.load(feed, Schedule.streamed("single-stream", rows, 1.0, LEAST), scratch / "notes")
    pace_s = alone.seconds / len(alone.service_ms)
    rate = asked.share / pace_s
    least = 64 if name == "offline" else LEAST
    shape = Shape(name)

    def own(seed: int) -> None:
        if name == "server":
            schedule = Schedule.served(rows, rate, max(least, round(rate * asked.seconds)), seed)
        elif name == "offline":
            schedule = Schedule.at_once(rows, max(least, round(asked.seconds / pace_s)), asked.seconds)
        else:
            schedule = Schedule.streamed(name, rows, asked.seconds, least)
        shape.own.append(child.load(feed, schedule, scratch / "notes"))

    def theirs(seed: int) -> None:
        wanted = Loadgen(name, rows, asked.seconds, least, pace_s, rate, seed)
        shape.theirs.append(drive(child, feed, wanted, scratch / "loadgen"))

    def null(seed: int) -> None:
        wanted = Loadgen(name, rows, asked.seconds, least, pace_s, rate, seed, null=True)
        shape.null.append(drive(child, feed, wanted, scratch / "loadgen"))

    for number in range(asked.rounds + 1):
        for turn in random.permutation(3):
            (own, theirs, null)[turn](asked.seed + number)
        print(f"{name}: round {number} of {asked.rounds}", file=sys.stderr)
    del shape.own[0], shape.theirs[0], shape.null[0]  # they bring caches and clocks to their pace
    return shape


def table(rows: list[dict]) -> str:
    lines = [
        "| shape | figure | paretune | LoadGen | more by | binding, by null runs | LoadGen without it / paretune "
        "| paretune's own interval | agree |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        form = _form(row["figure"])
        own = "too few queries" if row["bounds"] is None else "{:.4f} … {:.4f}".format(*row["bounds"])
        said = " | ".join(form.format(row[name]) for name in ("ours", "loadgen"))
        more = " | ".join(f"{row[name]:,.1f} µs" for name in ("above_us", "binding_us"))
        agree = "yes" if row["agree"] else "no"
        lines.append(
            f"| {row['shape']} | {_name(row['figure'])} | {said} | {more} | {_bounds(row, 4)} | {own} | {agree} |"
        )
    return "\n".join(lines)


def turns_table(rows: list[dict]) -> str:
    lines = [
        "| shape | figure | LoadGen, its turns | our clock, its turns | our clock, our turns | LoadGen / ours "
        "| = the same queries | × the runner's pace |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        form = _form(row["figure"])
        values = " | ".join(form.format(row[name]) for name in ("loadgen", "ours_between", "ours"))
        factors = " | ".join(_bounds(row[name], 3) for name in ("whole", "clocks", "pace"))
        lines.append(f"| {row['shape']} | {_name(row['figure'])} | {values} | {factors} |")
    return "\n".join(lines)


def _name(figure: str) -> str:
    return figure if figure == RATE else f"{figure}, ms"


def _form(figure: str) -> str:
    return "{:,.0f}" if figure == RATE else "{:.3f}"


def _bounds(found: dict, digits: int) -> str:
    high = f"{found['high']:.{digits}f}" if found["high"] is not None else "∞"
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} … {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--share", type=float, default=0.5, help="the server's rate, of what single-stream answers")
    parser.add_argument("--threads", type=int, help="the runner's; default: one less than there are cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the tables")
    asked = parser.parse_args()
    busy = os.getloadavg()[0]
    scratch = Path(tempfile.mkdtemp(prefix="paretune-loadgen-"))
    try:
        shapes, title = measure(asked.bundle, asked, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows, taken, stopping = compare(shapes), turns(shapes), early(shapes)
    if asked.json:
        found = {"figures": rows, "turns": taken, "early_stopping": stopping}
        print(json.dumps({"title": title, "load_average": busy, **found}, indent=1))
    else:
        how = f"{asked.rounds} rounds of {asked.seconds:g} s, seed {asked.seed}"
        print(f"{title}; {how}; load average before: {busy:.2f}\n\nThe same queries:\n\n{table(rows)}")
        print(f"\nIn turns (not judged; intervals at 95 % each):\n\n{turns_table(taken)}")
        print(
            f"\nEarly stopping, single-stream p90: of the sorted queries both choose the same one in "
            f"{stopping['same_query_chosen']} of {stopping['runs']} runs; on the same queries LoadGen's estimate is "
            f"{stopping['gap_us']:.1f} µs above ours."
        )
    sys.exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    main()
