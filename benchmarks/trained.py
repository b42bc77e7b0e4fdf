"""What training techniques gained, beyond what runtime and precision gain alone: one row a candidate and batch size.

    paretune optimize examples/cifar10.py:resnet56 --recipe benchmarks/recipes/resnet56_blocks_2.1x.json \\
        --budget "drop<=1pp" --batch 1,32 --time 10h --out runs/blocks
    python benchmarks/trained.py runs/blocks examples/cifar10.py:resnet56

Every candidate of the run with steps on the torch module is compared, in turns, with its twin: the candidate with the
same conversions, precision and target without those steps, which the recipe file must hold too. The ratio of latencies
says what the steps gained there. The drop is against the original, on the whole of the held-out data. A machine that
does nothing else is needed. Prints one table and writes RUN/trained.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import paretune
from paretune.ask.workload import load

COLUMNS = (
    "candidate", "batch", "MACs", "parameters", "size", "faster than its twin", "faster than the original", "drop",
    "minutes to build",
)  # fmt: skip


def torch_steps(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps before the module leaves torch."""
    names = [step["technique"].startswith("torch_to_") for step in entry["recipe"]]
    return entry["recipe"][: names.index(True)] if True in names else entry["recipe"]


def twin_of(entry: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any] | None:
    rest = entry["recipe"][len(torch_steps(entry)) :]
    for other in others:
        same = (other["target"], other["settings"]) == (entry["target"], entry["settings"])
        if other["status"] == "built" and same and other["recipe"] == rest and other is not entry:
            return other
    return None


def rows_of(run: Any, entry: dict[str, Any], twin: dict[str, Any], workload: Any, asked: Any) -> list[dict[str, Any]]:
    first, base = run.result["baseline"], run.root / "baseline"
    with tempfile.TemporaryDirectory() as scratch:
        for name, one in (("trained", entry), ("twin", twin)):
            run.pack(one["id"], Path(scratch) / name)
        sizes = tuple(run.result["batches"])
        trained = Path(scratch) / "trained"
        paired = paretune.compare(trained, Path(scratch) / "twin", batch=sizes, seconds=asked.seconds)
        against = paretune.compare(trained, base, workload, batch=sizes, seconds=asked.seconds)
    score = next(iter(entry["scores"]), "accuracy")
    drop, unit = against.drop(score)
    return [
        {
            "candidate": entry["title"], "batch": batch,
            "MACs": ratio(first["macs"], entry["macs"]), "parameters": ratio(first["parameters"], entry["parameters"]),
            "size": ratio(first["size_bytes"], entry["size_bytes"]),
            "faster than its twin": told(paired.ratio(0.95, batch), "×"),
            "faster than the original": told(against.ratio(0.95, batch), "×"),
            "drop": told(drop, f" {unit}"), "minutes to build": f"{entry['seconds_to_build'] / 60:.1f}",
        }
        for batch in sizes
    ]  # fmt: skip


def ratio(before: int | None, after: int | None) -> str:
    return "–" if not before or not after else f"{before / after:.2f}× fewer"


def told(estimate: Any, unit: str) -> str:
    return f"{estimate.value:.2f}{unit} [{estimate.low:.2f}, {estimate.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("workload")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each comparison")
    asked = parser.parse_args()
    run = paretune.Run.open(asked.run)
    workload = load(asked.workload)
    every = run.result["candidates"]
    rows = []
    for entry in every:
        if entry["status"] != "built" or not torch_steps(entry):
            continue
        twin = twin_of(entry, every)
        if twin is None:
            print(f"{entry['title']}: the run holds no candidate that differs in the torch steps alone")
            continue
        rows += rows_of(run, entry, twin, workload, asked)
    (asked.run / "trained.json").write_text(json.dumps(rows, indent=1))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |")


if __name__ == "__main__":
    main()
