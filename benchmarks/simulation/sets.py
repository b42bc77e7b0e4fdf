"""Scores of whole sets: F1, AUC and RMSE of models whose true difference is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special

from paretune.check.jackknife import Metric, leave_out, whole_drop
from paretune.check.statistics import Estimate
from simulation.cell import Cell


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """F1 of yes-or-no answers; 0 where there is neither a yes nor a true one."""
    hits = float((outputs & labels).sum())
    total = float(outputs.sum() + labels.sum())
    return 2 * hits / total if total else 0.0


def auc(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann & Whitney); NaN where a class is missing."""
    yes = int(labels.sum())
    no = len(labels) - yes
    if not yes or not no:
        return float("nan")
    # no two outputs are the same here, so that places are ranks
    places = np.flatnonzero(labels[np.argsort(outputs)])
    return float((places.sum() - yes * (yes - 1) / 2) / (yes * no))


COUNTS = (100, 500, 1000)
PARTS = 100
"""Fewer than in use, for the simulation's sake: sets of 500 and 1,000 are left out in parts of 5 and 10."""


def rmse(outputs: np.ndarray, labels: np.ndarray) -> float:
    return -float(np.sqrt(np.mean((outputs - labels) ** 2)))


def _drop(metric: Metric, base: np.ndarray, trial: np.ndarray, labels: np.ndarray, unit: str = "pp") -> Estimate:
    return whole_drop(*(leave_out(metric, side, labels, "simulated", parts=PARTS) for side in (base, trial)), unit)


def f1_cells(runs: int, seed: int, counts: tuple[int, ...] = COUNTS) -> Iterator[Cell]:
    """A share of yes-or-no answers flips, anywhere or from right to wrong alone; 30 % are true, or 5 %."""
    kinds = [(rate, 0.3, "anywhere") for rate in (0.01, 0.05, 0.2)]
    kinds += [(0.05, 0.3, "of right answers"), (0.05, 0.05, "anywhere, 5 % true")]
    for rate, share, name in kinds:
        of_wrong = 0.0 if name == "of right answers" else rate
        truth = 100 * (_true_f1(0.1, share) - _true_f1(0.1 * (1 - of_wrong) + 0.9 * rate, share))
        for count in counts:
            rng = np.random.default_rng([seed, 9, int(1e4 * rate), int(1e4 * of_wrong), int(100 * share), count])
            held = 0
            for _ in range(runs):
                labels, wrong = rng.random(count) < share, rng.random(count) < 0.1
                flipped = rng.random(count) < np.where(wrong, of_wrong, rate)
                found = _drop(f1, labels ^ wrong, labels ^ wrong ^ flipped, labels)
                held += found.low <= truth <= found.high
            yield Cell(f"F1, {100 * rate:g} % flip, {name}", f"n = {count:,}", held, runs)


def _true_f1(wrong: float, share: float) -> float:
    hits = share * (1 - wrong)
    return 2 * hits / (2 * hits + share * wrong + (1 - share) * wrong)


def rmse_cells(runs: int, seed: int, counts: tuple[int, ...] = COUNTS) -> Iterator[Cell]:
    """Normal errors, to which the trial adds noise; the drop in per cent of the original's RMSE."""
    for name, share, noise in (("all a little", 1.0, 0.2), ("5 % a lot", 0.05, 2.0)):
        truth = 100 * (np.sqrt(1 + share * noise**2) - 1)
        for count in counts:
            rng = np.random.default_rng([seed, 11, int(100 * share), count])
            held = 0
            for _ in range(runs):
                base = rng.normal(0, 1, count)
                trial = base + np.where(rng.random(count) < share, rng.normal(0, noise, count), 0)
                found = _drop(rmse, base, trial, np.zeros(count), "%")
                held += found.low <= truth <= found.high
            yield Cell(f"RMSE (in %), noise on {name}", f"n = {count:,}", held, runs)


def auc_cells(runs: int, seed: int, counts: tuple[int, ...] = COUNTS) -> Iterator[Cell]:
    """Normal scores two apart, to which the trial adds noise, to all or to a few."""
    for name, share, noise in (("all a little", 1.0, 0.2), ("5 % a lot", 0.05, 2.0)):
        truth = 100 * (special.ndtr(2 / 2**0.5) - _true_auc(share, noise))
        for count in counts:
            rng = np.random.default_rng([seed, 10, int(100 * share), count])
            held = 0
            for _ in range(runs):
                labels = rng.random(count) < 0.5
                base = 2 * labels + rng.normal(0, 1, count)
                trial = base + np.where(rng.random(count) < share, rng.normal(0, noise, count), 0)
                found = _drop(auc, base, trial, labels)
                held += found.low <= truth <= found.high
            yield Cell(f"AUC, noise on {name}", f"n = {count:,}", held, runs)


def _true_auc(share: float, noise: float) -> float:
    """Of a yes and a no, none, one or both are noisy."""
    return sum(
        special.comb(2, noisy)
        * share**noisy
        * (1 - share) ** (2 - noisy)
        * special.ndtr(2 / (2 + noisy * noise**2) ** 0.5)
        for noisy in range(3)
    )


CELLS = (f1_cells, auc_cells, rmse_cells)
