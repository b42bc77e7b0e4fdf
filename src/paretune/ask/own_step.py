"""OwnStep: a user's step of training, for tasks whose loss is no function of outputs and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OwnStep:
    """``(model, inputs, labels)`` → the scalar to be minimised; it calls the model itself, more than once if need be.

    It stands where a loss stands in ``Fit.loss``.
    """

    function: Callable[..., Any]

    def __call__(self, model: Callable[..., Any], inputs: Any, labels: Any) -> Any:
        """``inputs`` and ``labels`` are a batch, as the data's items have them: a tensor, a tuple or a dict."""
        return self.function(model, inputs, labels)
