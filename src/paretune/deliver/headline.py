"""The verdict in plain words: what a person repeats to somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretune.deliver import quantity
from paretune.deliver.outcome import Candidate, Judged, Outcome, first_drop, run_at


@dataclass(frozen=True)
class Headline:
    """``outcome`` is ``meets``, ``keep`` (the original is the best) or ``none``; ``lines`` follow the title."""

    outcome: str
    title: str
    lines: tuple[str, ...]


def headline(outcome: Outcome) -> Headline:
    """What came out, without a number that the statistics do not support."""
    best = outcome.best
    name = outcome.result["title"]
    if best is None:
        title = f"Nothing tried meets the budget for {name}"
        if outcome.shown is not None and not outcome.binding(outcome.shown):
            title = f"Nothing tried is a proven gain over {name}"
        return Headline("none", title, tuple(_why_none(outcome)))
    if best["role"] == "baseline":
        line = "Of what was tried, nothing is both within the budget and better than the original."
        return Headline("keep", f"Keep {name} as it is", (line, *_ending(outcome)))
    title = f"{name} runs {_speeds(outcome, best, detailed=False)}{_loss(best, detailed=False)}"
    return Headline("meets", title, (_best_line(outcome, best), *_other_bests(outcome), *_ending(outcome)))


def _best_line(outcome: Outcome, best: Candidate) -> str:
    speeds = _speeds(outcome, best, detailed=True)
    basis = {"heldout": "on all held-out data", "ranking": "on the ranking slice only"}.get(best["data"] or "", "")
    size = outcome.result["workload"]["heldout_size"]
    if best["data"] == "heldout" and size:
        basis = f"on {quantity.whole(size)} held-out examples"
    loss = _loss(best, detailed=True)
    verb = "confirmed" if best["data"] == "heldout" and best["verdict"] == "meets" else "measured"
    measured_on = f", {verb} {basis}" if loss and basis else ""
    budget = outcome.result["budget"]["text"]
    verdict = {"meets": "meets", "breaks": "breaks", "undecided": "is undecided on"}.get(
        best["verdict"], "was not tested on"
    )
    meets = f" It {verdict} the budget {budget}." if budget else " No limit was set."
    return (
        f"{best['title']} is {speeds} than the original{loss}{measured_on}.{meets} "
        f"Intervals are at {outcome.confidence} confidence."
    )


def _other_bests(outcome: Outcome) -> list[str]:
    best = outcome.best
    lines = []
    for batch, name in sorted(outcome.result["best_by_batch"].items(), key=lambda item: int(item[0])):
        if name is None or best is None or name == best["id"]:
            continue
        other = outcome.by_id[name]
        speed = _speed(other, int(batch), detailed=True)
        lines.append(f"For batch {batch} alone, {other['title']} is the best choice{f': {speed}' if speed else ''}.")
    return lines


def _why_none(outcome: Outcome) -> list[str]:
    lines = [outcome.result["why_none"]] if outcome.result["why_none"] else []
    nearest = outcome.shown
    if nearest is None:
        return [*lines, *_ending(outcome)]
    speed = _speeds(outcome, nearest, detailed=True)
    lines.append(f"The nearest candidate is {nearest['title']}{f': {speed} than the original' if speed else ''}.")
    told = outcome.result["why_none"] or ""
    lines += [_binds(one) for one in outcome.binding(nearest) if one.finding["limit"] not in told]
    return [*lines, *_ending(outcome)]


def _binds(judged: Judged) -> str:
    finding, write = judged.finding, quantity.in_unit(judged.unit)
    name = finding["limit"]
    if finding["value"] is None or judged.gap is None:
        return f"{name}: {finding['text']}."
    reached = f"{write(finding['value'])}{_span(finding, write)}"
    share = "" if judged.relative is None else f" ({abs(100 * judged.relative):.0f}{quantity.SPACE}%)"
    if finding["verdict"] == "breaks":
        return f"{name} binds: it reaches {reached}, {write(abs(judged.gap))}{share} past the limit."
    far = judged.certain_gap
    end = f" the interval reaches {write(far)} past the limit." if far is not None and far > 0 else ""
    return f"{name} is undecided: it reaches {reached};{end or ' more measurements would decide.'}"


def _ending(outcome: Outcome) -> list[str]:
    result = outcome.result
    limit = result.get("time_limit_s")
    if result.get("stopped") == "time":
        allowed = f" of {quantity.seconds(limit)}" if limit else ""
        return [f"The time limit{allowed} ended the search before everything was tried; more time may find better."]
    if result.get("stopped") == "interrupted":
        return ["The run was interrupted: this is what was found until then. --resume continues it."]
    return []


def _speeds(outcome: Outcome, candidate: Candidate, detailed: bool) -> str:
    """At the objective's batch size, or at the smallest and the largest."""
    asked = outcome.result["objective"]["batch"]
    batches = [asked] if asked in outcome.batches else list(dict.fromkeys((outcome.batches[0], outcome.batches[-1])))
    said = [_speed(candidate, batch, detailed) for batch in batches]
    return " and ".join(one for one in said if one) or ("" if detailed else "within its budget")


def _speed(candidate: Candidate, batch: int, detailed: bool) -> str:
    run = run_at(candidate, batch)
    speedup = run and run["speedup"]
    if not speedup or speedup["value"] is None:
        return ""
    value = speedup["value"]
    at = f"at batch {batch}"
    interval = _span(speedup, quantity.times) if detailed else ""
    low, high = speedup["low"], speedup["high"]
    if low is not None and high is not None and low <= 1 <= high:
        return f"no faster or slower {at}, as far as shown{interval}"
    if value < 1:
        return f"{quantity.times(1 / value)} slower {at}" + (f" (speed-up{interval})" if interval else "")
    return f"{quantity.times(value) if detailed or value < 10 else f'{value:.0f}×'} faster {at}{interval}"


def _loss(candidate: Candidate, detailed: bool) -> str:
    found = first_drop(candidate)
    if found is None:
        return ""
    name, drop = found
    write = quantity.in_unit(drop["unit"])
    said = write(abs(drop["value"]))
    interval = _span(drop, write) if detailed else ""
    if drop["value"] < 0 <= (drop["high"] or 0.0) and said != write(0):
        told = f" (drop {write(drop['value'])}{interval})" if detailed else ""
        return f", with no change of {name} shown{told}"
    if said == write(0):
        return f", with no change of {name} to two decimals{interval and f' (drop{interval})'}"
    verb, interval = ("loses", interval) if drop["value"] > 0 else ("gains", interval and f" (drop{interval})")
    joint = f", and {verb}" if detailed else f", {verb.removesuffix('s').removesuffix('e')}ing"
    return f"{joint} {said} of {name}{interval}"


def _span(interval: Mapping[str, Any], write: Any) -> str:
    text = quantity.span(interval, write)
    return f" ({text})" if text else ""
