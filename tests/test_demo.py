"""The embedded default: real digits, a network that is trained when asked for, the same one each time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from paretune import demo
from paretune.ask.budget import Budget
from paretune.ask.workload import partition


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return demo.network()


def test_the_data_is_parted_by_class_and_shares_no_digit() -> None:
    parts = partition(demo.digits())
    assert len(parts.heldout) == 1000
    assert len(parts.fit) + len(parts.ranking) == 797
    assert parts.warnings == ()
    assert not {*parts.fit.digests, *parts.ranking.digests} & set(parts.heldout.digests)
    _, heldout = demo.examples()
    assert set(Counter(int(label) for _, label in heldout)) == set(range(10))
    assert min(Counter(int(label) for _, label in heldout).values()) >= 90


def test_items_are_what_a_workload_promises() -> None:
    image, label = demo.examples()[0][0]
    assert (image.shape, image.dtype) == ((1, 16, 16), np.float32)
    assert 0 <= label <= 9


def test_the_network_reads_digits(net: torch.nn.Module) -> None:
    _, heldout = demo.examples()
    images = torch.from_numpy(np.stack([image for image, _ in heldout]))
    labels = np.array([label for _, label in heldout])
    assert not net.training
    with torch.inference_mode():
        logits = net(images)
    assert (logits.argmax(1).numpy() == labels).mean() >= 0.97


def test_training_gives_the_same_weights_and_leaves_the_generator_alone(net: torch.nn.Module) -> None:
    torch.manual_seed(7)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = demo.network()
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_budget_parses() -> None:
    assert [limit.name for limit in Budget.parse(demo.BUDGET).limits] == ["drop"]
