"""Quantisation-aware training: a torch module learns to answer well with rounded weights and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.build.history import table
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.training.plan import Healing

if TYPE_CHECKING:
    from torch import nn

BITS = (2, 3, 4, 5, 6, 7, 8)
WIDE = 7
"""From so many bits on, cutting off the few largest activations costs more than finer steps bring (on ResNet-20)."""


@dataclass(frozen=True)
class TorchQat(Healing):
    """Quantisation-aware training with learned step sizes (LSQ: Esser et al. 2020) or by the straight-through estimator
    alone (Bengio et al. 2013; Jacob et al. 2018), taught by the original model.

    Weights are symmetric, with a scale for each output channel. Exported to ONNX, the quantisers become QuantizeLinear
    and DequantizeLinear with the learned scales, from which runtimes make integer kernels. Seven bits instead of eight
    keep the sums of CPUs without VNNI from overflowing; with fewer the file grows smaller, but no CPU kernel faster.
    With ``epochs=0`` nothing is trained: post-training quantisation, from the scales that calibration gives.
    """

    name: ClassVar[str] = "torch_qat"
    takes: ClassVar[frozenset[str]] = frozenset({"torch"})
    gives: ClassVar[str] = "torch"
    kind: ClassVar[str] = "precision"
    use: ClassVar[str] = "post-training INT8 loses too much, or weights must go below eight bits"
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14", "accelerate": "accelerate>=1.10"}
    cost: ClassVar[float] = 600.0

    epochs: int = knob(10, "passes over the training data; 0: calibration alone", low=0, high=10_000)
    optimizer: str = knob("sgd", "AdamW, or SGD with Nesterov momentum", choices=("adamw", "sgd"))
    learning_rate: float = knob(0.005, "the highest one, reached after the warm-up", low=1e-8, high=10.0)
    weight_decay: float = knob(
        1e-4, "on weights with two axes or more; biases and scales are left out", low=0.0, high=10.0
    )
    weight_bits: int = knob(8, "of a weight", choices=BITS)
    activation_bits: int = knob(8, "of an activation; 0: they stay in float", choices=(0, *BITS))
    per_layer_bits: tuple[str, ...] = knob(
        (), "PATTERN=BITS of weights, by the layer's path; the last that matches counts"
    )
    first_last_bits: int = knob(
        8, "of the weights of the first and the last layer, at least; 0: both stay in float", choices=(0, *BITS)
    )
    method: str = knob(
        "lsq", "scales are learned, or follow the weights and stay as calibrated", choices=("lsq", "ste")
    )
    placement: str = knob(
        "outputs", "activations rounded: inputs of layers, or also answers of convolutions and terms of sums",
        choices=("outputs", "inputs"),
    )  # fmt: skip
    symmetry: str = knob(
        "unsigned", "activations from zero up, as CPU kernels want them, or symmetric about zero (TensorRT)",
        choices=("unsigned", "symmetric"),
    )  # fmt: skip
    calibration: str = knob(
        "auto", "ranges to begin with: of the smallest squared error, all that was seen, or (auto) the latter for "
        "activations of seven and eight bits and the former for all else", choices=("auto", "mse", "minmax"),
    )  # fmt: skip
    samples: int = knob(512, "training examples that are looked at for them", low=1, high=100_000)
    freeze_batch_norm: float = knob(
        0.0, "share of the steps after which normalisations keep their statistics; 0: folded before the training",
        low=0.0, high=1.0,
    )  # fmt: skip
    keep: tuple[str, ...] = knob((), "patterns of paths of modules that stay in float")

    def apply(self, artifact: Artifact, fit: Fit) -> Artifact:
        """The quantised module; only ``fit.train`` is looked at.

        Raises
        ------
        BuildError
            If there is no training data, nothing to quantise, a pattern of ``per_layer_bits`` names no layer or one of
            ``keep`` nothing, values are not finite, or the training fails (see
            :func:`paretune.training.healing.heal`).
        """
        from paretune.forms import torch as form
        from paretune.forms.torch_path import demand_named
        from paretune.training import quantisation
        from paretune.training.healing import heal, sealed

        if fit.train is None:
            raise BuildError("needs training data to learn ranges from", where=self.name, do="give the workload train=")
        module = form.restore(artifact)
        fit.unmatched(_idle(module, fit.keep))
        demand_named(module, self.keep, f"{self.name}.keep")
        made = quantisation.quantised(
            module, artifact, fit, self.name,
            quantisation.Wish(
                lambda layers: self._bits(layers, module, fit), self.activation_bits, self.placement == "outputs",
                self.symmetry == "unsigned", self.calibration != "minmax",
                self.calibration == "mse" or (self.calibration == "auto" and self.activation_bits < WIDE),
                self.method == "lsq", self.samples,
                self.freeze_batch_norm,
            ),
        )  # fmt: skip
        notes = [f"{self.name}: {line}" for line in made.lines]
        if self.epochs:
            outcome = heal(
                module, artifact, fit, self, name=self.name, each=made.each,
                progress=lambda share, text: fit.progress(0.1 + 0.9 * share, text),
            )  # fmt: skip
            notes.append(f"{self.name}: {outcome.line}")
        else:
            notes.append(f"{self.name}: calibrated on {min(self.samples, len(fit.train))} examples, not trained")
        notes += [f"{self.name}: {line}" for line in made.finish()]
        fit.record(table(self.name, "quantised tensors", ("tensor", "bits", "integers", "zero point"), made.table))
        return sealed(module, artifact, artifact, fit, (*form.edits_of(artifact), *made.edits), *notes)

    def _bits(self, layers: tuple[str, ...], module: nn.Module, fit: Fit) -> dict[str, int]:
        """The bits of the weights of all layers that are quantised, by path; in order of the layers' calls."""
        found = dict.fromkeys(layers, self.weight_bits)
        for path in {layers[0], layers[-1]} if layers else ():
            found[path] = max(self.first_last_bits, self.weight_bits) if self.first_last_bits else 0
        for entry in self.per_layer_bits:
            pattern, _, bits = entry.rpartition("=")
            if not pattern or not bits.isdecimal() or int(bits) not in (0, *BITS):
                raise BuildError(
                    f"{entry!r} is not PATTERN=BITS with 0 or 2 to 8 bits", where=f"{self.name}.per_layer_bits",
                    do="write layer3.*=4, say",
                )  # fmt: skip
            meant = [path for path in layers if fnmatchcase(path, pattern)]
            if not meant:
                raise BuildError(
                    f"no layer that can be quantised is named {pattern!r}", where=f"{self.name}.per_layer_bits",
                    do=f"its layers are {', '.join(layers[:8])}{' …' if len(layers) > 8 else ''}",
                )  # fmt: skip
            found |= dict.fromkeys(meant, int(bits))
        kept = (*self.keep, *fit.keep)
        return {path: bits for path, bits in found.items() if bits and not _is_kept(path, kept)}

    @classmethod
    def light(cls) -> tuple[Self, ...]:
        """None: it trains."""
        return ()


def _is_kept(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names the module or one that holds it."""
    steps = path.split(".")
    paths = [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
    return any(fnmatchcase(one, pattern) for one in paths for pattern in patterns)


def _idle(module: Any, patterns: tuple[str, ...]) -> list[str]:
    """The patterns that name no module."""
    paths = [path for path, _ in module.named_modules() if path]
    return [pattern for pattern in patterns if not any(fnmatchcase(path, pattern) for path in paths)]
