"""Everything proposed can be built and opened, comes once, and in an order that spends time well."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask import plugin
from paretune.ask.knob import knob
from paretune.build.propose import HOPELESS, MEASURING_S, Proposal, Queue, conversion, light

TECHNIQUES, TARGETS = plugin.usable("techniques"), plugin.usable("targets")
FORMS = ("torch", "onnx", "openvino")


@dataclass(frozen=True)
class OtherFold:
    """A third party's second way of folding."""

    name: ClassVar[str] = "guest_fold"
    takes: ClassVar[frozenset[str]] = frozenset({"onnx", "openvino"})
    gives: ClassVar[str] = "onnx"
    kind: ClassVar[str] = "fold"
    needs: ClassVar[dict[str, str]] = {}
    cost: ClassVar[float] = 0.1
    level: int = knob(1, "how much", low=1, high=3)

    @classmethod
    def light(cls):
        return cls(), cls(level=2)


@dataclass(frozen=True)
class Trained(OtherFold):
    """A technique that trains: it proposes nothing to a search without training."""

    name: ClassVar[str] = "guest_trained"

    @classmethod
    def light(cls):
        return ()


WITH_GUESTS = {**TECHNIQUES, "guest_fold": OtherFold, "guest_trained": Trained}
ASKED = pytest.mark.parametrize("techniques", [TECHNIQUES, WITH_GUESTS, {}], ids=["own", "guests", "none"])


def names(proposal: Proposal) -> tuple[str, ...]:
    return proposal.family


@ASKED
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("throughput", [False, True])
def test_every_proposal_is_legal(form, techniques, throughput):
    proposals = light(form, techniques, TARGETS, throughput)
    assert proposals
    for proposal in proposals:
        assert proposal.candidate.recipe.gives(form) in proposal.candidate.target.accepts
        assert "guest_trained" not in names(proposal)


