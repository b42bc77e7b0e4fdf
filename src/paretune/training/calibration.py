"""Calibration: scales and zero points of quantisers, from what training examples show and from the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, feeds
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_path import submodule

BATCH = 32
VALUES_OF_A_BATCH = 8192
"""So many values of every tensor are kept from each batch, evenly spaced."""
SHARES = tuple(step / 64 for step in range(64, 15, -1))
"""Of the whole range, which are tried where the squared error decides: what is cut off costs, and finer steps pay."""

Place = tuple[str, str]
"""``input`` or ``output``, and the module's path."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one tensor: its ends, and some of its values, float32 [n]."""

    low: float
    high: float
    values: torch.Tensor


@dataclass(frozen=True)
class Setting:
    """How a tensor is quantised: see :class:`paretune.forms.torch_fake_quant.FakeQuant`."""

    bits: int
    signed: bool
    zero_point: int
    scale: float


def observe(
    module: nn.Module,
    artifact: Artifact,
    data: Split,
    places: Sequence[Place],
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> dict[Place, Observed]:
    """Run the data through the module, in eval mode, and keep what was seen at each place.

    Raises
    ------
    BuildError
        If there are values that are not finite; names the module.
    """  # fmt: skip
    watched = [_Watched(place) for place in places]
    handles = [one.attach(submodule(module, one.place[1])) for one in watched]
    size = artifact.fixed_batch or BATCH
    try:
        with torch.no_grad(), form.plain_attention():
            for number, arrays in enumerate(feeds(data, artifact, size)):
                progress(number * size / len(data), "observing the training examples")
                form.call_flat(module, form.keywords(artifact), tuple(map(form.native, arrays)))
    finally:
        for handle in handles:
            handle.remove()
    return {one.place: one.seen() for one in watched}


class _Watched:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.low, self.high = 0.0, 0.0
        self.values: list[torch.Tensor] = []

    def attach(self, part: nn.Module) -> Any:
        if self.place[0] == "input":
            return part.register_forward_pre_hook(lambda part, args: self.look(args[0]))
        return part.register_forward_hook(lambda part, args, output: self.look(output))

    def look(self, x: torch.Tensor) -> None:
        flat = x.detach().float().reshape(-1)
        if not bool(flat.isfinite().all()):
            raise BuildError(
                f"its {self.place[0]} is not finite on the training data", where=self.place[1],
                do="keep the module in float by a pattern of its path",
            )  # fmt: skip
        if flat.numel():
            self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.values.append(flat[:: max(1, flat.numel() // VALUES_OF_A_BATCH)].clone())

    def seen(self) -> Observed:
        return Observed(self.low, self.high, torch.cat(self.values) if self.values else torch.zeros(1))


def setting(seen: Observed, bits: int, unsigned: bool, smallest_error: bool) -> Setting:
    """How to quantise a tensor of which this was seen.

    Parameters
    ----------
    unsigned
        From zero up, with a zero point where values are negative; else symmetric about zero.
    smallest_error
        The range with the smallest mean squared error, else the whole range.
    """
    made = [_within(seen, share, bits, unsigned) for share in (SHARES if smallest_error else SHARES[:1])]
    return min(made, key=lambda one: _error(one, seen.values))


def _within(seen: Observed, share: float, bits: int, unsigned: bool) -> Setting:
    low, high = seen.low * share, seen.high * share
    if not unsigned:
        return Setting(bits, True, 0, max(-low, high) / (2 ** (bits - 1) - 1) or 1.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    return Setting(bits, False, round(-low / scale), scale)


def _error(one: Setting, values: torch.Tensor) -> float:
    low, high = (-(2 ** (one.bits - 1)), 2 ** (one.bits - 1) - 1) if one.signed else (0, 2**one.bits - 1)
    steps = torch.clamp(torch.round(values / one.scale), low - one.zero_point, high - one.zero_point)
    return float((steps * one.scale - values).square().double().mean())


def weight_scales(weight: torch.Tensor, highest: int, per_channel: bool, shares: Iterable[float]) -> torch.Tensor:
    """Scales of a weight's symmetric quantiser, float32 [channels] or without axes: of all ``shares`` of the largest
    magnitude the one with the smallest squared error; channels lie along the first axis, ``highest`` is the highest
    integer."""
    rows = weight.detach().float().reshape(len(weight) if per_channel else 1, -1)
    largest = rows.abs().amax(dim=1)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best, least = largest / highest, torch.full_like(largest, torch.inf)
    for share in shares:
        scale = largest * share / highest
        steps = torch.clamp(torch.round(rows / scale[:, None]), -highest, highest)
        error = (steps * scale[:, None] - rows).square().sum(dim=1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best if per_channel else best[0]
