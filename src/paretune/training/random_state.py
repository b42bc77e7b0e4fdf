"""The state of every random generator that a model or a dataset may draw from, as tensors and plain JSON."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def capture(device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Python's, numpy's and torch's generators, and that of ``device`` where it has one: (tensors, JSON)."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = np.random.get_state(legacy=False)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(state["state"]["key"].astype(np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        tensors["mps"] = torch.mps.get_rng_state()
    numbers = {"pos": int(state["state"]["pos"]), "has_gauss": int(state["has_gauss"]), "gauss": float(state["gauss"])}
    return tensors, {"python": [version, list(words), gauss], "numpy": numbers}


def restore(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], device: torch.device) -> None:
    """Put every generator back where :func:`capture` found it."""
    version, words, gauss = facts["python"]
    random.setstate((version, tuple(words), gauss))
    numbers = facts["numpy"]
    key = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numbers["pos"], numbers["has_gauss"], numbers["gauss"]))
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    if device.type == "mps" and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Every generator seeded; afterwards the caller's go on as if nothing had been drawn, those of all GPUs too."""
    before = capture(device)
    # torch seeds every device at once, whichever is used here
    others = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    sow(seed)
    try:
        yield
    finally:
        restore(*before, device)
        if others:
            torch.cuda.set_rng_state_all(others)


def sow(seed: int) -> None:
    """Seed every generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
