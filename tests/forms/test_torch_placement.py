"""Where quantisers stand: every tensor once, the sums of residual blocks too, and no line of a forward is changed."""

from __future__ import annotations

import quantised_nets as nets
import torch
from torch import nn

from paretune.forms.torch_flow import trace
from paretune.forms.torch_fold import FoldBatchNorm
from paretune.forms.torch_placement import foldable, place, quantisable


def images(size: int = 12) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)),)


def folded(module: nn.Module):
    FoldBatchNorm(foldable(module, trace(module, None, images()))).apply(module)
    flow = trace(module, None, images())
    return flow, quantisable(module, flow)


CONVOLUTIONS = [
    "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1", "layer2.0.conv2"
]  # fmt: skip


def test_batch_normalisations_are_paired_with_the_layers_before_them():
    net = nets.seeded(nets.ResNet)
    pairs = foldable(net, trace(net, None, images()))
    assert pairs == {path: path.replace("conv", "bn") for path in CONVOLUTIONS}
    plain = nets.seeded(nets.ResNet)(*images())
    folded(net)
    torch.testing.assert_close(net(*images()), plain, rtol=1e-4, atol=1e-5)


def test_a_residual_net_is_quantised_at_sums_and_convolutions():
    net = nets.seeded(nets.ResNet)
    flow, layers = folded(net)
    assert layers == (*CONVOLUTIONS, "linear")
    found = place(net, flow, layers, outputs=True)
    # the first sum's shortcut is made by a function of the net and enters the first block
    assert found.inputs == (
        "conv1", "layer1.0", "layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2", "linear"
    )  # fmt: skip
    assert found.outputs == ("layer1.0", "layer1.0.conv2", "layer1.1", "layer1.1.conv2", "layer2.0", "layer2.0.conv2")
    assert found.unreached == ()
    alone = place(net, flow, layers, outputs=False)
    assert (alone.inputs, alone.outputs) == ((*sorted(CONVOLUTIONS), "linear"), ())


def test_only_what_feeds_the_quantised_layers_is_rounded():
    net = nets.seeded(nets.ResNet)
    flow, _ = folded(net)
    found = place(net, flow, ["layer1.0.conv1"], outputs=True)
    assert (found.inputs, found.outputs) == (("layer1.0.conv1",), ())
    assert place(net, flow, ["linear"], outputs=True).inputs == ("linear",)


def test_modules_used_twice_and_functions_in_place():
    net = nets.seeded(nets.Shared)
    plain = nets.seeded(nets.Shared)(*images())
    flow, layers = folded(net)
    assert type(net.norm) is nn.BatchNorm2d  # the convolution before it also answers elsewhere
    assert layers == ("stem", "twice", "head")
    found = place(net, flow, layers, outputs=True)
    # the rectifier is used thrice and answers differently each time: its tensors are rounded where they arrive
    assert "relu" not in found.outputs
    assert "twice" not in found.outputs
    assert {"stem", "pool", "head"} <= set(found.inputs)
    assert found.unreached == ("",)
    assert torch.equal(net(*images()), plain)


def test_a_normalisation_stays_where_folding_would_change_the_answers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shown = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.batchwise = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
            self.c, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.lines, self.rows = nn.Linear(12, 12), nn.BatchNorm1d(12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y = self.shown(y) + y
            y = self.batchwise(self.b(y))
            y = self.after(torch.relu(self.c(y)))
            return self.rows(self.lines(y[:, 0]))

    net = nets.seeded(Net)
    assert foldable(net, trace(net, None, images())) == {}


def test_a_normalisation_behind_a_linear_layer_is_folded_where_it_sees_rows():
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 5, bias=False), nn.BatchNorm1d(5)).eval()
    net[2].running_mean.fill_(0.3)
    plain = net(*images())
    pairs = foldable(net, trace(net, None, images()))
    assert pairs == {"1": "2"}
    FoldBatchNorm(pairs).apply(net)
    torch.testing.assert_close(net(*images()), plain, rtol=1e-4, atol=1e-5)


class Answering(nn.Module):
    """Answers with what its convolution made too, or weighs it by a norm of its own."""

    def __init__(self, twice: bool, normed: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 4, 3)
        self.conv = nn.utils.parametrizations.weight_norm(conv) if normed else conv
        self.bn, self.twice = nn.BatchNorm2d(4), twice

    def forward(self, x: torch.Tensor):
        made = self.conv(x)
        return (self.bn(made), made) if self.twice else self.bn(made)


def test_what_the_model_answers_with_is_not_folded_into():
    for twice, pairs in ((False, {"conv": "bn"}), (True, {})):
        net = Answering(twice, normed=False).eval()
        assert foldable(net, trace(net, None, images())) == pairs


def test_a_weight_that_is_computed_of_others_is_left_alone():
    net = Answering(twice=False, normed=True).eval()
    flow = trace(net, None, images())
    assert foldable(net, flow) == {}
    assert quantisable(net, flow) == ()
