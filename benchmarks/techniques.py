"""Every technique on one model: what it gains, what it costs, how long it takes. Writes docs/techniques.md.

    python benchmarks/techniques.py                                     the demo's digits, which need no other data
    python benchmarks/techniques.py examples/cifar10.py:resnet20 --epochs 3 --out runs/techniques

Each technique is applied alone, with its most promising knobs, between the conversions that it needs, and is measured
on a runtime that takes what it gives; then it is set beside the original once more, in turns, and scored on all of the
held-out data. A run that was broken off goes on where it was. The machine must do nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paretune
from paretune.ask import plugin
from paretune.ask.knob import Knob, knobs_of, make
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "techniques.md"
TARGETS = ("onnxruntime", "openvino")
"""Where a technique is measured: the first of them that takes what it gives."""
FORM = "torch"


def recipes(epochs: int | None) -> Iterator[tuple[str, Candidate]]:
    """Every installed technique by name, and the candidate that shows it."""
    known = plugin.usable("techniques")
    for name, kind in sorted(known.items(), key=lambda pair: (order(pair[1]), pair[0])):
        before = next((chain for form in sorted(kind.takes) if (chain := road(FORM, {form}, known)) is not None), None)
        if before is None:
            continue
        for target in TARGETS:
            opener = plugin.load("targets", target)
            after = road(kind.gives, opener.accepts, known)
            if after is not None:
                break
        else:
            continue
        step = shown(kind, epochs)
        folds = [known["onnx_fold"]] if kind.kind == "precision" and kind.takes == {"onnx"} else []
        steps = [*map(first, [*before, *folds]), step, *map(first, after)]
        yield name, Candidate(Recipe(tuple(steps)), opener.light(False)[0])


def order(kind: Any) -> int:
    """Conversions first, then what needs no training, then what trains."""
    return 0 if kind.kind == "convert" else 1 if kind.light() else 2


def road(form: str, wanted: set[str] | frozenset[str], known: dict[str, Any]) -> list[Any] | None:
    """The shortest chain of conversions from a form to one of others."""
    queue: list[tuple[str, list[Any]]] = [(form, [])]
    seen = {form}
    while queue:
        here, chain = queue.pop(0)
        if here in wanted:
            return chain
        for kind in known.values():
            if kind.kind == "convert" and here in kind.takes and kind.gives not in seen:
                seen.add(kind.gives)
                queue.append((kind.gives, [*chain, kind]))
    return None


def first(kind: Any) -> Any:
    return kind.light()[0] if kind.light() else kind()


def shown(kind: Any, epochs: int | None) -> Any:
    """The technique with its most promising knobs; with so many epochs, where it trains and they are given."""
    if kind.light() or epochs is None or "epochs" not in knobs_of(kind):
        return first(kind)
    return make(kind, {"epochs": epochs}, kind.name)


def beside(run: Any, entry: dict[str, Any], workload: Any, seconds: float) -> dict[str, Any]:
    """The candidate against the original: speed, in turns, and the drop on all of the held-out data."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "candidate"
        run.pack(entry["id"], bundle)
        found = paretune.compare(bundle, run.root / "baseline", workload, seconds=seconds).describe(
            run.result["budget"]["confidence"]
        )
    return {"speedup": found["ratio"], "drops": found["drops"]}


def row(name: str, entry: dict[str, Any] | None, baseline: dict[str, Any]) -> list[str]:
    kind = plugin.load("techniques", name)
    if entry is None or "speedup" not in entry:
        why = "not built" if entry is None else str(entry["error"] or entry["why"]).split(" — ")[0]
        told = f"{kind.use} (not here: {why.removeprefix(f'{name}: ')})"
        return [f"[`{name}`](#{name})", "–", "–", "–", "–", "–", "–", told.replace("|", "\\|")]
    reference = entry["runs"][0]["speedup_over_reference"]
    drop = next(iter(entry["drops"].values()), None)
    return [
        f"[`{name}`](#{name})",
        f"{100 * entry['size_bytes'] / baseline['size_bytes']:.0f} %",
        "–" if entry["macs"] is None or not baseline["macs"] else f"{100 * entry['macs'] / baseline['macs']:.0f} %",
        interval(entry["speedup"], "×"),
        interval(reference, "×"),
        "–" if drop is None else interval(drop, f" {drop['unit']}"),
        f"{entry['seconds_to_build'] / 60:.2g}",
        kind.use,
    ]


