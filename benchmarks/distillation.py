"""ResNet-20 from scratch in the same time each: without a teacher, and taught by ResNet-56 in three ways.

    python benchmarks/distillation.py --out runs/distillation --seconds 300 --seeds 0,1,2 --threads 1

Every kind trains for as many whole epochs as fit into the seconds, which a short calibration of each kind finds
first, in CPU time over threads: what runs beside it does not count, asking the teacher and teaching assistants do.
A seed gives every kind the same first parameters and order of examples. A finished run is a line of OUT/runs.jsonl;
started again, the benchmark goes on where it was. It prints a table and writes OUT/distillation.json: accuracy on
the whole test file, and its difference from the same seed's run without a teacher, with Student's 95 % interval
over seeds.

Needs the CIFAR-10 data (see examples/README.md) and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.source import find as read_model
from paretune.build.technique import Fit
from paretune.forms import torch as form
from paretune.techniques.torch_distill import TorchDistill
from paretune.techniques.torch_distill_attention import TorchDistillAttention
from paretune.techniques.torch_distill_progressive import TorchDistillProgressive
from paretune.techniques.torch_finetune import TorchFinetune

ROOT = Path(__file__).resolve().parents[1]
KINDS: Mapping[str, Callable[..., Any]] = {
    "none": TorchFinetune,
    "distill": TorchDistill,
    "attention": TorchDistillAttention,
    "progressive": TorchDistillProgressive,
}
LEVEL = 0.95
CALIBRATED = 1_280
"""Examples of a calibration: ten batches an epoch."""
AT_ONCE = 500


def main(arguments: Sequence[str] | None = None) -> None:
    asked = options(arguments)
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    setting = setting_of(asked)
    bench = Bench(asked, setting)
    for seed in asked.seeds:
        for kind in asked.kinds:
            if not any(one["kind"] == kind and one["seed"] == seed for one in lines(asked.out, setting, "run")):
                note(asked.out, setting, "run", bench.run(kind, seed))
    found = summary(lines(asked.out, setting, "run"))
    (asked.out / "distillation.json").write_text(json.dumps({"setting": setting, "kinds": found}, indent=1))
    print(table(found))


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="of each training, on an idle machine")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--examples", type=int, default=10_000, help="training examples, drawn once; 0: all")
    parser.add_argument("--tested", type=int, default=0, help="test examples, the first ones; 0: all")
    parser.add_argument("--augment", default="none", help="with any, the teacher answers in every step")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight", type=float, default=1.0, help="of the attention's term")
    asked = parser.parse_args(arguments)
    for kind in asked.kinds:
        if kind not in KINDS:
            parser.error(f"--kinds: {kind} is none of {', '.join(KINDS)}")
    return asked


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def setting_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for runs to be compared; a line of another setting is left alone."""
    names = ("seconds", "threads", "examples", "tested", "augment", "precision", "learning_rate", "weight")
    return {name: getattr(asked, name) for name in names}


# -- the lines of a benchmark under way --------------------------------------------------------------------------------


def note(out: Path, setting: Mapping[str, Any], what: str, facts: Mapping[str, Any]) -> None:
    line = json.dumps({"what": what, **facts, "setting": dict(setting)})
    with (out / "runs.jsonl").open("a") as file:
        file.write(f"{line}\n")
    print(line, file=sys.stderr, flush=True)


