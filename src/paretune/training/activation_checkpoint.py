"""Activation checkpointing: what a block computed on its way forward is dropped, and computed again on the way back.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paretune.errors import BuildError


@contextlib.contextmanager
def recomputed(module: nn.Module, where: str) -> Iterator[None]:
    """Within it the blocks of ``module`` keep only what they were given, in training; the results are the same.

    Raises
    ------
    BuildError
        If it has no blocks.
    """
    blocks = blocks_of(module)
    if not blocks:
        raise BuildError(
            "the model has no blocks to compute again: no child of an nn.Sequential or nn.ModuleList holds modules",
            where=f"{where}.activation_checkpointing", do="set it to false, and micro_batch to fewer examples at once",
        )  # fmt: skip
    laid = [(block, vars(block).get("forward")) for block in blocks]
    for block in blocks:
        block.forward = _twice(block, block.forward)
    try:
        yield
    finally:
        for block, own in laid:
            del block.forward
            if own is not None:
                block.forward = own


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The children of plain ``nn.Sequential`` and ``nn.ModuleList`` that hold modules themselves, outermost first; of a
    container of containers the inner ones."""
    found: list[nn.Module] = []
    for child in module.children():
        if not _is_container(module):
            found += blocks_of(child)
            continue
        inner = blocks_of(child) if _is_container(child) else []
        if inner or next(child.children(), None) is not None:
            found += inner or [child]
    # a block that stands in two places is one
    return list(dict.fromkeys(found))


def _is_container(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, nn.ModuleList)


def _twice(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **named)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: _both(block), **named)

    return run


def _both(block: nn.Module) -> tuple[Any, Any]:
    """What surrounds the first time, which begins now, and the second."""
    before = {id(buffer): buffer.detach().clone() for buffer in block.buffers()}
    places = [
        (part, name, before[id(buffer)])
        for part in block.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    return contextlib.nullcontext(), _as_before(places)


@contextlib.contextmanager
def _as_before(places: Sequence[tuple[nn.Module, str, torch.Tensor]]) -> Iterator[None]:
    """The second time finds the buffers that the first one found, and what has become of them since does not move."""
    now = [part._buffers[name] for part, name, _ in places]
    for part, name, value in places:
        part._buffers[name] = value
    try:
        yield
    finally:
        for (part, name, _), buffer in zip(places, now, strict=True):
            part._buffers[name] = buffer
