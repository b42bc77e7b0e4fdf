"""What verbs print about what they found, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

_OUTCOME = {"faster": "green", "slower": "red", "no difference shown": "yellow"}
_VERDICT = {"breaks": "red", "undecided": "yellow", "holds": "green"}
SHARED = 3
"""A knob that so many techniques have alike is told once for all."""
LISTED = 12
"""Scenarios that are told in words."""


def measured(found: Mapping[str, Any]) -> Group:
    """What ``paretune measure`` found."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    priced = any(run.get("cost") for run in found["runs"])
    money = (f"cost of 1,000{f' ({currency})' if (currency := found['rates']['currency']) else ''}",) if priced else ()
    for name in ("batch", "p50", "p90", "p95", "p99", "throughput", "peak memory", "energy", *money, "samples"):
        grid.add_column(name, justify="right")
    for run in found["runs"]:
        cells = [_number(run["latency_ms"][name], ".3g", " ms") for name in ("p50", "p90", "p95", "p99")]
        memory = run["peak_memory_bytes"]
        paid = (_price(run["cost"]),) if priced else ()
        grid.add_row(
            str(run["batch"]), *cells, f"{run['throughput_per_s']:,.0f}/s", megabytes(memory),
            _millijoules(run["energy_j"]), *paid, f"{run['samples']:,}",
        )  # fmt: skip
    lines: list[Any] = [Text(f"{found['title']} on {found['target']}, {megabytes(found['size_bytes'])}", style="bold")]
    lines.append(grid)
    ways = dict.fromkeys(run["energy_j"]["how"] for run in found["runs"])
    lines += [Text(f"energy: {how}", style="dim") for how in ways]
    for run in found["runs"]:
        lines += _disturbed(run)
    if found["memory_growth"]:
        leaks = found["memory_growth"]["verdict"] == "leaking"
        lines.append(Text(found["memory_growth"]["text"], style="red" if leaks else ""))
    for name, score in found["scores"].items():
        lines.append(Text(f"{name} {_number(score, '.4f')}"))
    return Group(*lines)


def trained(found: Sequence[Mapping[str, Any]]) -> Group:
    """What ``paretune train`` made."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    grid.add_column("recipe", overflow="fold")
    for name in ("parameters", "MACs", "minutes"):
        grid.add_column(name, justify="right")
    lines: list[Any] = [grid]
    for one in found:
        counts = [f"{one[name]:,}" if one[name] is not None else "–" for name in ("parameters", "macs")]
        grid.add_row(one["title"], *counts, "–" if one["error"] else f"{one['seconds'] / 60:.1f}")
        lines += [Text(f"  {note}", style="dim") for note in one["notes"]]
        if one["error"]:
            lines.append(Text(one["error"], style="red"))
    return Group(*lines)


def batch_sizes(found: Mapping[str, Any]) -> Group:
    """What ``paretune batch-size`` found."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("at once", "examples/s"):
        grid.add_column(name, justify="right")
    for size, speed in found["examples_per_s"].items():
        chosen = int(size) == found["micro_batch"]
        grid.add_row(size, f"{speed:,.0f}", style="bold" if chosen else "")
    batch, parts = found["batch"], found["accumulation"]
    chosen = "a whole batch at once is quickest" if parts == 1 else f"{parts} parts of it make up a batch of {batch}"
    lines: list[Any] = [grid, Text(f"micro_batch={found['micro_batch']}: {chosen}")]
    lines.append(Text(f"the most at once that were tried and fit: {found['largest']}"))
    plain = found["ways"].get("as asked")
    lines += [
        Text(f"{way}: {speed / plain:.2f} times as many examples a second")
        for way, speed in found["ways"].items() if way != "as asked"
    ]  # fmt: skip
    return Group(*lines)


def _disturbed(run: Mapping[str, Any]) -> list[Text]:
    """What else went on while it was timed; a warning where that is too much."""
    told = run["disturbance"]
    if told is None:
        return []
    line = Text(f"while timing batch {run['batch']}: {told['text']}", style="dim")
    return [line, *(Text(f"! {warning}", style="yellow") for warning in told["warnings"])]


def _millijoules(energy: Mapping[str, Any]) -> str:
    if energy["value"] is None:
        return "–"
    about = "about " if energy["kind"] == "estimated" else ""
    return f"{about}{1e3 * energy['value']:.3g} mJ"


def _price(cost: Mapping[str, Any]) -> str:
    return "–" if cost["per_thousand"] is None else f"{cost['per_thousand']['value']:.3g}"


