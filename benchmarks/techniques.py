"""Every technique on one model: what it gains, what it costs, how long it takes. Writes docs/techniques.md.

    python benchmarks/techniques.py                                     the demo's digits, which need no other data
    python benchmarks/techniques.py examples/cifar10.py:resnet20 --epochs 3 --out runs/techniques

Each technique is applied alone, with its most promising knobs, between the conversions that it needs, and is measured
on a runtime that takes what it gives; then it is set beside the original once more, in turns, and scored on all of the
held-out data. What finds nothing to do in the model (heads, in a convolutional net) is shown on a small transformer
instead. A run that was broken off goes on where it was. The machine must do nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import paretune
from paretune import Workload, demo
from paretune.ask import plugin
from paretune.ask.knob import Knob, knobs_of, make
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "techniques.md"
TARGETS = ("onnxruntime", "openvino")
"""Where a technique is measured: the first of them that takes what it gives."""
FORM = "torch"


def transformer() -> Workload:
    """The demo's digits, read row by row by an encoder of three layers: trained in half a minute, always the same."""
    train, heldout = demo.examples()
    return Workload("digits by rows", model=lambda: encoder(train), train=train, heldout=heldout)


class RowsEncoder(nn.Module):
    """Images float32 [batch, 1, 16, 16] → logits [batch, 10]; a row is a token."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(demo.SIDE, width)
        self.place = nn.Parameter(torch.zeros(demo.SIDE, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed(image.flatten(1, 2)) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def encoder(train: list[tuple[Any, Any]], epochs: int = 60, size: int = 64) -> nn.Module:
    """Trained by AdamW on one cycle of the rate; seeded, on one thread."""
    images = torch.from_numpy(np.stack([image for image, _ in train]))
    labels = torch.from_numpy(np.array([label for _, label in train]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            net = RowsEncoder().train()
            optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
            steps = epochs * -(-len(images) // size)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
            for _ in range(epochs):
                for chosen in torch.randperm(len(images)).split(size):
                    loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen], label_smoothing=0.1)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return net.eval()


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
        packed = [deflated(place) for place in (bundle, run.root / "baseline")]
    return {"speedup": found["ratio"], "drops": found["drops"], "compressed": packed[0] / packed[1]}


def deflated(bundle: Path) -> int:
    """Bytes of the files that a runtime opens, each compressed by DEFLATE (RFC 1951)."""
    files = [path for path in bundle.iterdir() if path.stem == "model"]
    return sum(len(zlib.compress(path.read_bytes())) for path in files)


def measured(
    workload: Workload, shown_by: dict[str, Candidate], out: Path, time: str, seconds: float
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The result of a run of these candidates, and the entries of those that could be measured, by technique."""
    run = paretune.optimize(
        workload, "drop<=1pp", recipes=list(shown_by.values()), targets=list(TARGETS), time=time, out=out, resume=True
    )
    result = json.loads((run.root / "result.json").read_text())
    found = {entry["id"]: entry for entry in [*result["candidates"], result["baseline"]]}
    entries = {}
    for name, one in shown_by.items():
        entry = found.get(one.id)
        if entry is None:
            continue
        entries[name] = entry | {"whole": result["baseline"], "on": workload.name}
        if entry["status"] == "built" and entry["runs"]:
            entries[name] |= beside(run, entry, workload, seconds)
    return result, entries


def row(name: str, entry: dict[str, Any] | None, usual: str) -> list[str]:
    kind = plugin.load("techniques", name)
    if entry is None or "speedup" not in entry:
        why = "not built" if entry is None else str(entry["error"] or entry["why"]).split(" — ")[0]
        told = f"{kind.use} (not here: {why.removeprefix(f'{name}: ')})"
        return [f"[`{name}`](#{name})", *["–"] * (len(HEADS) - 2), told.replace("|", "\\|")]
    baseline = entry["whole"]
    reference = entry["runs"][0]["speedup_over_reference"]
    drop = next(iter(entry["drops"].values()), None)
    return [
        f"[`{name}`](#{name})",
        f"{100 * entry['size_bytes'] / baseline['size_bytes']:.0f} %",
        f"{100 * entry['compressed']:.0f} %",
        "–" if entry["macs"] is None or not baseline["macs"] else f"{100 * entry['macs'] / baseline['macs']:.0f} %",
        interval(entry["speedup"], "×"),
        interval(reference, "×"),
        "–" if drop is None else interval(drop, f" {drop['unit']}"),
        f"{entry['seconds_to_build'] / 60:.2g}",
        kind.use if entry["on"] == usual else f"{kind.use} (shown on `{entry['on']}`)",
    ]


def interval(value: dict[str, Any] | None, unit: str) -> str:
    if value is None or value["value"] is None:
        return "–"
    return f"{value['value']:.2f}{unit} ({value['low']:.2f} … {value['high']:.2f})"


HEADS = (
    "technique", "size", "compressed", "MACs", "speed-up", "over onnxruntime FP32", "drop", "minutes to build",
    "use it when",
)  # fmt: skip


def document(result: dict[str, Any], entries: dict[str, dict[str, Any]], names: list[str], arguments: str) -> str:
    """The page."""
    machine, data = result["machine"], result["workload"]
    lines = [
        "# Techniques",
        "",
        f"    python benchmarks/techniques.py{arguments}",
        "",
        f"Written by that command. Each technique alone on `{data['name']}`, batch {result['batches'][0]}, "
        f"{machine['threads']} threads of {machine['cpu']}, between the conversions that it needs; a graph is "
        "folded before its precision is lowered. Size (as it lies there, and compressed by DEFLATE) and "
        "multiply-accumulates are shares of the original's; the "
        "speed-up is over the original in PyTorch eager, and over its plain export on onnxruntime; the drop is on all "
        "of the held-out data. All "
        f"intervals are at {100 * result['budget']['confidence']:.0f} %. What a technique gains on another model, "
        "another machine or with longer training is for `paretune optimize` to measure there. What finds nothing to do "
        f"in `{data['name']}` is shown on another model, which its row names.",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|---|" + "---:|" * (len(HEADS) - 2) + "---|",
        *("| " + " | ".join(row(name, entries.get(name), data["name"])) + " |" for name in names),
        "",
    ]
    for name in names:
        lines += section(name, entries.get(name))
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
    result, entries = measured(workload, shown_by, asked.out, asked.time, asked.seconds)
    left = {name: one for name, one in shown_by.items() if "speedup" not in entries.get(name, {})}
    if left:
        place = asked.out.with_name(f"{asked.out.name}-transformer")
        entries |= measured(transformer(), left, place, asked.time, asked.seconds)[1]
    said = "".join(
        f" {flag}" for flag in (
            asked.workload if asked.workload != parser.get_default("workload") else "",
            f"--epochs {asked.epochs}" if asked.epochs else "",
        ) if flag
    )  # fmt: skip
    asked.document.write_text(document(result, entries, list(shown_by), said), encoding="utf-8")
    print(asked.document.read_text(encoding="utf-8").split("\n## ")[0])


if __name__ == "__main__":
    main()
