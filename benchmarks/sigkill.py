"""Killed at random moments and resumed, a run must end as if nothing had happened.

    python benchmarks/sigkill.py --out runs/sigkill

Runs a fixed list of candidates once undisturbed. Then once more, killed with SIGKILL (the whole process group) at
random moments and started again with --resume each time, until the last may finish. Prints the comparison as JSON;
exits with 1 when candidates, front or best differ, a finished step was repeated, or a file is missing or not what its
digest says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARETUNE = str(Path(sys.executable).with_name("paretune"))
FILES = ("run.json", "result.json", "report.html", "log.jsonl", "baseline/bundle.json")
DONE = (0, 3)


def start(asked: argparse.Namespace, out: Path) -> subprocess.Popen:
    command = [
        PARETUNE, "optimize", asked.workload, "--budget", asked.budget, "--batch", asked.batch, "--recipe",
        str(asked.recipe), "--time", "1h", "--out", str(out), "--resume",
    ]  # fmt: skip
    words = out.with_suffix(".txt").open("a")
    return subprocess.Popen(command, stdout=words, stderr=words, stdin=subprocess.DEVNULL, start_new_session=True)


def undisturbed(asked: argparse.Namespace) -> tuple[float, float]:
    """Seconds until the first step was finished, and of the whole run."""
    out = asked.out / "undisturbed"
    began, clock = time.time(), time.monotonic()
    status = start(asked, out).wait()
    if status not in DONE:
        raise SystemExit(f"the undisturbed run ended with {status}: see {out.with_suffix('.txt')}")
    first = next(line["time"] for line in log(out) if line["event"] == "step")
    return first - began, time.monotonic() - clock


def disturbed(asked: argparse.Namespace, ready: float, total: float) -> tuple[int, list[dict]]:
    """Some kills fall into start-up, most into the work, of which each run does a little more."""
    rng = random.Random(asked.seed)
    out, kills = asked.out / "killed", []
    while len(kills) < asked.kills:
        after = ready * rng.uniform(0.5, 1.1) + rng.uniform(0, 2 * (total - ready) / asked.kills)
        process = start(asked, out)
        try:
            status = process.wait(after)
            if status not in DONE:
                raise SystemExit(f"the resumed run ended with {status}: see {out.with_suffix('.txt')}")
            after = ready * rng.uniform(0.5, 0.9)  # all is done: what is left to disturb is start-up
            process = start(asked, out)
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            told = log(out)
            kills.append({"after_s": round(after, 2), "last": told[-1]["text"] if told else "before the first event"})
    return start(asked, out).wait(), kills


def log(out: Path) -> list[dict]:
    events = []
    for line in (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:  # the line that was being written when the kill came
            continue
    return events


def outcome(out: Path) -> dict:
    result = json.loads((out / "result.json").read_text())
    candidates = {one["id"]: one["status"] for one in result["candidates"]}
    return {"candidates": candidates, "front": sorted(result["front"]), "best": result["best"]}


def repeated(out: Path) -> list[str]:
    finished = Counter(line["key"] for line in log(out) if line["event"] == "step" and not line["cached"])
    return [key for key, times in finished.items() if times > 1]


def broken(out: Path) -> list[str]:
    """Files that are missing, or whose content is not what their manifest or store entry says."""
    bundles = ["baseline", *(["bundle"] if json.loads((out / "result.json").read_text())["best"] else [])]
    wrong = [name for name in (*FILES, *(f"{bundle}/bundle.json" for bundle in bundles)) if not (out / name).is_file()]
    entries = list((out / "store").glob("*/*/entry.json"))
    for manifest in (*entries, *(out / bundle / "bundle.json" for bundle in bundles)):
        if not manifest.is_file():
            continue
        for name, digest in json.loads(manifest.read_text())["files"].items():
            file = manifest.parent / name
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                wrong.append(str(file.relative_to(out)))
    stored = [place for place in (out / "store").glob("??/*") if not (place / "entry.json").is_file()]
    return wrong + [str(place.relative_to(out)) for place in stored]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--workload", default="paretune.demo:digits")
    parser.add_argument("--recipe", type=Path, default=ROOT / "benchmarks" / "recipes" / "spine.json")
    parser.add_argument("--budget", default="drop<=1pp")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    ready, total = undisturbed(asked)
    status, kills = disturbed(asked, ready, total)
    if status not in DONE:
        raise SystemExit(f"the last run ended with {status}: see {asked.out / 'killed.txt'}")
    whole, resumed = outcome(asked.out / "undisturbed"), outcome(asked.out / "killed")
    answer = {
        "undisturbed_s": round(total, 1),
        "kills": kills,
        "same": {name: whole[name] == resumed[name] for name in whole},
        "undisturbed": whole,
        "killed": resumed,
        "repeated_steps": repeated(asked.out / "killed"),
        "broken_files": broken(asked.out / "undisturbed") + broken(asked.out / "killed"),
        "leftovers": [path.name for path in (asked.out / "killed").glob(".*")],
    }
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    well = all(answer["same"].values()) and not answer["repeated_steps"] and not answer["broken_files"]
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
