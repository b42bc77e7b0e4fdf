"""How far answers are from the original's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import training_nets as nets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paretune.build.technique import Fit
from paretune.training.distance import Distance
from paretune.training.plan import Healing


class Shifted(nn.Module):
    """Answers the first features, with something added."""

    def __init__(self, added: list[float]) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.tensor(added))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : nets.CLASSES] + self.added


ADDED = st.lists(st.floats(-5, 5, width=32), min_size=nets.CLASSES, max_size=nets.CLASSES)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("distance")
    artifact = nets.sealed(Shifted([0.0] * nets.CLASSES), root / "original")

    def of(items: list, **options) -> Distance:
        sample = nets.split(items)
        return Distance(artifact, sample, Fit(sample, None, artifact, 0, root / "scratch"), Healing(**options))

    return of


@settings(max_examples=25, deadline=None)
@given(ADDED)
def test_classes_are_told_apart_by_the_divergence_of_their_probabilities(made, added):
    rows = nets.rows(150)  # more than are answered at once
    distance = made(rows)
    x = torch.from_numpy(np.stack([x for x, _ in rows]))[:, : nets.CLASSES]
    theirs, ours = x.log_softmax(1), (x + torch.tensor(added)).log_softmax(1)
    wanted = float((theirs.exp() * (theirs - ours)).sum(1).mean())
    assert distance(Shifted(added)) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert distance(Shifted([added[0]] * nets.CLASSES)) == pytest.approx(0, abs=1e-6)
    assert distance.unit == "nats"


@settings(max_examples=25, deadline=None)
@given(ADDED)
def test_values_are_told_apart_by_their_squared_difference(made, added):
    distance = made([(x, x[: nets.CLASSES]) for x, _ in nets.rows(30)])
    assert distance(Shifted(added)) == pytest.approx(float(np.mean(np.square(added))), rel=1e-3, abs=1e-6)
    assert distance.unit == "mean squared difference"


def test_answers_that_are_not_finite_are_infinitely_far(made):
    assert made(nets.rows(10))(Shifted([math.nan, 0.0, 0.0])) == math.inf


def test_a_sample_of_a_rare_class_need_not_hold_it(made):
    rows = [row for row in nets.rows(200) if row[1] == 0]
    assert made(rows)(Shifted([0.0, 0.0, 1.0])) > 0.01, "what is answered teaches nothing; other data does"


def test_labels_are_not_needed_where_the_kind_of_answers_is_said(made):
    distance = made([(x, None) for x, _ in nets.rows(10)], alpha=1.0, answers="classes")
    assert distance(Shifted([0.0, 0.0, 1.0])) > 0.01
