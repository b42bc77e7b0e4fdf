"""The scenario suite on ResNet-56 against its INT8 bundle: a table of corruptions and severities, and what broke.

    python benchmarks/scenarios.py BUNDLE --limit 1000 --out runs/scenarios

BUNDLE is one that `paretune optimize examples/cifar10.py:resnet56` wrote. Needs the CIFAR-10 data (see
examples/README.md). Scores do not depend on how busy the machine is; the figures under load do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from paretune import scenarios
from paretune.ask.workload import load
from paretune.build.store import write_whole
from paretune.deliver import heatmap
from paretune.deliver.scenarios import FILE

ROOT = Path(__file__).resolve().parents[1]
MARKS = {"breaks": "✗", "undecided": "?", "holds": "✓"}


class Lines:
    """An observer that says now and then how far it is."""

    def on(self, event: Any) -> None:
        if event.kind == "stage" or event.data.get("done", 1) % 25 == 0:
            print(event.text, file=sys.stderr, flush=True)


def table(found: dict[str, Any]) -> str:
    """Markdown: the original's score and the excess drop at every severity, one row a corruption."""
    scored = [one for one in found["findings"] if one["kind"] == "accuracy"]
    unit = found["clean"]["drop"]["unit"]
    lines = [f"| family | scenario | original at 1 … 5 | excess drop ({unit}) at 1 … 5 |", "|---|---|---|---|"]
    for family, stem in dict.fromkeys((one["family"], one["stem"]) for one in scored):
        mine = [one for one in scored if one["stem"] == stem]
        originals = " ".join(f"{100 * one['original']:.0f}" for one in mine if one["original"] is not None)
        drops = " ".join(f"{one['excess']['value']:+.1f}{MARKS[one['verdict']]}" for one in mine if one["excess"])
        lines.append(f"| {family} | {stem} | {originals} | {drops} |")
    return "\n".join(lines)


def families(found: dict[str, Any]) -> str:
    """Markdown: every family as a whole."""
    lines = [
        "| family | scenarios | break | undecided | hold | excess drop of the whole |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["families"]:
        excess = one["excess"]
        told = "–"
        if excess:
            told = f"{excess['value']:+.2f} ({excess['low']:+.2f} … {excess['high']:+.2f}) {excess['verdict']}"
        counts = " | ".join(str(one[name]) for name in ("scenarios", "breaks", "undecided", "holds"))
        lines.append(f"| {one['family']} | {counts} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--only", default="", help="names, stems or families, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/scenarios"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = scenarios(
        given.bundle, load(f"{ROOT / 'examples' / 'cifar10.py'}:resnet56"), limit=given.limit, seed=given.seed,
        only=[part for part in given.only.split(",") if part], observers=[Lines()], store=given.out / "store",
    ).describe()  # fmt: skip
    write_whole(given.out / FILE, json.dumps(found, indent=1, allow_nan=False))
    heatmap.write(found, given.out / "scenarios.html")
    clean = found["clean"]
    print(f"{found['title']}, {found['examples']:,} examples, {found['seconds']:.0f} s")
    print(f"unchanged: {clean['original']:.4f} → {clean['candidate']:.4f}\n")
    print(families(found), "\n")
    print(table(found), "\n")
    for one in found["findings"]:
        if one["verdict"] == "breaks" or one["kind"] == "load":
            print(f"- {one['scenario']}: {one['text']}")


if __name__ == "__main__":
    main()
