"""Recurrent layers become single ONNX operators that answer as torch's do, at any batch and length."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paretune.forms import onnx as onnx_form
from paretune.forms.torch_program import quiet
from paretune.forms.torch_recurrent import Recurrent, as_operators

FREE = torch.export.Dim.DYNAMIC
SIZES = ((2, 7), (5, 3), (1, 1))
KINDS = {
    "lstm": lambda **kw: nn.LSTM(3, 4, **kw),
    "gru": lambda **kw: nn.GRU(3, 4, **kw),
    "tanh": lambda **kw: nn.RNN(3, 4, **kw),
    "relu": lambda **kw: nn.RNN(3, 4, nonlinearity="relu", **kw),
}


class Model(nn.Module):
    """A layer from a state of its own, or from none; answers everything that the layer does."""

    def __init__(self, layer: nn.RNNBase, state: bool) -> None:
        super().__init__()
        self.layer, self.state = layer, state

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.layer.flatten_parameters()
        batch = x.shape[0] if self.layer.batch_first else x.shape[1]
        both = self.layer.num_layers * (2 if self.layer.bidirectional else 1)
        ones = 0.3 * torch.ones(both, batch, self.layer.hidden_size)
        given = (ones, 2 * ones) if self.layer.mode == "LSTM" else ones
        states, last = self.layer(x, given) if self.state else self.layer(x)
        return (states, *last) if isinstance(last, tuple) else (states, last)


def exported(model: nn.Module, axes: dict[int, Any], example: torch.Tensor) -> Any:
    twin = as_operators(copy.deepcopy(model))
    with quiet(), torch.no_grad():
        program = torch.export.export(twin, (example,), dynamic_shapes=(axes,), strict=False)
        found = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
    assert found is not None
    return found.model_proto


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first", "bias", "state"),
    [(1, False, True, True, False), (2, True, False, True, True), (2, True, True, False, False)],
)
def test_every_kind_answers_as_torch_does(
    kind: str, layers: int, bidirectional: bool, batch_first: bool, bias: bool, state: bool, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    layer = KINDS[kind](num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
    model = Model(layer, state).eval()
    proto = exported(model, {0: FREE, 1: FREE}, torch.randn(2, 7, 3))
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count({"lstm": "LSTM", "gru": "GRU"}.get(kind, "RNN")) == layers
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    session = onnx_form.session(path, threads=1)
    for shape in SIZES:
        x = torch.randn(*shape, 3)
        with torch.no_grad():
            wanted = model(x)
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for ours, theirs in zip(wanted, got, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-6)


def test_a_sequence_without_batch(tmp_path: Any) -> None:
    torch.manual_seed(1)
    model = nn.LSTM(3, 4).eval()
    proto = exported(model, {0: FREE}, torch.randn(5, 3))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    session = onnx_form.session(tmp_path / "model.onnx", threads=1)
    x = torch.randn(9, 3)
    with torch.no_grad():
        states, (last, cell) = model(x)
    for ours, theirs in zip((states, last, cell), session.run(None, {"input": x.numpy()}), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-6)


def test_layers_that_are_no_plain_ones_stay() -> None:
    class Own(nn.LSTM):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.projected, self.hooked = Own(3, 4), nn.LSTM(3, 4, proj_size=2), nn.GRU(3, 4)
            self.plain = nn.GRU(3, 4)
            self.again = self.plain
            self.hooked.register_forward_hook(lambda *given: None)

    net = Net()
    assert as_operators(net) is net
    assert isinstance(net.own, Own)
    assert isinstance(net.projected, nn.LSTM)
    assert isinstance(net.hooked, nn.GRU)
    assert isinstance(net.plain, Recurrent)
    assert net.again is net.plain, "a layer used twice stays one"


def test_a_packed_sequence_is_refused() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 3)])
    with pytest.raises(TypeError, match="packed sequences have no counterpart in ONNX"):
        as_operators(nn.LSTM(3, 4))(packed)