@ASKED
@pytest.mark.parametrize("form", FORMS)
def test_no_proposal_comes_twice(form, techniques):
    ids = [proposal.candidate.id for proposal in light(form, techniques, TARGETS)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("form", FORMS)
def test_at_most_one_choice_is_not_the_most_promising(form):
    for proposal in light(form, WITH_GUESTS, TARGETS):
        candidate = proposal.candidate
        turned = [step for step in candidate.recipe.steps if step != type(step).light()[0]]
        turned += [candidate.target] if candidate.target != type(candidate.target).light(False)[0] else []
        assert len(turned) == (1 if proposal.tier else 0)
        if turned:
            choices = turned[0].light(False) if turned[0] is candidate.target else turned[0].light()
            assert choices[proposal.tier] == turned[0]


def test_every_road_is_proposed():
    families = {names(proposal) for proposal in light("torch", WITH_GUESTS, TARGETS)}
    assert ("torch",) in families
    assert ("torch_to_onnx", "onnxruntime") in families
    assert ("torch_to_onnx", "onnx_to_openvino", "openvino") in families
    for fold in ("onnx_fold", "guest_fold"):
        assert ("torch_to_onnx", fold, "onnx_int8_static", "onnxruntime") in families
        assert ("torch_to_onnx", fold, "onnx_int8_static", "onnx_to_openvino", "openvino") in families
    assert not any("guest_fold" in family and "onnx_fold" in family for family in families)


def test_targets_that_take_no_form_within_reach_get_nothing():
    assert light("openvino", TECHNIQUES, {"torch": TARGETS["torch"]}) == []
    assert light("unheard_of", TECHNIQUES, TARGETS) == []


def test_a_plain_conversion_is_the_shortest():
    found = conversion("torch", WITH_GUESTS, TARGETS["openvino"])
    assert [step.name for step in found.recipe.steps] in (["torch_to_onnx"], ["torch_to_onnx", "onnx_to_openvino"])
    assert all(step.kind == "convert" for step in found.recipe.steps)
    assert found.recipe.gives("torch") in found.target.accepts
    assert conversion("onnx", TECHNIQUES, TARGETS["onnxruntime"]).recipe.steps == ()
    assert conversion("openvino", TECHNIQUES, TARGETS["torch"]) is None


def drained(queue: Queue, speed_of) -> list[Proposal]:
    order = []
    while (proposal := queue.ask()) is not None:
        order.append(proposal)
        queue.tell(proposal, speed_of(proposal))
    return order


@given(st.randoms(use_true_random=False), st.booleans())
def test_every_proposal_is_handed_out_once_or_dropped_with_a_reason(random, failing):
    proposals = light("torch", TECHNIQUES, TARGETS)
    queue = Queue(random.sample(proposals, len(proposals)))

    def speed_of(proposal):
        return None if failing and random.random() < 0.3 else random.choice([0.0, 0.1, 1.0, 2.0, 9.0])

    order = drained(queue, speed_of)
    handed = [proposal.candidate.id for proposal in (*order, *(dropped for dropped, _ in queue.dropped))]
    assert sorted(handed) == sorted(proposal.candidate.id for proposal in proposals)
    tiers = [proposal.tier > 0 for proposal in order]
    assert tiers == sorted(tiers)
    assert all(proposal.tier > 0 for proposal, _ in queue.dropped)
    for proposal, why in queue.dropped:
        assert " → ".join(proposal.family) in why
        assert "slower than the best" in why


def test_the_first_of_every_road_come_cheap_before_dear():
    proposals = light("torch", TECHNIQUES, TARGETS)
    order = [one for one in drained(Queue(list(reversed(proposals))), lambda one: None) if one.tier == 0]
    promises = [(one.cost + MEASURING_S) / one.gain for one in order]
    assert promises == sorted(promises)
    for gain in {one.gain for one in order}:
        costs = [one.cost for one in order if one.gain == gain]
        assert costs == sorted(costs)


def test_the_order_does_not_hang_on_that_of_the_proposals():
    proposals = light("torch", TECHNIQUES, TARGETS)
    first = drained(Queue(list(proposals)), lambda one: len(one.family))
    assert drained(Queue(list(reversed(proposals))), lambda one: len(one.family)) == first


def test_knobs_of_the_fastest_road_are_tried_first_and_hopeless_roads_no_more():
    proposals = light("torch", TECHNIQUES, TARGETS)
    with_knobs = sorted({names(one) for one in proposals if one.tier})
    fast, fair, slow = with_knobs[:3]
    speeds = {fast: 6.0, fair: 6.0 / HOPELESS, slow: 6.0 / HOPELESS - 0.01}
    queue = Queue(list(proposals))
    order = drained(queue, lambda one: speeds.get(names(one), 3.0))
    later = [names(one) for one in order if one.tier]
    assert later[0] == fast
    assert fair in later
    assert slow not in later
    assert {names(one) for one, _ in queue.dropped} == {slow}
    assert f"{' → '.join(slow)} had proved 3.0× slower than the best so far" in queue.dropped[0][1]


def test_what_trains_takes_part_where_it_is_named():
    def steps(named):
        return {
            step.name for one in light("torch", TECHNIQUES, TARGETS, named=named) for step in one.candidate.recipe.steps
        }

    assert "torch_prune_blocks" not in steps(())
    assert steps(["torch_prune_blocks"]) - steps(()) == {"torch_prune_blocks"}
    chains = [one.family for one in light("torch", TECHNIQUES, TARGETS, named=["torch_prune_blocks"])]
    assert ("torch_prune_blocks", "torch_to_onnx", "onnx_fold", "onnx_int8_static", "onnxruntime") in chains
    assert len({one.candidate.id for one in light("torch", TECHNIQUES, TARGETS, named=["torch_prune_blocks"])}) == len(
        light("torch", TECHNIQUES, TARGETS, named=["torch_prune_blocks"])
    )
