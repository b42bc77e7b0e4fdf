"""Quantisation: quantisers put into a module, with the scales that calibration gives, and kept in order in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paretune.ask.artifact import Artifact
from paretune.ask.data import feeds
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_flow, torch_placement
from paretune.forms.torch_edits import Edit
from paretune.forms.torch_fake_quant import QUANTISED, FakeQuant, Quantise, quantisers
from paretune.forms.torch_fold import FoldBatchNorm, channel_axis
from paretune.training.calibration import SHARES, Observed, Setting, observe, setting, weight_scales

LOWEST = 2.0**-10
"""Share of its first value that a scale may fall to: far below all is cut off, and no gradient leads back."""
SHOWN = 12
"""So many names at most in a note."""


@dataclass(frozen=True)
class Wish:
    """What is to be quantised, and how.

    Attributes
    ----------
    weights
        Of the paths of all layers that can be quantised, in the order of their calls, makes the bits of the weights of
        those that shall be.
    activations
        Bits of the activations; 0: they stay in float.
    outputs
        Whether answers of convolutions and terms of sums are rounded too, beside inputs.
    unsigned
        As for :func:`paretune.training.calibration.setting`.
    close_weights, close_activations
        Whether their first ranges are those of the smallest squared error, else all that there is.
    learned
        Whether scales are trained; else those of weights follow the weights, and the others stay.
    samples
        How many training examples are observed.
    freeze
        Share of a training's steps after which batch normalisations keep their statistics. 0: those that can be are
        folded before it, else after it (but behind a transposed convolution, always before it).
    """

    weights: Callable[[tuple[str, ...]], Mapping[str, int]]
    activations: int
    outputs: bool
    unsigned: bool
    close_weights: bool
    close_activations: bool
    learned: bool
    samples: int
    freeze: float


@dataclass(frozen=True)
class Quantised:
    """What was done: the edits, lines for a person, and of every quantised tensor where it is, bits, kind of integers
    and zero point. ``each`` must be called after every step of a training, and ``finish`` at the end, also where there
    was none: it tells in lines what went wrong."""

    edits: tuple[Edit, ...]
    each: Callable[[int, int], None]
    finish: Callable[[], list[str]]
    lines: tuple[str, ...]
    table: tuple[tuple[str, int, str, int], ...]


def quantised(module: nn.Module, artifact: Artifact, fit: Fit, name: str, wish: Wish) -> Quantised:
    """Fold the batch normalisations of ``module`` and put quantisers into it, in place.

    Raises
    ------
    BuildError
        If there is nothing to quantise, the module is quantised already, or values are not finite.
    DataError
        If the training data does not fit the model's inputs.
    """
    assert fit.train is not None
    if form.is_program(module):
        raise BuildError(
            "the model is an exported program, which has no modules to quantise", where=name,
            do="give the nn.Module that it was exported from",
        )  # fmt: skip
    if next(quantisers(module), None) is not None:
        raise BuildError("the model is quantised already", where=name, do="leave this step out")
    examples = fit.train.take(wish.samples, fit.seed)
    fit.progress(0.0, "looking for what to quantise")
    fold = FoldBatchNorm(torch_placement.foldable(module, _flow(module, artifact, fit)))
    # one scale for all channels cannot follow a fold behind it, which scales each by its own factor
    at_once = {path for path in fold.pairs if not wish.freeze or channel_axis(module.get_submodule(path))}
    FoldBatchNorm({path: fold.pairs[path] for path in at_once}).apply(module)
    later = FoldBatchNorm({path: norm for path, norm in fold.pairs.items() if path not in at_once})
    flow = _flow(module, artifact, fit)
    layers = torch_placement.quantisable(module, flow)
    bits = wish.weights(layers)
    if not bits:
        why = "every one of its layers is kept in float" if layers else "it calls no convolution or linear layer"
        do = "keep fewer in float" if layers else "leave this step out, or use onnx_int8_dynamic behind torch_to_onnx"
        raise BuildError(f"there is nothing to quantise: {why}", where=name, do=do)
    placement = torch_placement.place(module, flow, list(bits), wish.outputs)
    places = [("input", path) for path in placement.inputs] + [("output", path) for path in placement.outputs]
    seen: dict[tuple[str, str], Observed] = {}
    if wish.activations:
        seen = observe(module, artifact, examples, places, lambda share, text: fit.progress(0.1 * share, text))
    settings = {
        place: setting(one, wish.activations, wish.unsigned, wish.close_activations) for place, one in seen.items()
    }
    edit = Quantise(_described(module, bits, settings, wish.learned))
    edit.apply(module)
    shares = _set_scales(module, bits, settings, wish.close_weights)
    floors = {path: LOWEST * quantiser.scale.detach() for path, quantiser in quantisers(module)}
    edits: tuple[Edit, ...] = (fold, edit) if fold.pairs else (edit,)
    lines = [_line(bits, settings, fold), *_left(module, placement, bool(wish.activations and wish.outputs))]

    each = _each(module, shares, floors, wish)

    def finish() -> list[str]:
        each(1, 1)  # scales that follow the weights follow a mean of them too
        fallen = _fallen(module, floors)  # folding changes scales, and so what they are to be compared with
        later.apply(module)
        return fallen

    return Quantised(edits, each, finish, tuple(lines), _table(module))


def _flow(module: nn.Module, artifact: Artifact, fit: Fit) -> torch_flow.Flow:
    assert fit.train is not None
    size = artifact.fixed_batch or 2
    arrays = next(feeds(fit.train.head(size), artifact, size))
    return torch_flow.trace(module, form.keywords(artifact), tuple(map(form.native, arrays)))


def _described(
    module: nn.Module, bits: Mapping[str, int], settings: Mapping[tuple[str, str], Setting], learned: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """What :class:`Quantise` takes."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path, count in bits.items():
        channels = not isinstance(module.get_submodule(path), nn.ConvTranspose1d | nn.ConvTranspose2d)
        weight = {"bits": count, "signed": True, "channels": channels, "narrow": True, "learned": learned}
        found.setdefault(path, {})["weight"] = weight
    for (role, path), one in settings.items():
        found.setdefault(path, {})[role] = {
            "bits": one.bits, "signed": one.signed, "zero_point": one.zero_point, "learned": learned,
        }  # fmt: skip
    return found


