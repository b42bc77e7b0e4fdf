"""Structure: what a module's parts do in one forward pass, and which of them are worth holding a student to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.forms.torch_fake_quant import quantisers
from paretune.training.attention import Listening, Look
from paretune.training.features import first_tensor


@dataclass(frozen=True)
class Use:
    """A module that was called: its path, the shape of the first tensor that it gave, and whether it attended itself.

    ``shape`` is None where it gave no tensor; ``attends`` is of the innermost module around an attention.
    """

    path: str
    shape: tuple[int, ...] | None
    attends: bool


def watch(module: torch.nn.Module, names: tuple[str, ...] | None, inputs: tuple[torch.Tensor, ...]) -> tuple[Use, ...]:
    """The modules inside ``module`` in the order in which their last calls ended, in eval mode without gradients.

    Raises
    ------
    BuildError
        If the model fails on these inputs.
    """
    running: list[str] = []
    ended: dict[str, tuple[int, ...] | None] = {}
    attending: set[str] = set()

    def begin(path: str, part: torch.nn.Module, given: Any) -> None:
        running.append(path)

    def end(path: str, part: torch.nn.Module, given: Any, answer: Any) -> None:
        running.pop()
        tensor = first_tensor(answer)
        ended.pop(path, None)
        ended[path] = None if tensor is None else tuple(tensor.shape)

    def hear(look: Look) -> None:
        if running:
            attending.add(running[-1])

    rounds = {path for path, _ in quantisers(module)}  # a quantiser is no part of what the user built
    parts = [(path, part) for path, part in module.named_modules() if path and path not in rounds]
    hooks = [part.register_forward_pre_hook(partial(begin, path)) for path, part in parts]
    hooks += [part.register_forward_hook(partial(end, path)) for path, part in parts]
    try:
        with torch.no_grad(), form.plain_attention(), Listening(hear):
            form.call_flat(module, names, inputs)
    except ParetuneError:
        raise
    except Exception as error:  # whatever the user's forward raises
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise BuildError(
            f"the model fails on training examples: {type(error).__name__}: {reason}",
            where=running[-1] if running else type(module).__qualname__, do="see that it runs by itself",
        ) from error  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(Use(path, shape, path in attending) for path, shape in ended.items())


def stage_ends(uses: Sequence[Use]) -> tuple[Use, ...]:
    """The last module of every spatial size: where the stages of a convolutional net end, sizes of one place left out.

    Modules that give [n, channels, height, width] (or three axes of places), in the order of the forward pass.
    """
    last: dict[tuple[int, ...], Use] = {}
    for use in uses:
        if use.shape is None or len(use.shape) not in (4, 5) or max(use.shape[2:]) == 1:
            continue
        last.pop(use.shape[2:], None)
        last[use.shape[2:]] = use
    return tuple(last.values())


def attending(uses: Sequence[Use]) -> tuple[Use, ...]:
    """The modules that attend, in the order of the forward pass."""
    return tuple(use for use in uses if use.attends)


def middle(uses: Sequence[Use]) -> Use | None:
    """The module half-way: of the ends of stages, else of the longest list of modules; None where there is neither."""
    ends = stage_ends(uses)
    if ends:
        return ends[(len(ends) - 1) // 2]
    lists: dict[str, list[Use]] = {}
    for use in uses:
        parent, _, key = use.path.rpartition(".")
        if key.isdecimal() and use.shape is not None and len(use.shape) > 1:
            lists.setdefault(parent, []).append(use)
    longest = max(lists.values(), key=len, default=[])
    return longest[(len(longest) - 1) // 2] if len(longest) > 1 else None


def matched(student: Sequence[Use], teacher: Sequence[Use]) -> tuple[tuple[Use, Use], ...]:
    """The teacher's counterpart of each of the student's stages: that of the same size, else of the same depth."""
    sizes = {use.shape[2:]: use for use in teacher if use.shape is not None}
    pairs = []
    for place, use in enumerate(student):
        same = None if use.shape is None else sizes.get(use.shape[2:])
        pairs.append((use, same or teacher[round((place + 1) * len(teacher) / len(student)) - 1]))
    return tuple(pairs)