def interval(value: dict[str, Any] | None, unit: str) -> str:
    if value is None or value["value"] is None:
        return "–"
    return f"{value['value']:.2f}{unit} ({value['low']:.2f} … {value['high']:.2f})"


def document(result: dict[str, Any], names: dict[str, str], arguments: str) -> str:
    """The page."""
    found = {entry["id"]: entry for entry in [*result["candidates"], result["baseline"]]}
    machine, data = result["machine"], result["workload"]
    heads = [
        "technique",
        "size",
        "MACs",
        "speed-up",
        "over onnxruntime FP32",
        "drop",
        "minutes to build",
        "use it when",
    ]
    lines = [
        "# Techniques",
        "",
        f"    python benchmarks/techniques.py{arguments}",
        "",
        f"Written by that command. Each technique alone on `{data['name']}`, batch {result['batches'][0]}, "
        f"{machine['threads']} threads of {machine['cpu']}, between the conversions that it needs; a graph is "
        "folded before its precision is lowered. Size and multiply-accumulates are shares of the original's; the "
        "speed-up is over the original in PyTorch eager, and over its plain export on onnxruntime; the drop is on all "
        "of the held-out data. All "
        f"intervals are at {100 * result['budget']['confidence']:.0f} %. What a technique gains on another model, "
        "another machine or with longer training is for `paretune optimize` to measure there.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "---:|" * (len(heads) - 2) + "---|",
        *("| " + " | ".join(row(name, found.get(one), result["baseline"])) + " |" for name, one in names.items()),
        "",
    ]
    for name, one in names.items():
        lines += section(name, found.get(one))
    return "\n".join(lines).rstrip() + "\n"


def section(name: str, entry: dict[str, Any] | None) -> list[str]:
    kind = plugin.load("techniques", name)
    text = re.sub(r"``([^`]*)``", r"`\1`", " ".join((kind.__doc__ or "").split()))
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    lines = [f"## {name}", "", text, "", f"*Use it when {kind.use}.*", ""]
    if entry is not None and "speedup" in entry:
        lines += [f"Shown here as: {entry['title']}", ""]
    knobs = knobs_of(kind)
    if knobs:
        lines += ["| knob | default | values | meaning |", "|---|---|---|---|"]
        lines += [*(knob_row(knob, said) for knob, said in knobs.items()), ""]
    return lines


def knob_row(name: str, said: Knob) -> str:
    told = said.describe()
    values = " ".join(map(choice, told["choices"])) if told.get("choices") else span(told)
    return f"| `{name}` | {code(told['default'])} | {values or '–'} | {told['help']} |"


def span(told: dict[str, Any]) -> str:
    low, high = told.get("low"), told.get("high")
    return "" if low is None else f"{low:g} … {high:g}"


def choice(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else code(value)


def code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?", default="paretune.demo:digits")
    parser.add_argument("--epochs", type=int, help="of every training; default: the technique's own")
    parser.add_argument("--only", help="techniques, by name, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/techniques"))
    parser.add_argument("--time", default="10h")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison with the original")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    asked = parser.parse_args()
    if asked.only and asked.document == DOCUMENT:
        parser.error("--only makes a part of the page: say where to by --document")
    from paretune.ask.workload import load

    wanted = None if asked.only is None else set(asked.only.split(","))
    shown_by = {name: one for name, one in recipes(asked.epochs) if wanted is None or name in wanted}
    workload = load(asked.workload)
    run = paretune.optimize(
        workload, "drop<=1pp", recipes=list(shown_by.values()), targets=list(TARGETS), time=asked.time,
        out=asked.out, resume=True,
    )  # fmt: skip
    result = json.loads((run.root / "result.json").read_text())
    ids = {one.id for one in shown_by.values()}
    for entry in result["candidates"]:
        if entry["id"] in ids and entry["status"] == "built" and entry["runs"]:
            entry |= beside(run, entry, workload, asked.seconds)
    said = "".join(
        f" {flag}" for flag in (
            asked.workload if asked.workload != parser.get_default("workload") else "",
            f"--epochs {asked.epochs}" if asked.epochs else "",
        ) if flag
    )  # fmt: skip
    asked.document.write_text(
        document(result, {name: one.id for name, one in shown_by.items()}, said), encoding="utf-8"
    )
    print(asked.document.read_text(encoding="utf-8").split("\n## ")[0])


if __name__ == "__main__":
    main()
