"""What modules give is heard by hooks that leave nothing behind, and compared by the formulas."""

from __future__ import annotations

import feature_nets as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from paretune.errors import BuildError
from paretune.forms.torch_fake_quant import FakeQuant
from paretune.training.features import Taps, fitting, hint_loss, spatial_loss, spatial_map
from paretune.training.structure import attending, matched, middle, stage_ends, watch


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


# -- taps ------------------------------------------------------------------------------------------------------------


def test_taps_hear_what_modules_give_and_leave_no_hook():
    net = nets.made(nets.Stages)
    taps = Taps(net, ["first", "second.0.conv"], "student", "test")
    x = drawn(1, 2, *nets.SHAPE)
    with taps.listening():
        net(x)
        assert hooks_of(net) == 4
    assert hooks_of(net) == 0
    torch.testing.assert_close(taps.output("first"), net.first(net.stem(x)))
    assert taps.output("second.0.conv").requires_grad


def test_hooks_go_when_the_model_fails():
    net = nets.made(nets.Stages)
    taps = Taps(net, ["first"], "student", "test")
    with pytest.raises(RuntimeError), taps.listening():
        net(torch.zeros(1, 5, 8, 8))
    assert hooks_of(net) == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_of_a_module_that_runs_twice_the_last_run_counts():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(functional.relu(self.layer(x)))

    net = nets.made(Twice)
    taps = Taps(net, ["layer"], "student", "test")
    x = drawn(1, 4, 3)
    with taps.listening():
        answer = net(x)
    torch.testing.assert_close(taps.output("layer"), answer)


def test_of_several_outputs_the_first_tensor_counts():
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.named = nn.Identity()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            states, (last, _) = self.lstm(x)
            return self.named({"states": states, "last": last})

    net = nets.made(Several)
    taps = Taps(net, ["lstm", "named"], "student", "test")
    with taps.listening():
        answer = net(drawn(1, 2, 5, 3))
    torch.testing.assert_close(taps.output("lstm"), answer["states"])
    torch.testing.assert_close(taps.output("named"), answer["states"])


def test_paths_that_do_not_exist_are_told_with_those_near():
    net = nets.made(nets.Stages)
    with pytest.raises(BuildError, match=r"the teacher has no module 'frist'; near it are .*first") as caught:
        Taps(net, ["frist"], "teacher", "technique.pairs")
    assert caught.value.where == "technique.pairs"
    assert "\n" not in str(caught.value)
    with pytest.raises(BuildError, match="near it are stem, first, down, second, linear"):
        Taps(net, ["zzzzzzzzzz"], "student", "test")


def test_modules_that_give_nothing_are_told():
    net = nets.made(nets.Encoder)
    taps = Taps(net, ["layers", "linear"], "student", "test")
    with taps.listening():
        net(torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(BuildError, match="layers of the student gives no tensor in a forward pass"):
        taps.output("layers")  # a ModuleList is never called
    with pytest.raises(BuildError, match="linear of the student attends to nothing"):
        taps.attention("linear")


# -- losses ----------------------------------------------------------------------------------------------------------


def test_spatial_loss_by_hand():
    ours, theirs = drawn(1, 3, 4, 2, 2), drawn(2, 3, 7, 2, 2)
    maps = [(one**2).sum(1).flatten(1) for one in (ours, theirs)]
    torch.testing.assert_close(spatial_map(ours).flatten(1), maps[0])
    units = [one / one.norm(dim=1, keepdim=True) for one in maps]
    by_hand = ((units[0] - units[1]) ** 2).sum() / (3 * 4)
    torch.testing.assert_close(spatial_loss(ours, theirs), by_hand)


def test_larger_maps_are_averaged_down():
    ours, theirs = drawn(1, 2, 4, 2, 4), drawn(2, 2, 3, 4, 4)
    pooled = functional.avg_pool2d((theirs**2).sum(1, keepdim=True), (2, 1))
    alike = pooled.sqrt()  # a feature of one channel whose map is the pooled one
    torch.testing.assert_close(spatial_loss(ours, theirs), spatial_loss(ours, alike))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 100.0))
