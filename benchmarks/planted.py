"""Does `paretune compare` find a slowdown that was planted, and nothing where there is nothing?

    python benchmarks/planted.py BUNDLE --out runs/planted

Compares the bundle with itself (60 times: a procedure at 95 % may call at most 9 different, the 99.9 % bound, as ten or
more come by chance in 0.07 % of such series), then with itself on a runner that waits 3 % longer (50 times: at least
80 % must be called faster). Needs a machine that does nothing else. Every comparison is written to OUT/planted.jsonl as
it is made; a run that was cut short goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TARGET = '''
import contextlib, time
from dataclasses import dataclass
from typing import ClassVar
from paretune.ask import plugin
from paretune.ask.knob import knob

HOMES = {"onnx": "onnxruntime", "openvino": "openvino"}

@dataclass(frozen=True)
class Planted:
    """The form's own runtime, each inference drawn out by a share of its time."""

    name: ClassVar[str] = "planted"
    accepts: ClassVar = frozenset(HOMES)
    needs: ClassVar = {}
    reference: ClassVar = False
    cost: ClassVar = 0.1
    slowdown: float = knob(0.03, "share of the time that is added", low=0.0, high=10.0)

    @contextlib.contextmanager
    def open(self, artifact, settings):
        home = plugin.load("targets", HOMES[artifact.form])()
        with home.open(artifact, settings) as inner:
            yield Drawn(inner, self.slowdown)

    def unavailable(self):
        return None

    @classmethod
    def light(cls, throughput):
        return (cls(),)


class Drawn:
    def __init__(self, inner, slowdown):
        self.inner, self.slowdown, self.callers = inner, slowdown, 1

    def infer(self, inputs):
        start = time.perf_counter_ns()
        answer = self.inner.infer(inputs)
        now = time.perf_counter_ns()
        until = now + (now - start) * self.slowdown
        while now < until:
            now = time.perf_counter_ns()
        return answer
'''


def install(site: Path) -> None:
    """The target as an installed distribution, for this process and its children."""
    (site / "planted-1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (site / "planted_target.py").write_text(TARGET)
    told = site / "planted-1.0.dist-info"
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[paretune.targets]\nplanted = planted_target:Planted\n")
    sys.path.insert(0, str(site.resolve()))


def drawn_out(bundle: Path, into: Path, slowdown: float) -> Path:
    """The same files as ``bundle``, for the planted target."""
    import shutil

    from paretune.ask import plugin
    from paretune.ask.knob import make
    from paretune.build.candidate import Candidate
    from paretune.build.recipe import Recipe
    from paretune.deliver.bundle import Bundle, pack

    shutil.rmtree(into, ignore_errors=True)
    opened = Bundle.open(bundle)
    target = make(plugin.load("targets", "planted"), {"slowdown": slowdown}, "planted")
    manifest = opened.manifest
    pack(
        Candidate(Recipe(), target), opened.subject.artifact, into, machine=manifest["machine"],
        workload=manifest["workload"], evidence={},
    )  # fmt: skip
    return into


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--same", type=int, default=60, help="comparisons with itself")
    parser.add_argument("--planted", type=int, default=50, help="comparisons with the slower one")
    parser.add_argument("--slowdown", type=float, default=0.03)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each comparison, at most")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    install(asked.out / "site")

    from paretune import compare

    # both sides run behind the planted target, so that the wrapper itself makes no difference
    same, slow = (drawn_out(asked.bundle, asked.out / f"by-{share}", share) for share in (0.0, asked.slowdown))
    log = asked.out / "planted.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for kind, count, other in (("same", asked.same, same), ("planted", asked.planted, slow)):
        for seed in range(sum(row["kind"] == kind for row in done), count):
            found = compare(same, other, seconds=asked.seconds, seed=seed).describe()
            row = {"kind": kind, "seed": seed, **{key: found[key] for key in ("outcome", "ratio", "sessions")}}
            done.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{kind} {seed}: {row['outcome']}, {row['ratio']}", flush=True)
    different = [row for row in done if row["kind"] == "same" and row["outcome"] != "no difference shown"]
    found_it = [row for row in done if row["kind"] == "planted" and row["outcome"] == "faster"]
    print(f"called different from itself: {len(different)} of {asked.same}")
    print(f"a slowdown of {asked.slowdown:.0%} found: {len(found_it)} of {asked.planted}")


if __name__ == "__main__":
    main()
