"""The checklist before anything is shipped: each item is ticked by a figure, or says what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from paretune.deliver import quantity
from paretune.deliver.outcome import Candidate, Outcome, run_at

PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Check:
    """``evidence`` is the figure that ticks the item, or what is missing."""

    item: str
    ticked: bool
    evidence: str


def checklist(outcome: Outcome) -> list[Check]:
    """The items for the best candidate (the nearest when nothing meets); empty when there is neither."""
    shown = outcome.shown
    if shown is None:
        return []
    checks = (_accuracy, _budget, _agreement, _percentiles, _batches, _memory, _growth, _interleaved, _quiet, _bundle)
    return [check(outcome, shown) for check in checks]


def _accuracy(outcome: Outcome, shown: Candidate) -> Check:
    item = "Accuracy confirmed on all held-out data"
    drops = [
        f"{name} drop {quantity.measured(drop, quantity.in_unit(drop['unit'])).both}"
        for name, drop in shown["drops"].items()
        if drop and drop["value"] is not None
    ]
    size = outcome.result["workload"]["heldout_size"]
    on = f" on {quantity.whole(size)} examples" if size else ""
    limits = [one for one in outcome.judged(shown) if one.finding["limit"].startswith("drop")]
    passed = all(one.finding["verdict"] == "meets" for one in limits)
    if shown["confirmed"] and shown["data"] == "heldout" and drops and passed:
        return Check(item, True, f"{', '.join(drops)}{on}")
    if not drops:
        return Check(item, False, "no drop was measured")
    where = (
        "held-out data, and not shown to be within its limit"
        if shown["data"] == "heldout"
        else "the ranking slice only"
    )
    return Check(item, False, f"{', '.join(drops)}: measured on {where}")


def _budget(outcome: Outcome, shown: Candidate) -> Check:
    item = "Every limit of the budget met"
    if not outcome.limits:
        return Check(item, False, "no limit was set: there is nothing to meet")
    judged = outcome.judged(shown)
    met = [one for one in judged if one.finding["verdict"] == "meets"]
    if len(met) == len(judged):
        return Check(
            item, True, f"{len(met)} of {len(judged)}: {', '.join(dict.fromkeys(one.finding['limit'] for one in met))}"
        )
    missed = ", ".join(
        dict.fromkeys(f"{one.finding['limit']} {one.finding['verdict']}" for one in outcome.binding(shown))
    )
    return Check(item, False, f"{len(met)} of {len(judged)} met; {missed}")


def _agreement(outcome: Outcome, shown: Candidate) -> Check:
    item = "Agreement with the original's answers measured"
    figure = quantity.measured(shown["agreement"], quantity.share)
    where = {"heldout": "on held-out data", "ranking": "on the ranking slice"}.get(shown["data"] or "", "")
    if figure.sort is None:
        return Check(item, False, "not measured (it needs class answers and data)")
    return Check(item, True, f"{figure.both} {where}".strip())


def _percentiles(outcome: Outcome, shown: Candidate) -> Check:
    item = "Latency percentiles up to p99, from enough samples"
    said, complete = [], bool(outcome.batches)
    for batch in outcome.batches:
        run = run_at(shown, batch)
        latency = run["latency_ms"] if run else {}
        lacking = [name for name in PERCENTILES if not latency.get(name) or latency[name]["value"] is None]
        complete = complete and not lacking
        samples = f"{quantity.whole(run['samples'])} samples" if run and run["samples"] is not None else "no samples"
        if lacking:
            said.append(f"batch {batch}: no {', '.join(lacking)} from {samples}")
        else:
            said.append(f"batch {batch}: p99 {quantity.milliseconds(latency['p99']['value'])} from {samples}")
    return Check(item, complete, "; ".join(said))


def _batches(outcome: Outcome, shown: Candidate) -> Check:
    item = "Batch 1 and the largest asked batch size measured"
    wanted = sorted({1, outcome.batches[-1]})
    missing = [batch for batch in wanted if run_at(shown, batch) is None]
    if not missing and len(wanted) == 1:
        return Check(item, True, "batch 1, the only one asked")
    if not missing:
        return Check(item, True, " and ".join(f"batch {batch}" for batch in wanted))
    unasked = [batch for batch in missing if batch not in outcome.batches]
    reason = "was not asked (--batch 1,…)" if unasked else "has no measurement"
    return Check(item, False, f"batch {', '.join(map(str, missing))} {reason}")


def _memory(outcome: Outcome, shown: Candidate) -> Check:
    item = "Peak memory measured"
    said, complete = [], True
    for batch in outcome.batches:
        run = run_at(shown, batch)
        peak = run["peak_memory_bytes"] if run else None
        complete = complete and peak is not None
        said.append(f"batch {batch}: {'unknown' if peak is None else quantity.byte_size(peak)}")
    return Check(item, complete, "; ".join(said))


def _growth(outcome: Outcome, shown: Candidate) -> Check:
    item = "Memory does not grow while it runs"
    growth = shown.get("memory_growth")
    if growth is None:
        return Check(item, False, "not watched: paretune measure --soak does")
    return Check(item, growth["verdict"] == "steady", growth["text"])


def _quiet(outcome: Outcome, shown: Candidate) -> Check:
    item = "The machine was quiet while latencies were taken"
    seen = {batch: (run_at(shown, batch) or {}).get("disturbance") for batch in outcome.batches}
    known = {batch: told for batch, told in seen.items() if told is not None}
    if not known:
        return Check(item, False, "what else went on was not recorded")
    loud = {batch: told for batch, told in known.items() if told["warnings"]}
    said = [f"batch {batch}: {'; '.join(told['warnings'])}" for batch, told in loud.items()] or [
        f"batch {batch}: {told['text']}" for batch, told in known.items()
    ]
    return Check(item, not loud and len(known) == len(seen), "; ".join(said))


def _interleaved(outcome: Outcome, shown: Candidate) -> Check:
    item = "Measured interleaved with the original on this machine"
    runs = [run_at(shown, batch) for batch in outcome.batches]
    present = [run for run in runs if run and run["speedup"] and run["speedup"]["value"] is not None]
    if len(present) < len(runs):
        return Check(item, False, "there is not a speed-up against the original at every batch size")
    unsettled = [run for run in present if run.get("settled") is False]
    said = "; ".join(
        f"batch {run['batch']}: {quantity.measured(run['speedup'], quantity.times).both}" for run in present
    )
    if unsettled:
        at = ", ".join(str(run["batch"]) for run in unsettled)
        return Check(item, False, f"{said}; the timing did not settle at batch {at}: measure again on a quiet machine")
    cpu = outcome.result["machine"].get("cpu")
    return Check(item, True, f"{said}{f', on {cpu}' if cpu else ''}")


def _bundle(outcome: Outcome, shown: Candidate) -> Check:
    item = "Bundle sealed with digests"
    bundle = outcome.result.get("bundle")
    if bundle and bundle["files"] and outcome.best is not None:
        first, digest = next(iter(sorted(bundle["files"].items())))
        files = f"{len(bundle['files'])} file{'s' if len(bundle['files']) > 1 else ''}"
        return Check(item, True, f"{files} in {bundle['path']}/, such as {first} sha256 {digest[:12]}…")
    if outcome.best is None:
        return Check(item, False, "no bundle is made when nothing meets; paretune pack makes one of any candidate")
    return Check(item, False, "no digests are recorded in this result; opening the bundle checks every one")