def loaded(found: Mapping[str, Any]) -> Group:
    """What ``paretune measure --load`` found."""
    samples = "sample" if found["samples_per_query"] == 1 else "samples"
    sent = f"{found['queries']:,} queries of {found['samples_per_query']} {samples} in {found['seconds']:.1f} s"
    if found["rate_per_s"] is not None:
        sent += f", {found['rate_per_s']:,.1f}/s ({found['rate_from']})"
    lines: list[Any] = [Text(f"{found['title']} on {found['target']}, {found['shape']}", style="bold"), Text(sent)]
    if any(found["latency_ms"].values()):
        grid = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("", *found["latency_ms"]):
            grid.add_column(name, justify="right" if name else "left")
        grid.add_row("latency", *(_number(value, ".3g", " ms") for value in found["latency_ms"].values()))
        bounds = found["early_stopping_ms"]
        few = {name: f"– (needs {found['needed'][name]:,})" for name in bounds}
        cells = [few[name] if value is None else f"≤ {value:.3g} ms" for name, value in bounds.items()]
        grid.add_row("early stopping", *cells)
        lines.append(grid)
    if found["throughput_per_s"] is not None:
        pace = found["throughput_per_s"]
        ends = "" if pace["low"] is None else f" ({pace['low']:,.0f} … {_most(pace['high'])})"
        lines.append(Text(f"{pace['value']:,.0f} samples/s{ends}; busy {found['busy']:.0%} of the time"))
    if found["lateness_us"] is not None:
        late = found["lateness_us"]
        lines.append(Text(f"sent {late['p50']:.0f} µs late while it was free (p99 {late['p99']:,.0f} µs)"))
    lines.extend(Text(f"! {finding}", style="yellow") for finding in found["findings"])
    return Group(*lines)


def _most(value: float | None) -> str:
    return "∞" if value is None else f"{value:,.0f}"


def compared(found: Mapping[str, Any]) -> Group:
    """What ``paretune compare`` found."""
    a, b = found["a"], found["b"]
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("batch", "p50 of A", "p50 of B", "A over B", "A is"):
        grid.add_column(name, justify="right")
    for ours, theirs in zip(a["runs"], b["runs"], strict=True):
        told = found["batches"][str(ours["batch"])]
        grid.add_row(
            str(ours["batch"]), *(_number(run["latency_ms"]["p50"], ".3g", " ms") for run in (ours, theirs)),
            _number(told["ratio"], ".3f", "×"), Text(told["outcome"], style=_OUTCOME[told["outcome"]]),
        )  # fmt: skip
    lines: list[Any] = [
        Text(f"{letter}: {side['title']} on {side['target']}, {megabytes(side['size_bytes'])}", style="bold")
        for letter, side in (("A", a), ("B", b))
    ]
    lines.append(grid)
    for name, drop in found["drops"].items():
        gains = drop["value"] is not None and drop["value"] < 0
        apart = _number(_negated(drop) if gains else drop, "+.2f", f" {drop['unit']}")
        lines.append(Text(f"{name} of A lies {apart} {'above' if gains else 'below'} that of B"))
    over = f"{_number(found['ratio'], '.3f', '×')}, {found['sessions']} sessions"
    shown = found["outcome"] != "no difference shown"
    words = f"A is {found['outcome']}: {over}" if shown else f"no difference shown: A runs at {over} of B's pace"
    lines.append(Text(words, style=_OUTCOME[found["outcome"]]))
    return Group(*lines)


def diagnosed(found: Mapping[str, Any]) -> Group:
    """What ``paretune diagnose`` says."""
    model, data = found["model"], found["data"]
    facts = [f"{model['parameters']:,} parameters" if model["parameters"] else "", megabytes(model["size_bytes"])]
    facts.append(f"{model['macs']:,} MACs an example" if model["macs"] else "")
    lines: list[Any] = [
        Text(f"{found['title']}: {', '.join(filter(None, facts))}, at home on {model['home']}", style="bold"),
        Text(f"takes {', '.join(model['inputs'])}; gives {', '.join(model['outputs'])}"),
        Text(
            f"{data['fit']:,} examples to learn from, {data['ranking']:,} to rank on, "
            f"{data['heldout']:,} held out for verdicts"
        ),
        Text(""),
        _power(found),
        Text(""),
    ]
    tried = ", ".join(f"{count} on {name}" for name, count in found["candidates"].items()) or "none"
    lines.append(Text(f"candidates that would be tried: {tried}"))
    lines += [Text(f"{name} does not run here: {why}", style="dim") for name, why in found["missing"].items()]
    machine = found["machine"]
    features = ", ".join(machine["features"]) or "unknown"
    lines.append(Text(f"{machine['cpu']}, {machine['threads']} threads; {features}", style="dim"))
    return Group(*lines)


