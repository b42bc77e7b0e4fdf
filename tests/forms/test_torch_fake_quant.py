"""Fake quantisation: rounding as ONNX does it, gradients as LSQ's paper has them, quantisers that are edits."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from paretune.errors import ArtifactError
from paretune.forms import torch_count, torch_edits
from paretune.forms.torch_fake_quant import FakeQuant, Quantise, unrounded
from paretune.forms.torch_fold import FoldBatchNorm
from paretune.forms.torch_qdq import Pair

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
SCALES = st.integers(1, 2**24 - 1).flatmap(lambda digits: st.integers(-40, -14).map(lambda power: digits * 2.0**power))


@cache
def pair_of_onnx(signed: bool) -> onnxruntime.InferenceSession:
    """Clip, QuantizeLinear and DequantizeLinear alone, run by onnxruntime as they stand."""
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("x", ["n"]), ("low", []), ("high", []), ("scale", []))]  # fmt: skip
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["held"]),
        helper.make_node("QuantizeLinear", ["held", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(nodes, "pair", [*floats, helper.make_tensor_value_info("zero", kind, [])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def quantiser(bits: int, signed: bool, scale: Any, zero_point: int = 0, **more: Any) -> FakeQuant:
    scale = torch.as_tensor(scale, dtype=torch.float32)
    made = FakeQuant(bits, signed, zero_point, channels=len(scale) if scale.ndim else 0, **more)
    with torch.no_grad():
        made.scale.copy_(scale)
    return made


@SETTINGS
@given(st.integers(2, 8), st.booleans(), SCALES, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_it_rounds_as_onnx_does_bit_for_bit(bits, signed, scale, place, seed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    zero = round(low + place * (high - low))
    made = quantiser(bits, signed, scale, zero)
    rng = np.random.default_rng(seed)
    steps = rng.uniform(low - zero - 3, high - zero + 3, 200)
    halves = np.floor(steps[:100]) + 0.5  # where rounding is decided by its rule
    x = (np.concatenate([steps, halves]) * scale).astype(np.float32)
    ends = Pair(made).ends or (-math.inf, math.inf)
    feed = {"x": x, "scale": np.array(scale, np.float32), "zero": np.array(zero, np.int8 if signed else np.uint8)}
    feed |= {"low": np.array(ends[0], np.float32), "high": np.array(ends[1], np.float32)}
    wanted = pair_of_onnx(signed).run(None, feed)[0]
    for found in (made(torch.from_numpy(x)), made.eval()(torch.from_numpy(x).requires_grad_())):
        assert np.array_equal(found.detach().numpy(), wanted)


@SETTINGS
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_integers_stand_for_the_rounded_weight_and_rounding_again_changes_nothing(bits, seed):
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((4, 3, 2)).astype(np.float32))
    made = quantiser(bits, True, rng.uniform(0.01, 1, 4), narrow=True)
    integers, rounded = made.integers(weight), made(weight).detach()
    assert integers.dtype == torch.int8
    assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
    assert torch.equal(integers.float() * made.scale.detach()[:, None, None], rounded)
    assert torch.equal(made(rounded).detach(), rounded)


def test_gradients_of_lsq_by_hand():
    # equation 3 of the paper, −4 … 3, scale 0.5: v/s = −5, −4, −1.2, 0.2, 0.7, 3, 9
    made = quantiser(3, True, 0.5)
    x = torch.tensor([[-2.5, -2.0, -0.6, 0.1, 0.35, 1.5, 4.5]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 5.0, 7.0, 11.0, 13.0]])
    made(x).backward(upstream)
    slopes = [-4, -4, -1 + 1.2, 0 - 0.2, 1 - 0.7, 3, 3]
    factor = 1 / math.sqrt(7 * 4)  # seven elements of the one example, and the highest of −4 … 3 by magnitude
    wanted = factor * sum(slope * weight for slope, weight in zip(slopes, upstream[0].tolist(), strict=True))
    assert float(made.scale.grad) == pytest.approx(wanted, rel=1e-5)
    assert x.grad.tolist() == [[0, 0, 3, 5, 7, 0, 0]]


def test_each_channel_has_a_gradient_of_its_own():
    made = quantiser(4, True, [0.5, 1.0], narrow=True)
    weight = torch.tensor([[0.6, -0.3, 9.0], [0.4, 2.6, -7.5]], requires_grad=True)
    made(weight).sum().backward()
    factor = 1 / math.sqrt(3 * 7)
    wanted = [factor * ((1 - 1.2) + (-1 + 0.6) + 7), factor * ((0 - 0.4) + (3 - 2.6) - 7)]
    np.testing.assert_allclose(made.scale.grad.numpy(), wanted, rtol=1e-5)
    assert weight.grad.tolist() == [[1, 1, 0], [1, 1, 0]]


def test_the_gradient_of_an_activation_counts_the_elements_of_one_example():
    found = []
    for examples in (1, 4):
        made = quantiser(8, False, 0.1)
        made(torch.full((examples, 5), 0.33)).sum().backward()
        found.append(float(made.scale.grad) / examples)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] == pytest.approx(5 * (3 - 3.3) / math.sqrt(5 * 255), rel=1e-4)


def test_a_zero_point_moves_the_ends():
    made = quantiser(3, False, 1.0, zero_point=2)
    x = torch.tensor([[-9.0, -2.4, 0.4, 9.0]], requires_grad=True)
    answer = made(x)
    assert answer.tolist() == [[-2, -2, 0, 5]]
    answer.sum().backward()
    assert x.grad.tolist() == [[0, 0, 1, 0]]
    assert float(made.scale.grad) == pytest.approx((-2 - 2 - 0.4 + 5) / math.sqrt(4 * 5), rel=1e-5)


def test_straight_through_leaves_the_scale_alone():
    made = quantiser(3, True, 0.5, learned=False)
    x = torch.tensor([[-2.5, -0.6, 0.1, 4.5]], requires_grad=True)
    made(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 0]]
    assert made.scale.grad is None
    weights = torch.tensor([[-0.3, 0.1, 0.7]], requires_grad=True)
    following = quantiser(8, True, 0.7 / 127, narrow=True, learned=False)
    following(weights).sum().backward()
    assert weights.grad.tolist() == [[1, 1, 1]], "the largest weight, which the scale follows, goes on learning"


def test_half_precision_is_rounded_in_single_precision():
    made = quantiser(8, False, 0.1)
    x = torch.linspace(0, 20, 97).bfloat16()
    assert torch.equal(made(x), made(x.float()).bfloat16())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2)
        self.tail = nn.Sequential(nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.tail(self.up(self.norm(self.conv(x)))))


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Net().eval()
        for tensor in (made.norm.weight, made.norm.bias, made.norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(made.norm.running_var, 0.5, 2)
    return made


def images() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


WEIGHT = {"bits": 8, "signed": True, "channels": True, "narrow": True}
ONE = {"bits": 8, "signed": False, "zero_point": 128}


def test_a_quantised_module_keeps_its_names_and_classes_and_comes_back_from_its_file(tmp_path: Path):
    module, twin = net(), net()
    before = set(module.state_dict())
    x = images()
    plain = module(x)
    edit = Quantise(
        {"conv": {"weight": WEIGHT, "input": ONE}, "up": {"weight": {**WEIGHT, "channels": False}, "output": ONE}}
    )
    edit.apply(module)
    with torch.no_grad():
        module.conv.input_quantiser.scale.fill_(0.03)
        module.up.output_quantiser.scale.fill_(0.05)
        module.conv.weight_quantiser.scale.fill_(0.004)
        module.up.weight_quantiser.scale.fill_(0.004)
    added = set(module.state_dict()) - before
    assert before < set(module.state_dict())
    assert added == {
        "conv.weight_quantiser.scale", "conv.input_quantiser.scale", "up.weight_quantiser.scale",
        "up.output_quantiser.scale",
    }  # fmt: skip
    assert isinstance(module.conv, nn.Conv2d)
    assert isinstance(module.up, nn.ConvTranspose2d)
    assert module.conv.weight_quantiser.scale.shape == (4,)
    assert module.up.weight_quantiser.scale.shape == ()
    error = float((module(x) - plain).detach().abs().max())
    assert 0 < error < 0.1
    torch_edits.write([edit], tmp_path / "edits.json")
    for one in torch_edits.read(tmp_path / "edits.json"):
        one.apply(twin)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))
    with unrounded(module) as any_is:
        assert any_is
        assert not torch.equal(module(x), twin(x))  # the weights are rounded still
    assert torch.equal(module(x), twin(x))


def test_scales_are_no_parameters_of_the_model_and_work_is_counted_as_before():
    module = net()
    counted = torch_count.parameters(module), torch_count.macs(module, None, (images().numpy(),))
    Quantise({"conv": {"weight": WEIGHT, "input": ONE}, "head": {"weight": WEIGHT, "output": ONE}}).apply(module)
    assert (torch_count.parameters(module), torch_count.macs(module, None, (images().numpy(),))) == counted


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({"tail": {"output": ONE}}, "tail can have no quantiser of its output"),
        ({"norm": {"weight": WEIGHT}}, "norm can have no quantiser of its weight"),
        ({"conv": {"bias": ONE}}, "conv can have no quantiser of its bias"),
        ({"nowhere": {"input": ONE}}, "no module 'nowhere'"),
        ({"conv": {"input": {"bits": 8, "signs": 1}}}, "conv has no such quantiser"),
    ],
)
def test_what_cannot_be_quantised_is_told_with_its_path(places, told):
    with pytest.raises(ArtifactError, match=told):
        Quantise(places).apply(net())


def test_a_module_is_not_quantised_twice():
    module = net()
    Quantise({"conv": {"input": ONE}}).apply(module)
    with pytest.raises(ArtifactError, match="conv can have no quantiser of its input"):
        Quantise({"conv": {"input": ONE}}).apply(module)


def test_folding_keeps_the_answers_and_the_integers(tmp_path: Path):
    module, quantised = net(), net()
    x = images()
    plain = module(x)
    Quantise({"conv": {"weight": WEIGHT}}).apply(quantised)
    with torch.no_grad():
        quantised.conv.weight_quantiser.scale.copy_(torch.tensor([0.001, 0.002, 0.003, 0.004]))
    before, rounded = quantised.conv.weight_quantiser.integers(quantised.conv.weight), quantised(x)
    edit = FoldBatchNorm({"conv": "norm"})
    for one in (module, quantised):
        edit.apply(one)
        assert type(one.norm) is nn.Identity
        assert one.conv.bias is not None
    torch.testing.assert_close(module(x), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantised(x), rounded, rtol=1e-4, atol=1e-5)
    signs = torch.sign(net().norm.weight)[:, None, None, None].to(torch.int8)
    assert torch.equal(quantised.conv.weight_quantiser.integers(quantised.conv.weight), before * signs)
    torch_edits.write([edit], tmp_path / "edits.json")
    assert torch_edits.read(tmp_path / "edits.json") == (edit,)
    assert json.loads((tmp_path / "edits.json").read_text())[0]["pairs"] == {"conv": "norm"}
    with pytest.raises(ArtifactError, match="norm cannot be folded into conv"):
        edit.apply(module)
