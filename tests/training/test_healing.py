"""What is sealed answers as the module that it was saved from, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms.torch_edits import difference
from paretune.training.healing import sealed


class Scaled(nets.Net):
    """Multiplies by what no attribute, parameter or buffer of a module holds in plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = {"factor": 2.0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.hidden["factor"]


def fitted(artifact, root) -> Fit:
    return Fit(nets.split(nets.rows(8)), None, artifact, 0, root / "scratch")


def test_a_change_that_no_edit_tells_is_refused(tmp_path):
    artifact = nets.sealed(nets.net(0, Scaled), tmp_path / "net")
    module = form.restore(artifact)
    with torch.no_grad():
        module.layers[0].weight.mul_(0.5)
    assert sealed(module, artifact, artifact, fitted(artifact, tmp_path), ()).digest != artifact.digest
    module.hidden["factor"] = 3.0
    with pytest.raises(BuildError, match="does not answer as the module that it was saved from"):
        sealed(module, artifact, artifact, fitted(artifact, tmp_path / "b"), difference(nets.net(0, Scaled), module))


def test_a_model_that_draws_numbers_is_compared_with_the_same_ones(tmp_path):
    class Noisy(nets.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.randn(len(x), 1)

    artifact = nets.sealed(nets.net(0, Noisy), tmp_path / "net")
    made = sealed(form.restore(artifact), artifact, artifact, fitted(artifact, tmp_path), (), "as it was")
    assert made.notes == ("as it was",)
    assert isinstance(form.restore(made), nn.Module)


def test_a_model_that_writes_into_its_input_is_compared_on_the_same_one(tmp_path):
    class Overwriting(nets.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 1.0
            return super().forward(x)

    artifact = nets.sealed(nets.net(0, Overwriting), tmp_path / "net")
    made = sealed(form.restore(artifact), artifact, artifact, fitted(artifact, tmp_path), ())
    x = np.ones((1, nets.FEATURES), np.float32)
    once, twice = (form.call(form.restore(made), made, (x,))[0] for _ in range(2))
    assert np.array_equal(once, twice), "who calls it keeps what he gave"
