"""Recurrent layers as the single ONNX operators they are.

``torch.export`` unrolls ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` step by step, which fixes the length of the sequence
and makes a graph as long as the example was. Here they are replaced, on a copy that is about to be exported, by modules
that stand for one operator each (ONNX operator specification: LSTM, GRU, RNN); such a copy computes nothing itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each of ONNX's gates its place in torch: input, output, forget, cell from i, f, g, o; update, reset, new from
r, z, n."""
_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def as_operators(module: nn.Module) -> nn.Module:
    """``module`` with every plain recurrent layer replaced, in place; returned because it may be one itself.

    A layer that is subclassed, hooked or parametrised, or an LSTM with a projection, which ONNX does not have, stays.
    """
    made: dict[int, nn.Module] = {}

    def twin(part: nn.Module) -> nn.Module:
        return made.setdefault(id(part), Recurrent(part)) if _plain(part) else part  # type: ignore[arg-type]

    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):  # named_children leaves out the second name of a part
            if part is not None and _plain(part):
                setattr(parent, name, twin(part))
    return twin(module)


def _plain(part: nn.Module) -> bool:
    hooked = part._forward_hooks or part._forward_pre_hooks
    return type(part) in _KINDS and not hooked and not getattr(part, "proj_size", 0)


class Recurrent(nn.Module):
    """The same call as the layer it stands for: ``(input, state) → (output, state)``."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.training = False
        self.operator = layer.mode.partition("_")[0]
        # what a forward may read of its layer
        self.input_size, self.hidden_size, self.num_layers = layer.input_size, layer.hidden_size, layer.num_layers
        self.bias, self.batch_first, self.bidirectional = layer.bias, layer.batch_first, layer.bidirectional
        self.dropout, self.proj_size, self.mode = layer.dropout, layer.proj_size, layer.mode
        self.directions = 2 if layer.bidirectional else 1
        for number in range(layer.num_layers):
            suffixes = [f"l{number}", f"l{number}_reverse"][: self.directions]
            for name, ours in (("weight_ih", "input"), ("weight_hh", "state")):
                stacked = torch.stack([self._gates(getattr(layer, f"{name}_{suffix}")) for suffix in suffixes])
                self.register_buffer(f"{ours}_{number}", stacked)
            if layer.bias:
                both = [
                    torch.cat([self._gates(getattr(layer, f"{name}_{suffix}")) for name in ("bias_ih", "bias_hh")])
                    for suffix in suffixes
                ]
                self.register_buffer(f"bias_{number}", torch.stack(both))
        self.attributes: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if self.bidirectional else "forward",
        }
        if self.operator == "GRU":
            self.attributes["linear_before_reset"] = 1
        if self.operator == "RNN":
            self.attributes["activations"] = [layer.mode.partition("_")[2].capitalize()] * self.directions

    def _gates(self, value: torch.Tensor) -> torch.Tensor:
        parts = value.detach().chunk(len(_ORDER[self.operator]))
        return torch.cat([parts[place] for place in _ORDER[self.operator]])

    def flatten_parameters(self) -> None:
        """Some forwards ask for it; there is nothing to do."""

    def forward(self, input: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:
        """``input`` [length, batch, features] (batch first where the layer says so), or without batch."""
        if not isinstance(input, torch.Tensor):
            raise TypeError("packed sequences have no counterpart in ONNX: give padded ones")
        alone = input.dim() == 2
        first = self.batch_first and not alone
        steps = input.unsqueeze(1) if alone else input.transpose(0, 1) if first else input
        given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        states = tuple(state.unsqueeze(1) if alone else state for state in given)
        last: list[list[torch.Tensor]] = []
        for number in range(self.num_layers):
            begin = number * self.directions
            steps, *ends = self._layer(number, steps, [state[begin : begin + self.directions] for state in states])
            last.append(ends)
        finals = [torch.cat(parts) for parts in zip(*last, strict=True)]
        if alone:
            steps, finals = steps.squeeze(1), [final.squeeze(1) for final in finals]
        output = steps.transpose(0, 1) if first else steps
        return output, tuple(finals) if self.operator == "LSTM" else finals[0]

    def _layer(self, number: int, steps: torch.Tensor, states: list[torch.Tensor]) -> list[torch.Tensor]:
        length, batch = steps.shape[:2]
        weights = [getattr(self, f"{name}_{number}") for name in ("input", "state")]
        inputs = [steps, *weights, getattr(self, f"bias_{number}", None), *([None, *states] if states else [])]
        ends = 2 if self.operator == "LSTM" else 1
        size, directions = self.hidden_size, self.directions
        found = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            inputs,
            self.attributes,
            dtypes=[steps.dtype] * (1 + ends),
            shapes=[(length, directions, batch, size), *[(directions, batch, size)] * ends],
        )
        return [found[0].transpose(1, 2).reshape(length, batch, directions * size), *found[1:]]
