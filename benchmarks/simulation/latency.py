"""Latency: two programs on a machine whose true percentiles and whose true ratio are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import optimize, signal, special

from paretune.check.statistics import Estimate, log_ratios, percentile, ratio
from simulation.cell import Cell

Random = np.random.Generator
QUANTILES = (0.5, 0.9, 0.95, 0.99)
SPEEDUP = 1.3


@dataclass(frozen=True)
class Shape:
    """How often: sessions (processes opened anew), rounds in each, inferences of either side in a round."""

    sessions: int
    rounds: int
    count: int

    @property
    def text(self) -> str:
        return f"{self.sessions} × {self.rounds} × {self.count}"


SHAPES = (Shape(6, 4, 50), Shape(6, 4, 20))


@dataclass(frozen=True)
class Machine:
    """How the logarithm of a latency comes about, as a sum.

    ``noise``: normal, every inference anew, or with ``memory`` an AR(1) process of that standard deviation and
    correlation from one inference to the next. With chance ``slow[0]`` an inference takes ``slow[1]`` times as long.
    Both sides alike: ``state``, normal, every session anew; ``ramp``, rising evenly from −ramp to +ramp over a
    session's rounds; with chance ``mode[0]`` a whole round is ``mode[1]`` times as slow. ``own``: normal, every session
    anew for each side.
    """

    name: str
    noise: float
    memory: float = 0.0
    slow: tuple[float, float] = (0.0, 1.0)
    state: float = 0.0
    ramp: float = 0.0
    mode: tuple[float, float] = (0.0, 1.0)
    own: float = 0.0

    def draw(self, rng: Random, shape: Shape, speedup: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Latencies of baseline and trial in ms [sessions, rounds, count]; the trial is ``speedup`` times as fast."""
        places = (shape.sessions, shape.rounds)
        shared = rng.normal(0, self.state, (shape.sessions, 1)) + self._ramp(shape.rounds)
        shared = shared + math.log(self.mode[1]) * (rng.random(places) < self.mode[0])
        sides = []
        for faster in (1.0, speedup):
            logs = shared + rng.normal(0, self.own, (shape.sessions, 1)) - math.log(faster)
            slow = math.log(self.slow[1]) * (rng.random((*places, shape.count)) < self.slow[0])
            sides.append(np.exp(logs[..., None] + slow + self._noise(rng, shape)))
        return sides[0], sides[1]

    def quantile(self, q: float, rounds: int) -> float:
        """The true quantile of the baseline over all sessions there could be: a mixture of log-normals."""
        spread = math.sqrt(self.noise**2 + self.state**2 + self.own**2)
        parts = [
            (ramp + slow + mode, often * seldom / rounds)
            for ramp in self._ramp(rounds)
            for slow, often in self._either(self.slow)
            for mode, seldom in self._either(self.mode)
        ]
        at, weight = np.array(parts).T
        return math.exp(optimize.brentq(lambda x: weight @ special.ndtr((x - at) / spread) - q, -5, 5, xtol=1e-12))

    def _ramp(self, rounds: int) -> np.ndarray:
        return np.linspace(-self.ramp, self.ramp, rounds) if rounds > 1 else np.zeros(1)

    @staticmethod
    def _either(way: tuple[float, float]) -> list[tuple[float, float]]:
        return [(0.0, 1 - way[0]), (math.log(way[1]), way[0])]

    def _noise(self, rng: Random, shape: Shape) -> np.ndarray:
        size = (shape.sessions, shape.rounds * shape.count)
        drawn = rng.normal(0, self.noise, size)
        if self.memory:
            # stationary from the first inference on
            drawn[:, 1:] *= math.sqrt(1 - self.memory**2)
            drawn = signal.lfilter([1], [1, -self.memory], drawn, axis=1)
        return drawn.reshape(shape.sessions, shape.rounds, shape.count)


MACHINES = (
    Machine("log-normal", noise=0.1),
    Machine("bimodal", noise=0.03, slow=(0.15, 1.5)),
    Machine("autocorrelated, AR(1) 0.9", noise=0.1, memory=0.9),
    Machine("drifting within sessions", noise=0.05, ramp=0.1),
    Machine("rounds in two modes", noise=0.05, mode=(0.3, 1.2)),
    Machine("sessions differ, for both alike", noise=0.05, state=0.05),
    Machine("sessions differ, for each alone", noise=0.05, own=0.02),
)


def _blocks(side: np.ndarray) -> list[np.ndarray]:
    return list(side.reshape(-1, side.shape[-1]))


def speedup(baseline: np.ndarray, trial: np.ndarray, q: float = 0.5) -> Estimate:
    """The ratio and its interval as verdicts take them."""
    return ratio(log_ratios(_blocks(baseline), _blocks(trial), len(baseline), q))


def percentiles(runs: int, seed: int, shape: Shape) -> Iterator[Cell]:
    """p50 to p99 of one side; a run without enough samples for one states none."""
    for place, machine in enumerate(MACHINES):
        rng = np.random.default_rng([seed, 4, place, shape.sessions, shape.count])
        truths = {q: machine.quantile(q, shape.rounds) for q in QUANTILES}
        held, stated, unbounded = (dict.fromkeys(QUANTILES, 0) for _ in range(3))
        for _ in range(runs):
            side, _ = machine.draw(rng, shape)
            for q, truth in truths.items():
                found = percentile(_blocks(side), q, 0.95, shape.sessions)
                if found is not None:
                    stated[q] += 1
                    held[q] += found.low <= truth <= found.high
                    unbounded[q] += found.low == 0 or math.isinf(found.high)
        for q in QUANTILES:
            yield Cell(
                machine.name, f"p{100 * q:g}", held[q], stated[q], unstated=runs - stated[q], unbounded=unbounded[q]
            )


def ratios(runs: int, seed: int, shape: Shape) -> Iterator[Cell]:
    """The ratio of p50 and of p95, the trial 1.3 times as fast."""
    for place, machine in enumerate(MACHINES):
        rng = np.random.default_rng([seed, 5, place, shape.sessions, shape.count])
        held = {0.5: 0, 0.95: 0}
        for _ in range(runs):
            sides = machine.draw(rng, shape, SPEEDUP)
            for q in held:
                found = speedup(*sides, q)
                held[q] += found.low <= SPEEDUP <= found.high
        for q, number in held.items():
            yield Cell(machine.name, f"p{100 * q:g}", number, runs)


def against_itself(machine: Machine, runs: int, seed: int) -> int:
    """How often a program is called faster or slower than itself."""
    rng = np.random.default_rng([seed, 6, MACHINES.index(machine)])
    called = 0
    for _ in range(runs):
        found = speedup(*machine.draw(rng, SHAPES[0]))
        called += found.low > 1 or found.high < 1
    return called


def found_slower(machine: Machine, by: float, runs: int, seed: int) -> int:
    """How often a program that takes ``by`` times as long is called slower."""
    rng = np.random.default_rng([seed, 7, MACHINES.index(machine)])
    return sum(speedup(*machine.draw(rng, SHAPES[0], 1 / by)).high < 1 for _ in range(runs))
