"""Ticket: which weights of a module live, and what all of them were at an early step of its training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from paretune.errors import ArtifactError, BuildError
from paretune.training.first_weights import draw
from paretune.training.masks import Masks

FILE = "ticket.safetensors"


class Ticket(nn.Module):
    """The masks, and every parameter and buffer as it was when :meth:`take` was called: a training's companion."""

    def __init__(self, module: nn.Module, masks: Masks) -> None:
        super().__init__()
        self.masks = masks
        self._held = [module]  # in a list: what it is a companion of is no part of it
        for place, (_, tensor) in enumerate(_tensors(module)):
            self.register_buffer(f"early_{place}", tensor.detach().clone())

    @torch.no_grad()
    def take(self) -> None:
        """Remember what the module holds now."""
        for place, (_, tensor) in enumerate(_tensors(self._held[0])):
            self.get_buffer(f"early_{place}").copy_(tensor)

    @torch.no_grad()
    def rewind(self) -> None:
        """Give the module back what was taken, with the dead at zero."""
        for place, (_, tensor) in enumerate(_tensors(self._held[0])):
            tensor.copy_(self.get_buffer(f"early_{place}"))
        self.masks.hold()

    @torch.no_grad()
    def shuffle(self, seed: int) -> None:
        """Move the dead of each weight to random places in it: another ticket, of the same sparsity in every layer."""
        drawn = torch.Generator().manual_seed(seed)
        for place in range(len(self.masks.weights)):
            alive = self.masks.alive(place)
            order = torch.randperm(alive.numel(), generator=drawn)
            alive.copy_(alive.reshape(-1)[order.to(alive.device)].reshape(alive.shape))

    def save(self, folder: Path) -> int:
        """Write :data:`FILE`, and return its size in bytes.

        For each sparse weight ``alive/NAME`` (uint8, eight elements to a byte as numpy packs them, in C order) and
        ``early/NAME`` (the values of those alive, in order); for all others ``early/NAME`` whole.
        """
        masked = {weight.name: place for place, weight in enumerate(self.masks.weights)}
        kept: dict[str, torch.Tensor] = {}
        for place, (name, _) in enumerate(_tensors(self._held[0])):
            early = self.get_buffer(f"early_{place}").cpu()
            if name in masked:
                alive = self.masks.alive(masked[name]).cpu()
                kept[f"alive/{name}"] = torch.from_numpy(np.packbits(alive.numpy()))
                early = early[alive]
            kept[f"early/{name}"] = early.contiguous().clone()
        save_file(kept, folder / FILE)
        return (folder / FILE).stat().st_size


@torch.no_grad()
def redeem(module: nn.Module, path: Path) -> None:
    """Lay a saved ticket onto the module that it was drawn from: early values where weights live, zeros elsewhere.

    Raises
    ------
    ArtifactError
        If the file is no ticket of this module.
    """
    try:
        kept = load_file(path)
        for name, tensor in _tensors(module):
            early = kept[f"early/{name}"].to(tensor.dtype)
            bits = kept.get(f"alive/{name}")
            if bits is None:
                tensor.copy_(early.reshape(tensor.shape))
                continue
            alive = torch.from_numpy(np.unpackbits(bits.numpy(), count=tensor.numel()).astype(bool))
            tensor.zero_()
            tensor[alive.reshape(tensor.shape)] = early
    except (OSError, KeyError, ValueError, RuntimeError, IndexError, SafetensorError) as error:
        raise ArtifactError(
            f"is no ticket of this model: {error}", where=str(path), do="give the model that it was drawn from"
        ) from error


def renew(module: nn.Module, seed: int, where: str) -> None:
    """Give the module new first weights, each layer by its own ``reset_parameters``; frozen ones stay as they are.

    Raises
    ------
    BuildError
        If a layer with parameters of its own has no such method.
    """
    for path, part in draw(module, seed).items():
        raise BuildError(
            f"{path or 'the model'} ({type(part).__qualname__}) cannot be given new first weights",
            where=f"{where}.start", do="give it a reset_parameters(), or use start=given",
        )  # fmt: skip


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
