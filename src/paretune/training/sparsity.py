"""Sparsity: which weights of a module may become zero, and what has become of them, in words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split, fit_inputs
from paretune.build import history
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_count
from paretune.forms.torch_path import demand_named
from paretune.training.learner import demand_trainable

_NORMALISATIONS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.CrossMapLRN2d, nn.LocalResponseNorm,
)  # fmt: skip
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
SHOWN = 12
"""Layers whose sparsity is told one by one; of more, half as many at either end."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter that may become sparse.

    Attributes
    ----------
    name
        The first of its names in the module.
    parameter
        Two axes or more.
    input_axis
        The axis along which a product sums, channels for a convolution; None where that is not known.
    inputs
        How many inputs each sum has along that axis: fewer than the axis is long where a transposed convolution has
        groups.
    """

    name: str
    parameter: nn.Parameter
    input_axis: int | None
    inputs: int

    @property
    def zeros(self) -> int:
        """How many of its elements are zero now."""
        return int((self.parameter == 0).sum())


@dataclass(frozen=True)
class Products:
    """The multiply-accumulates of one example: of the whole module, and of each product in order, by weight."""

    total: int | None
    each: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, module: nn.Module, artifact: Artifact, train: Split | None) -> Products:
        """Counted on the first training example; nothing is known without one."""
        if train is None:
            return cls(artifact.macs, ())
        batch = next(train.head(1).batches(1))
        arrays = fit_inputs(batch.inputs, train.keys, artifact, train.name)
        names = form.keywords(artifact)
        return cls(torch_count.macs(module, names, arrays), torch_count.products(module, names, arrays))


def eligible(
    module: nn.Module, fit: Fit, *, keep: Sequence[str], spare: str, products: Products, where: str
) -> tuple[Weight, ...]:
    """The weights that may become sparse: those of convolutions, of linear, recurrent and attention layers, and any
    ``weight`` of two axes or more of a layer of the user's own. Shared ones come once.

    Biases, normalisations, embeddings and frozen parameters stay as they are.

    Parameters
    ----------
    keep
        Patterns (``fnmatch``) of module or parameter names that stay dense, beside ``fit.keep``.
    spare
        ``none``; or ``first``, ``last``, ``both``: the weight of the first product or of the last stays dense too.
    where
        The technique's name, for errors.

    Raises
    ------
    BuildError
        If the module cannot learn, there is no such weight, one holds what is not finite, or ``keep`` has a pattern
        that names nothing.
    """
    demand_trainable(module, where)
    demand_named(module, keep, f"{where}.keep")
    found = _weights(module)
    kept, idle = _kept(module, (*keep, *fit.keep))
    fit.unmatched([pattern for pattern in idle if pattern in fit.keep])
    spared = {weight.name for weight in found if any(name in kept for name in _names_of(module, weight))}
    order = [name for name, _ in products.each] or [weight.name for weight in found]
    if spare != "none" and order:
        spared |= {"first": {order[0]}, "last": {order[-1]}, "both": {order[0], order[-1]}}[spare]
    chosen = tuple(weight for weight in found if weight.name not in spared)
    if not chosen:
        why = f"all {len(found)} are spared" if found else "it has none of two axes or more that is not frozen"
        raise BuildError(
            f"the model has no weight that may be made sparse: {why}", where=where,
            do="spare fewer (spare, keep), or leave this step out",
        )  # fmt: skip
    for weight in chosen:
        if not bool(weight.parameter.isfinite().all()):
            raise BuildError(f"{weight.name} holds numbers that are not finite", where=where, do="mend the model")
    return chosen


def _weights(module: nn.Module) -> list[Weight]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]
    looked_up = {id(parameter) for part in tables for parameter in part.parameters(recurse=False)}
    found: dict[int, Weight] = {}
    for part in module.modules():
        for own, parameter in part.named_parameters(recurse=False):
            if id(parameter) in looked_up:  # also where an output layer shares it
                continue
            if parameter.requires_grad and parameter.is_floating_point() and _is_weight(part, own, parameter):
                axis, inputs = _inputs(part, parameter)
                found.setdefault(id(parameter), Weight(names[id(parameter)], parameter, axis, inputs))
    return list(found.values())


def _is_weight(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if parameter.ndim < 2 or isinstance(owner, _NORMALISATIONS):
        return False
    if isinstance(owner, nn.RNNBase):
        return name.startswith("weight_")
    return name == "weight" or (isinstance(owner, nn.MultiheadAttention) and name in _ATTENTION)


def _inputs(owner: nn.Module, parameter: nn.Parameter) -> tuple[int | None, int]:
    """(the axis of the inputs, how many of them a sum has)."""
    if isinstance(owner, _TRANSPOSED):
        return 0, owner.in_channels // owner.groups
    known = nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase | nn.MultiheadAttention
    return (1, parameter.shape[1]) if isinstance(owner, known) else (None, 0)


def _names_of(module: nn.Module, weight: Weight) -> set[str]:
    """Its names, and the paths of all modules that it lies in."""
    named = module.named_parameters(remove_duplicate=False)
    parts = [name.split(".") for name, parameter in named if parameter is weight.parameter]
    return {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}


def _kept(module: nn.Module, patterns: Sequence[str]) -> tuple[set[str], list[str]]:
    """(names of modules and parameters that a pattern names, patterns that name nothing)."""
    names = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    names += [name for name, _ in module.named_parameters(remove_duplicate=False)]
    hits = {pattern: {name for name in names if fnmatchcase(name, pattern)} for pattern in patterns}
    return set().union(*hits.values()), [pattern for pattern, hit in hits.items() if not hit]


def told(module: nn.Module, before: Artifact, weights: Sequence[Weight], products: Products) -> tuple[str, ...]:
    """What has become of the weights: zeros of all and of each, products that remain, size on disk, and speed."""
    shares = {weight.name: weight.zeros / weight.parameter.numel() for weight in weights}
    count, total = sum(weight.zeros for weight in weights), sum(weight.parameter.numel() for weight in weights)
    others = sum(parameter.numel() for parameter in module.parameters()) - total
    notes = [
        f"sparsity {count / total:.2%}: {count:,} of {total:,} weights are zero; {others:,} other parameters are dense",
        f"sparsity per layer: {_each(shares)}",
    ]
    gone = [name for name, share in shares.items() if share == 1]
    if gone:
        notes.append(f"nothing is left of {', '.join(gone)}: a lower sparsity, or scope=per_layer, keeps some of each")
    if products.total and products.each:
        left = products.total - sum(round(macs * shares.get(name, 0.0)) for name, macs in products.each)
        notes.append(
            f"multiply-accumulates of one example: {products.total:,}, of which {left:,} are with weights not zero "
            f"({products.total / max(left, 1):.1f}× fewer)"
        )
    dense, small = _packed(form.restore(before)), _packed(module)
    notes.append(
        f"compressed by DEFLATE the parameters take {small:,} bytes, {small / dense:.0%} of the {dense:,} of the dense "
        "ones; the file itself is as large as before"
    )
    notes.append("a runtime with dense kernels multiplies zeros like any other numbers: there, no speed is gained")
    return tuple(notes)


def table(name: str, weights: Sequence[Weight], products: Products) -> history.Entry:
    """A row for each weight, for the report."""
    rows: list[list[str | int | float | None]] = []
    for weight in weights:
        macs = sum(count for owner, count in products.each if owner == weight.name)
        share = weight.zeros / weight.parameter.numel()
        rows.append([weight.name, weight.parameter.numel(), weight.zeros, share, macs, round(macs * (1 - share))])
    columns = ("weight", "elements", "zeros", "sparsity", "MACs", "MACs not zero")
    return history.table(name, "sparsity per layer", columns, rows)


def _each(shares: dict[str, float]) -> str:
    """Every layer's; of many the least and the most sparse."""
    ranked = sorted(shares, key=lambda name: shares[name])
    texts = {name: f"{name.removesuffix('.weight')} {shares[name]:.0%}" for name in shares}
    if len(ranked) <= SHOWN:
        return ", ".join(texts.values())
    low, high = ranked[: SHOWN // 2], ranked[-SHOWN // 2 :]
    return f"{', '.join(texts[name] for name in low)} … {', '.join(texts[name] for name in high)}"


def _packed(module: nn.Module) -> int:
    """Bytes of all parameters and buffers that are kept, shared ones once, each compressed by DEFLATE (RFC 1951)."""
    kept = {tensor.data_ptr(): tensor for tensor in module.state_dict().values() if isinstance(tensor, torch.Tensor)}
    flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in kept.values()]
    return sum(len(zlib.compress(tensor.numpy().tobytes())) for tensor in flat)