def _set_scales(
    module: nn.Module, bits: Mapping[str, int], settings: Mapping[tuple[str, str], Setting], smallest_error: bool
) -> dict[str, torch.Tensor]:
    """Give every quantiser its first scale; for weights what share of their largest magnitudes they cover, by path."""
    shares = {}
    with torch.no_grad():
        for (role, path), one in settings.items():
            _quantiser(module, path, role).scale.fill_(one.scale)
        for path in bits:
            quantiser, weight = _quantiser(module, path, "weight"), _weight(module, path)
            highest, per_channel = quantiser.ends[1], bool(quantiser.scale.ndim)
            tried = SHARES if smallest_error else SHARES[:1]
            scale = weight_scales(weight, highest, per_channel, tried)
            shares[path] = scale / weight_scales(weight, highest, per_channel, SHARES[:1])
            quantiser.scale.copy_(scale)
    return shares


def _each(
    module: nn.Module, shares: Mapping[str, torch.Tensor], floors: Mapping[str, torch.Tensor], wish: Wish
) -> Callable[[int, int], None]:
    """Scales stay above their floors, or those of weights follow the weights; normalisations freeze when it is time."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    follow = {} if wish.learned else shares

    def each(done: int, total: int) -> None:
        for norm in norms if done >= wish.freeze * total else ():
            norm.eval()
        with torch.no_grad():
            for path, quantiser in quantisers(module):
                quantiser.scale.clamp_(min=floors[path].to(quantiser.scale.device))
            for path, share in follow.items():
                quantiser = _quantiser(module, path, "weight")
                per_channel = bool(quantiser.scale.ndim)
                whole = weight_scales(_weight(module, path), quantiser.ends[1], per_channel, SHARES[:1])
                quantiser.scale.copy_(whole * share.to(whole.device))

    return each


def _fallen(module: nn.Module, floors: Mapping[str, torch.Tensor]) -> list[str]:
    """A line where scales fell to their floors, if any did."""
    found = [
        path.removesuffix("_quantiser")
        for path, quantiser in quantisers(module)
        if quantiser.scale.requires_grad and bool((quantiser.scale.detach().cpu() <= floors[path]).any())
    ]
    if not found:
        return []
    some = f"{', '.join(found[:SHOWN])}{' …' if len(found) > SHOWN else ''}"
    return [f"scales fell to a thousandth of their first value (lower learning_rate, or keep them in float): {some}"]


def _quantiser(module: nn.Module, path: str, role: str) -> FakeQuant:
    found = module.get_submodule(f"{path}.{role}_quantiser" if path else f"{role}_quantiser")
    assert isinstance(found, FakeQuant)
    return found


def _weight(module: nn.Module, path: str) -> torch.Tensor:
    layer = module.get_submodule(path)
    assert isinstance(layer, tuple(QUANTISED.values()))
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _line(bits: Mapping[str, int], settings: Mapping[tuple[str, str], Setting], fold: FoldBatchNorm) -> str:
    counts = {count: list(bits.values()).count(count) for count in sorted(set(bits.values()), reverse=True)}
    weights = ", ".join(f"{many} layers with weights of {count} bits" for count, many in counts.items())
    shifted = sum(one.zero_point != 0 for one in settings.values())
    activations = "activations in float"
    if settings:
        (each,) = {one.bits for one in settings.values()}
        activations = f"{len(settings)} activations of {each} bits ({shifted} with a zero point)"
    return f"{weights}, {activations}, {len(fold.pairs)} batch normalisations folded"


def _table(module: nn.Module) -> tuple[tuple[str, int, str, int], ...]:
    return tuple(
        (
            path.removesuffix("_quantiser"), quantiser.bits,
            "signed" if quantiser.signed else "unsigned", quantiser.zero_point,
        )
        for path, quantiser in quantisers(module)
    )  # fmt: skip


def _left(module: nn.Module, placement: torch_placement.Placement, sums: bool) -> list[str]:
    """What stays in float, a line each."""
    rounded = tuple(QUANTISED.values())
    owners = [(path, part) for path, part in module.named_modules() if not isinstance(part, rounded)]
    kept = [
        f"{path}.{key}".lstrip(".")
        for path, part in owners
        for key, parameter in part._parameters.items()
        if parameter is not None and parameter.ndim > 1
    ]
    lines = []
    if kept:
        lines.append(f"weights left in float: {', '.join(kept[:SHOWN])}{' …' if len(kept) > SHOWN else ''}")
    if sums and placement.unreached:
        where = ", ".join(path or "the model" for path in placement.unreached)
        lines.append(f"sums left in float, whose terms pass no module's border: in {where}")
    return lines