def test_spatial_loss_does_not_see_the_scale(seed, scale):
    feature = drawn(seed, 2, 3, 3, 3)
    assert float(spatial_loss(scale * feature, feature)) < 1e-6
    assert 0 <= float(spatial_loss(drawn(seed + 1, 2, 5, 3, 3), feature)) <= 4 / 9


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "sizes"),
    [
        ((2, 4, 8, 8), (2, 6, 4, 4), "channels", (4, 6)),
        ((2, 6, 8, 8), (2, 6, 4, 4), "none", (6, 6)),
        ((2, 5, 8), (2, 5, 12), "last", (8, 12)),
        ((2, 4, 9), (2, 8, 9), "channels", (4, 8)),
        ((2, 16), (2, 24), "last", (16, 24)),
    ],
)
def test_features_are_projected_to_the_teachers(student, teacher, kind, sizes):
    ours, theirs = drawn(1, *student), drawn(2, *teacher)
    found = fitting(ours, theirs)
    assert (found.kind, (found.ours, found.theirs)) == (kind, sizes)
    projection = found.projection()
    loss = hint_loss(projection(ours), theirs)
    assert loss.ndim == 0
    if kind == "none":
        assert not list(projection.parameters())
    if kind == "channels" and len(student) == 4:
        linear = projection.linear
        mapped = functional.conv2d(ours, linear.weight[:, :, None, None], linear.bias)
        by_hand = ((functional.avg_pool2d(mapped, 2) - theirs) ** 2).mean()
        torch.testing.assert_close(loss, by_hand)


def test_features_that_cannot_be_compared_are_told():
    with pytest.raises(BuildError, match=r"\[5\] in the student and \[4, 2, 2\] in the teacher"):
        fitting(drawn(1, 2, 5), drawn(1, 2, 4, 2, 2))
    with pytest.raises(BuildError, match="have no places to compare"):
        spatial_loss(drawn(1, 2, 5), drawn(1, 2, 5))
    with pytest.raises(BuildError, match="name other pairs"):
        hint_loss(drawn(1, 2, 5, 3), drawn(1, 2, 6, 3))


# -- structure -------------------------------------------------------------------------------------------------------


def uses(net: nn.Module, x: torch.Tensor):
    return watch(net, None, (x,))


def test_the_ends_of_stages_are_found():
    found = stage_ends(uses(nets.made(nets.Stages), drawn(1, 2, *nets.SHAPE)))
    assert [(use.path, use.shape) for use in found] == [("first", (2, 4, 8, 8)), ("second", (2, 8, 4, 4))]
    flat = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert [use.path for use in stage_ends(uses(flat.eval(), drawn(1, 2, *nets.SHAPE)))] == ["1", "3"]


def test_modules_that_attend_are_found():
    words = torch.ones(2, 5, dtype=torch.int64)
    for way, inner in (("fused", ""), ("written", ""), ("module", ".attention")):
        found = attending(uses(nets.made(nets.Encoder, way=way), words))
        assert [use.path for use in found] == [f"layers.0{inner}", f"layers.1{inner}"]
    assert attending(uses(nets.made(nets.Stages), drawn(1, 2, *nets.SHAPE))) == ()


def test_quantisers_are_no_parts_of_a_net():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), FakeQuant(8, True), nn.Linear(4, 2)).eval()
    assert [use.path for use in uses(net, drawn(1, 2, 3))] == ["0", "1", "2", "4"]


def test_half_way_is_found():
    assert middle(uses(nets.made(nets.Stages), drawn(1, 2, *nets.SHAPE))).path == "first"
    assert middle(uses(nets.made(nets.Encoder, layers=3), torch.ones(2, 5, dtype=torch.int64))).path == "layers.1"
    mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert middle(uses(mlp, drawn(1, 2, 3))).path == "1"
    assert middle(uses(nn.Linear(3, 2), drawn(1, 2, 3))) is None


def test_stages_are_matched_by_size_and_else_by_depth():
    ours = stage_ends(uses(nets.made(nets.Stages), drawn(1, 2, *nets.SHAPE)))
    theirs = stage_ends(uses(nets.made(nets.Stages, blocks=3), drawn(1, 2, *nets.SHAPE)))
    assert [(one.path, other.path) for one, other in matched(ours, theirs)] == [
        ("first", "first"),
        ("second", "second"),
    ]
    assert [(one.path, other.path) for one, other in matched(ours[1:], theirs[:1])] == [("second", "first")]
    odd = stage_ends(uses(nets.made(nets.Stages), drawn(1, 2, 2, 12, 12)))
    assert [other.path for _, other in matched(odd, theirs)] == ["first", "second"]
    assert [other.path for _, other in matched(odd[:1], theirs)] == ["second"]


def test_a_model_that_fails_on_its_data_is_told():
    with pytest.raises(BuildError, match="the model fails on training examples: RuntimeError"):
        uses(nets.made(nets.Stages), torch.zeros(1, 5, 8, 8))
