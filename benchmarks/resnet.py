"""ResNet-20 and ResNet-56 through the whole road, then their bundles on the bare runtime.

    python benchmarks/resnet.py --out runs/resnet

Needs the CIFAR-10 data (see examples/README.md) and a machine that does nothing else. Prints one table and writes it,
with every figure, to OUT/resnet.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARETUNE = str(Path(sys.executable).with_name("paretune"))
COLUMNS = (
    "net", "batch", "verdict", "candidate", "over_baseline", "over_reference", "bare_ratio", "drop_pp", "accuracy",
    "bare_accuracy", "agrees", "overhead",
)  # fmt: skip


def optimize(net: str, out: Path, time: str, batches: str) -> dict:
    command = [
        PARETUNE, "optimize", f"{ROOT / 'examples' / 'cifar10.py'}:{net}", "--budget", "drop<=1pp", "--batch", batches,
        "--time", time, "--target", "onnxruntime,openvino,torch", "--out", str(out),
    ]  # fmt: skip
    # 3: no candidate meets the budget, which is a result too
    if (status := subprocess.run(command, check=False).returncode) not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {status}")
    return json.loads((out / "result.json").read_text())


def bare(run: Path, result: dict, name: str, batch: int) -> dict:
    """The candidate's bundle on the bare runtime, beside the run's own onnxruntime FP32 reference."""
    bundle = run / "bundle"
    if name != result["best"]:
        bundle = run / f"bundle-{name}"
        if not bundle.exists():
            subprocess.run([PARETUNE, "pack", str(run), "--id", name, "--out", str(bundle)], check=True)
    reference = run / find(result, result["reference"])["runs"][0]["artifact"] / "model.onnx"
    script = [sys.executable, str(ROOT / "benchmarks" / "bare_runtime.py"), str(bundle)]
    answer = subprocess.run(
        [*script, "--reference", str(reference), "--batch", str(batch)], check=True, stdout=subprocess.PIPE
    )
    return json.loads(answer.stdout)


def find(result: dict, name: str) -> dict:
    return next(one for one in [result["baseline"], *result["candidates"]] if one["id"] == name)


def interval(value: dict | None, places: int = 2) -> str:
    if value is None:
        return "–"
    return f"{value['value']:.{places}f} [{value['low']:.{places}f}, {value['high']:.{places}f}]"


def rows_of(net: str, run: Path, result: dict) -> list[dict]:
    overhead = f"{result['seconds']['overhead'] / result['seconds']['total']:.1%}"
    if result["best"] is None:
        return [{"net": net, "verdict": "none meets", "candidate": result["why_none"], "overhead": overhead}]
    rows = []
    for batch, name in result["best_by_batch"].items():
        entry = find(result, name)
        measured = next(one for one in entry["runs"] if one["batch"] == int(batch))
        without = bare(run, result, name, int(batch))
        # the reference is not measured against itself
        over_reference = measured["speedup_over_reference"] or {"value": 1.0, "low": 1.0, "high": 1.0}
        accuracy = entry["scores"]["accuracy"]["value"]
        inside = over_reference["low"] <= without["ratio"] <= over_reference["high"]
        rows.append(
            {
                "net": net,
                "batch": int(batch),
                "verdict": entry["verdict"],
                "candidate": entry["title"],
                "over_baseline": interval(measured["speedup"]),
                "over_reference": interval(over_reference),
                "bare_ratio": interval({**without, "value": without["ratio"]}),
                "drop_pp": interval(entry["drops"]["accuracy"]),
                "accuracy": f"{accuracy:.4f}",
                "bare_accuracy": f"{without['accuracy']:.4f}",
                "agrees": "yes" if inside and abs(accuracy - without["accuracy"]) < 1e-9 else "NO",
                "overhead": overhead,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    cells = [COLUMNS, *(tuple(str(row.get(column, "")) for column in COLUMNS) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nets", default="resnet20,resnet56")
    parser.add_argument("--time", default="10m")
    parser.add_argument("--batch", default="1,32")
    asked = parser.parse_args()
    rows = []
    for net in asked.nets.split(","):
        rows += rows_of(net, asked.out / net, optimize(net, asked.out / net, asked.time, asked.batch))
    (asked.out / "resnet.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    print(table(rows))


if __name__ == "__main__":
    main()
