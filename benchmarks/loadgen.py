"""MLCommons' LoadGen and paretune on the same opened runner, in turns: do their numbers agree for the four load shapes?

    pip install 'paretune[loadgen]'
    python benchmarks/loadgen.py RUN/bundle

One child per shape; in every round both send it queries, in an order drawn by seed. Per figure: the geometric mean over
rounds of each, and LoadGen's over ours with Student's interval over the rounds' logarithms. LoadGen calls the runner
through its Python binding, which takes some microseconds of every query, and of few a good deal more; how much is seen
where both clocks look at the same queries, percentile by percentile, and that is taken off before the ratio. The runner
has one thread less than there are cores, as LoadGen writes its log in a thread of its own. All ratios are read
together: each interval is at 1 - 0.05 / (number of figures). Exit status 1 when one of them leaves out 1.

Inputs are CIFAR-10's test images where PARETUNE_DATA has them and the bundle takes such, else seeded random ones.
"""

from __future__ import annotations

import argparse
import json
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
from paretune.check.load import QUANTILES, SAMPLES, Schedule, Trace, throughput
from paretune.check.loadgen import Loadgen, LoadgenSummary, drive
from paretune.check.machine import available_cpus, fingerprint, measuring_lock
from paretune.check.process import Child
from paretune.subject import sample_of, subject_of

FIGURES = {
    "single-stream": ("p50", "p90", "p99"),
    "multi-stream": ("p50", "p90", "p99"),
    "server": ("p50", "p90", "p99"),
}
LEAST = 64


@dataclass
class Shape:
    """What both said of one shape, round by round."""

    name: str
    ours: list[Trace] = field(default_factory=list)
    theirs: list[LoadgenSummary] = field(default_factory=list)

    def binding_us(self) -> dict[str, float]:
        """What LoadGen's clock sees more than ours of the same queries, by percentile; closed loops alone."""
        gaps = {
            name: [run.latency_ms[name] - quantile(run.trace.service_ms, QUANTILES[name]) for run in self.theirs]
            for name in FIGURES[self.name]
        }
        return {name: float(np.median(found)) * 1e3 for name, found in gaps.items()}

    def figures(self, binding_us: dict[str, float]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per figure ours, LoadGen's, and LoadGen's without the binding's part, one number a round."""
        if self.name == "offline":
            ours = np.array([throughput(trace).value for trace in self.ours])
            theirs = np.array([run.throughput_per_s for run in self.theirs])
            return {"samples/s": (ours, theirs, theirs)}
        found = {}
        for name in FIGURES[self.name]:
            ours = np.array([quantile(trace.latency_ms, QUANTILES[name]) for trace in self.ours])
            theirs = np.array([run.latency_ms[name] for run in self.theirs])
            found[f"{name}, ms"] = (ours, theirs, theirs - binding_us[name] / 1e3)
        return found


def quantile(samples: np.ndarray, q: float) -> float:
    """As LoadGen takes it: no interpolation."""
    return float(np.sort(samples)[int(len(samples) * q)])


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
    shape = Shape(name)

    def ours(seed: int) -> None:
        count = max(LEAST, round(asked.seconds / pace_s))
        if name == "server":
            schedule = Schedule.served(rows, rate, max(LEAST, round(rate * asked.seconds)), seed)
        elif name == "offline":
            schedule = Schedule.at_once(rows, count, asked.seconds)
        else:
            schedule = Schedule.streamed(name, rows, asked.seconds, LEAST)
        shape.ours.append(child.load(feed, schedule, scratch / "notes"))

    def theirs(seed: int) -> None:
        wanted = Loadgen(name, rows, asked.seconds, LEAST, pace_s, rate, seed)
        shape.theirs.append(drive(child, feed, wanted, scratch / "loadgen"))

    for number in range(asked.rounds + 1):
        for turn in random.permutation([0, 1]):
            (ours, theirs)[turn](asked.seed + number)
        print(f"{name}: round {number} of {asked.rounds}", file=sys.stderr)
    del shape.ours[0], shape.theirs[0]  # it brings caches and clocks to their pace
    return shape


def ratio(ours: np.ndarray, theirs: np.ndarray, confidence: float) -> tuple[float, float, float]:
    logs = np.log(theirs / ours)
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def compare(shapes: list[Shape]) -> list[dict]:
    binding = {shape.name: shape.binding_us() for shape in shapes if shape.name in ("single-stream", "multi-stream")}
    binding["server"], binding["offline"] = binding["single-stream"], {}
    found = [
        (shape.name, name, *values, binding[shape.name].get(name.removesuffix(", ms"), 0.0))
        for shape in shapes
        for name, values in shape.figures(binding[shape.name]).items()
    ]
    confidence = 1 - 0.05 / len(found)
    rows = []
    for shape, name, ours, theirs, without, part_us in found:
        value, low, high = ratio(ours, without, confidence)
        means = [float(np.exp(np.log(part).mean())) for part in (ours, theirs)]
        rows.append(
            {"shape": shape, "figure": name, "ours": means[0], "loadgen": means[1], "binding_us": part_us,
             "ratio": value, "low": low, "high": high, "agree": low <= 1 <= high}
        )  # fmt: skip
    return rows


def early(shapes: list[Shape]) -> dict:
    """LoadGen's early stopping against ours on the very same queries."""
    runs = [run for shape in shapes if shape.name == "single-stream" for run in shape.theirs]
    same = sum(run.discarded == (early_stopping.place(run.queries, 0.9) or 0) - 1 for run in runs)
    gaps = [run.early_stopping_ms["p90"] - early_stopping.estimate(run.trace.service_ms, 0.9) for run in runs]
    return {"runs": len(runs), "same_query_chosen": same, "gap_us": float(np.median(gaps)) * 1e3}


def table(rows: list[dict]) -> str:
    lines = [
        "| shape | figure | paretune | LoadGen | binding | ratio without it | agree |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        form = "{:,.0f}" if row["figure"] == "samples/s" else "{:.3f}"
        ours, theirs = form.format(row["ours"]), form.format(row["loadgen"])
        part = f"{row['binding_us']:.1f} µs" if row["binding_us"] else "–"
        bounds = f"{row['ratio']:.3f} ({row['low']:.3f} … {row['high']:.3f})"
        agree = "yes" if row["agree"] else "no"
        lines.append(f"| {row['shape']} | {row['figure']} | {ours} | {theirs} | {part} | {bounds} | {agree} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--share", type=float, default=0.5, help="the server's rate, of what single-stream answers")
    parser.add_argument("--threads", type=int, help="the runner's; default: one less than there are cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    asked = parser.parse_args()
    busy = os.getloadavg()[0]
    scratch = Path(tempfile.mkdtemp(prefix="paretune-loadgen-"))
    try:
        shapes, title = measure(asked.bundle, asked, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    rows, stopping = compare(shapes), early(shapes)
    if asked.json:
        print(json.dumps({"title": title, "load_average": busy, "figures": rows, "early_stopping": stopping}, indent=1))
    else:
        how = f"{asked.rounds} rounds of {asked.seconds:g} s, seed {asked.seed}"
        print(f"{title}; {how}; load average before: {busy:.2f}\n")
        print(table(rows))
        print(
            f"\nEarly stopping, single-stream p90: of the sorted queries both choose the same one in "
            f"{stopping['same_query_chosen']} of {stopping['runs']} runs; on the same queries LoadGen's estimate is "
            f"{stopping['gap_us']:.1f} µs above ours."
        )
    sys.exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    main()