def lines(out: Path, setting: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """What was noted in this setting; a line that a kill cut short is left out."""
    found = []
    path = out / "runs.jsonl"
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["what"] == what and line["setting"] == setting:
            found.append(line)
    return found


# -- runs --------------------------------------------------------------------------------------------------------------


class Decoded:
    """Examples decoded once and kept: a training reads them in every epoch."""

    def __init__(self, images: Any, places: Sequence[int]) -> None:
        self._items = [images[int(place)] for place in places]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


class Bench:
    """The models and data of all runs."""

    def __init__(self, asked: argparse.Namespace, setting: dict[str, Any]) -> None:
        self.asked, self.setting, self.out = asked, setting, asked.out
        self.example = example()
        images = self.example.Images(self.example.find("cifar10-jpeg-train.parquet"))
        order = np.random.default_rng(0).permutation(len(images))
        self.train = Split.whole(Decoded(images, order[: asked.examples or len(images)]), None, "train")
        tested = self.example.Images(self.example.find("cifar10-jpeg-test.parquet"))
        self.tested = Split.whole(Decoded(tested, range(asked.tested or len(tested))), None, "test")
        self.teacher = self._artifact(self.example.resnet56().model(), "teacher")

    def _artifact(self, module: torch.nn.Module, name: str) -> Artifact:
        root = self.out / "models" / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        return read_model(module, self.train, root)[0]

    def _student(self, seed: int) -> Artifact:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.example.ResNet(3).eval()
        return self._artifact(fresh, f"student-{seed}")

    def technique(self, kind: str, epochs: int) -> Any:
        extra = {"weight": self.asked.weight} if kind == "attention" else {}
        return KINDS[kind](
            student="given", epochs=epochs, batch=128, optimizer="sgd", learning_rate=self.asked.learning_rate,
            weight_decay=5e-4, warmup=0.2, clip=5.0, precision=self.asked.precision, channels_last=True,
            augment=self.asked.augment, **extra,
        )  # fmt: skip

    def applied(self, kind: str, seed: int, epochs: int, train: Split, name: str) -> Artifact:
        """The technique applied; checkpoints of a run that was killed are taken up."""
        scratch = self.out / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fit = Fit(
            train, None, self.teacher, seed, scratch, student=self._student(seed),
            checkpoints=self.out / "checkpoints" / name if name else None,
        )  # fmt: skip
        return self.technique(kind, epochs).apply(self.teacher, fit)

    def calibrated(self, kind: str) -> dict[str, Any]:
        """Seconds of an epoch and of what comes before the first, for all examples; measured once, and noted."""
        known = [one for one in lines(self.out, self.setting, "calibration") if one["kind"] == kind]
        if known:
            return known[-1]
        few = self.train.head(min(CALIBRATED, len(self.train)))
        self.applied(kind, 0, 1, few.head(256), "")  # what is loaded and compiled at first
        seconds = []
        for epochs in (1, 3):
            begun = time.process_time()
            self.applied(kind, 0, epochs, few, "")
            seconds.append((time.process_time() - begun) / self.asked.threads)
        epoch_s = (seconds[1] - seconds[0]) / 2
        share = len(self.train) / len(few)
        found = {
            "kind": kind, "epoch_s": epoch_s * share,
            "before_s": max(0.0, seconds[0] - epoch_s) * (share if self.asked.augment == "none" else 1.0),
        }  # fmt: skip
        note(self.out, self.setting, "calibration", found)
        return found

    def run(self, kind: str, seed: int) -> dict[str, Any]:
        epochs = fitting(self.asked.seconds, self.calibrated(kind))
        name = f"{kind}-{seed}-{epochs}"
        whole = not (self.out / "checkpoints" / name).exists()
        begun, worked = time.perf_counter(), time.process_time()
        taught = self.applied(kind, seed, epochs, self.train, name)
        facts = {
            "kind": kind, "seed": seed, "epochs": epochs, "whole": whole,
            "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - worked,
            "accuracy": self.accuracy(taught), "notes": list(taught.notes),
        }  # fmt: skip
        shutil.rmtree(self.out / "checkpoints" / name, ignore_errors=True)
        return facts

    def accuracy(self, artifact: Artifact) -> float:
        module, right = form.restore(artifact), 0
        for batch in self.tested.batches(AT_ONCE):
            answers = form.call(module, artifact, batch.inputs)[0]
            right += int((answers.argmax(1) == batch.labels).sum())
        return right / len(self.tested)


def fitting(seconds: float, calibration: Mapping[str, float]) -> int:
    """Whole epochs that fit into the seconds; one at the least."""
    return max(1, math.floor((seconds - calibration["before_s"]) / calibration["epoch_s"]))


def example() -> Any:
    spec = importlib.util.spec_from_file_location("cifar10", ROOT / "examples" / "cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar10"] = module  # digests of its classes' code are read through it
    spec.loader.exec_module(module)
    return module


# -- what was found ----------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind: mean accuracy and its gain over the run without a teacher, intervals over seeds, in pp."""
    found = []
    alone = {one["seed"]: one["accuracy"] for one in runs if one["kind"] == "none"}
    for kind in KINDS:
        mine = [one for one in runs if one["kind"] == kind]
        if not mine:
            continue
        gains = [100 * (one["accuracy"] - alone[one["seed"]]) for one in mine if one["seed"] in alone]
        found.append(
            {
                "kind": kind,
                "seeds": sorted(one["seed"] for one in mine),
                "epochs": sorted({one["epochs"] for one in mine}),
                "seconds": float(np.mean([one["seconds"] for one in mine])),
                "cpu_seconds": float(np.mean([one["cpu_seconds"] for one in mine])),
                "whole": all(one["whole"] for one in mine),
                "accuracy": interval([100 * one["accuracy"] for one in mine]),
                "gain_pp": None if kind == "none" or not gains else interval(gains),
            }
        )
    return found


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """The mean with Student's interval; without bounds where there is one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"value": mean, "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {"value": mean, "low": mean - half, "high": mean + half}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = ["| teacher | seeds | epochs | seconds | accuracy, % | gain, pp |", "|---|---|---|---|---|---|"]
    for one in found:
        epochs = ", ".join(map(str, one["epochs"]))
        told = f"{one['seconds']:.0f}" + ("" if one["whole"] else " (interrupted)")
        cells = one["kind"], str(len(one["seeds"])), epochs, told, shown(one["accuracy"]), shown(one["gain_pp"], "+")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def shown(value: Mapping[str, float | None] | None, sign: str = "") -> str:
    if value is None:
        return "–"
    if value["low"] is None:
        return f"{value['value']:{sign}.2f}"
    return f"{value['value']:{sign}.2f} [{value['low']:{sign}.2f}, {value['high']:{sign}.2f}]"


if __name__ == "__main__":
    main()