def stressed(found: Mapping[str, Any]) -> Group:
    """What ``paretune scenarios`` found: families, the worst first, and what broke in words."""
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("family", "scenarios", "break", "undecided", "hold", "excess drop of the whole", "worst"):
        grid.add_column(name, justify="left" if name in ("family", "worst") else "right")
    for one in found["families"]:
        counts = [Text(str(one[name]), style=style if one[name] else "dim") for name, style in _VERDICT.items()]
        grid.add_row(one["family"], str(one["scenarios"]), *counts, _excess(one["excess"]), one["worst"] or "–")
    clean = found["clean"]
    head = (
        f"{found['title']} on {found['examples']:,} examples: {found['score']} {clean['original']:.4g} → "
        f"{clean['candidate']:.4g} unchanged; {found['tolerance']:g} {clean['drop']['unit']} of excess is tolerated"
    )
    broken = [one for one in found["findings"] if one["verdict"] == "breaks"]
    lines = [Text(f"✗ {one['scenario']}: {one['text']}", style="red") for one in broken[:LISTED]]
    if len(broken) > LISTED:
        lines.append(Text(f"and {len(broken) - LISTED} more", style="dim"))
    failed = [one for one in found["findings"] if one["error"] and one["verdict"] != "breaks"]
    lines += [Text(f"? {one['scenario']}: {one['text']}", style="yellow") for one in failed[:LISTED]]
    return Group(Text(head, style="bold"), grid, *lines)


def _excess(one: Mapping[str, Any] | None) -> Text:
    if one is None or one["value"] is None:
        return Text("–", style="dim")
    return Text(_number(one, "+.2f", f" {one['unit']}"), style=_VERDICT[one["verdict"]])


def listing(entries: list[dict[str, Any]], whole: bool = False) -> Group:
    """What ``paretune techniques``, ``targets`` and ``sources`` show.

    Knobs that several have alike (those of training) stand in a line below, or with each where ``whole``.
    """
    owners = Counter((knob["name"], knob["help"]) for entry in entries for knob in entry["knobs"])
    shared = {key for key, count in owners.items() if count >= SHARED and not whole}
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("name", "takes", "gives", "what it does, and its knobs", "installed"):
        grid.add_column(name, overflow="fold")
    for entry in entries:
        about = Text(entry["about"])
        if entry.get("use"):
            about.append(f"\nUse it when {entry['use']}.")
        for knob in entry["knobs"]:
            if (knob["name"], knob["help"]) in shared:
                continue
            about.append(f"\n{knob['name']}={knob['default']}", style="cyan")
            about.append(f"  {knob['help']}{_range(knob)}", style="dim")
        state = (
            Text("yes", style="green") if entry["installed"] and not entry["needs"] else Text(entry["needs"], "yellow")
        )
        grid.add_row(entry["name"], ", ".join(entry["takes"]) or "–", entry["gives"] or "–", about, state)
    if not shared:
        return Group(grid)
    names = ", ".join(dict.fromkeys(name for name, _ in owners if any(name == one for one, _ in shared)))
    return Group(grid, Text(f"What trains has these knobs too (give a name to see them): {names}.", style="dim"))


def _range(knob: Mapping[str, Any]) -> str:
    if "choices" in knob:
        return f" ({' | '.join(map(str, knob['choices']))})"
    if "low" in knob or "high" in knob:
        return f" ({knob.get('low', '…')} … {knob.get('high', '…')})"
    return ""


def _power(found: Mapping[str, Any]) -> Table:
    """What the held-out data can prove of a right-or-wrong score, by how many answers flip."""
    from paretune.check.power import POWER  # it loads scipy, which the other tables do without

    grid = Table(box=None, header_style="bold", pad_edge=False)
    limits = list(dict.fromkeys(row["limit"] for row in found["limits"]))
    proofs = (f"{limit} proven" for limit in limits)
    for name in ("answers that flip", "half-width", f"provable at {100 * POWER:g} %", *proofs):
        grid.add_column(name, justify="right")
    for row in found["power"]:
        cells = [f"{row['flip_rate']:.1%}", f"±{row['half_width_pp']:.2f} pp", f"{row['provable_pp']:.2f} pp"]
        for limit in limits:
            told = next(one for one in found["limits"] if (one["limit"], one["flip_rate"]) == (limit, row["flip_rate"]))
            needed = f", {told['examples_needed']:,} needed" if told["examples_needed"] else ""
            cells.append(f"{told['chance']:.0%}{needed if told['chance'] < POWER else ''}")
        grid.add_row(*cells)
    return grid


def _number(value: Mapping[str, Any] | None, form: str, unit: str = "") -> str:
    """``value (low … high)``; a dash for what is not known, one for both where no bound is (of so few sessions)."""
    if value is None:
        return "–"
    told = {end: "–" if value[end] is None else format(value[end], form) for end in ("value", "low", "high")}
    if value["high"] is None and not value["low"]:
        return f"{told['value']}{unit} (–)"
    return f"{told['value']}{unit} ({told['low']} … {told['high']})"


def _negated(value: Mapping[str, Any]) -> dict[str, Any]:
    """An estimate of the same seen from the other side; ends that are not known stay so."""
    sides = {"value": value["value"], "low": value["high"], "high": value["low"]}
    return {end: None if one is None else -one for end, one in sides.items()}


def megabytes(size: int | None) -> str:
    """A size in MB, or a dash."""
    return "–" if size is None else f"{size / 1e6:.2f} MB"
