"""Every generator is put back exactly, through JSON too."""

import json
import random

import numpy as np
import torch

from paretune.training import random_state

CPU = torch.device("cpu")


def drawn() -> list[float]:
    return [
        random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(np.random.random()),
        float(torch.rand(())), float(torch.randn(())),
    ]  # fmt: skip


def test_what_is_drawn_after_a_restore_is_what_was_drawn_before():
    random.gauss(0, 1)  # leaves half a pair behind, which is part of the state
    np.random.standard_normal()
    tensors, facts = random_state.capture(CPU)
    first = drawn()
    drawn()
    random_state.restore(tensors, json.loads(json.dumps(facts)), CPU)
    assert drawn() == first


def test_seeding_leaves_no_trace_and_repeats():
    tensors, facts = random_state.capture(CPU)
    expected = drawn()
    random_state.restore(tensors, facts, CPU)
    within = []
    for _ in range(2):
        with random_state.seeded(5, CPU):
            within.append(drawn())
    assert within[0] == within[1] != expected
    assert drawn() == expected
