"""Blocks: the members of a torch module's lists that it also runs without, found by watching it run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from paretune.errors import BuildError
from paretune.forms.torch_edits import Bypass, Edit, Remove
from paretune.forms.torch_path import asked
from paretune.forms.torch_run import Run, demand_run, twin


@dataclass(frozen=True)
class Block:
    """A module that can be left out.

    Attributes
    ----------
    path
        In the module as it was before anything was left out.
    removed
        Taken out of its list; else a passage stands in its place.
    length
        Of the tuple that it returns; 0 where it returns a tensor.
    """

    path: str
    removed: bool
    length: int = 0


def edits(blocks: Sequence[Block]) -> tuple[Edit, ...]:
    """What leaves these blocks out, all at once: passages first, as they move no path."""
    made: list[Edit] = []
    for length in sorted({block.length for block in blocks if not block.removed}):
        made.append(Bypass(tuple(one.path for one in blocks if not one.removed and one.length == length), length))
    removed = tuple(block.path for block in blocks if block.removed)
    return (*made, Remove(removed)) if removed else tuple(made)


def cut(module: torch.nn.Module, blocks: Sequence[Block]) -> torch.nn.Module:
    """The module without these blocks: a :func:`twin`."""
    small = twin(module)
    for edit in edits(blocks):
        edit.apply(small)
    return small


def candidates(module: torch.nn.Module, run: Run) -> tuple[tuple[Block, ...], ...]:
    """The blocks among the members of ``Sequential`` and ``ModuleList``, each with the ways to leave it out.

    A block has weights, and answers in the shape and dtype of its first input whenever it is called. A ``Sequential``
    of blocks is none itself where it is a stage (to take it out and to pass it by are alike), nor is a part of a block.
    Single layers (a ``Conv2d``) count where there is nothing else.

    Raises
    ------
    BuildError
        If the module does not run.
    """
    lengths = _watch(module, run)
    found = [path for path in _members(module) if path in lengths and _is_weighty(module.get_submodule(path))]
    composite = [path for path in found if not _is_layer(module.get_submodule(path))]
    ways = {path: _ways(module, path, lengths[path], run) for path in composite or found}
    holders = {path.rpartition(".")[0] for path in ways}
    kept = {
        path: found for path, found in ways.items() if found and not (path in holders and _is_line(module, path, found))
    }
    return tuple(found for path, found in kept.items() if not any(path.startswith(f"{other}.") for other in kept))


def named(module: torch.nn.Module, paths: Sequence[str], run: Run, where: str) -> tuple[tuple[Block, ...], ...]:
    """The modules at these paths, each with the ways to leave it out.

    Raises
    ------
    BuildError
        If there is no such module, it is named twice or lies inside another, or the module does not run without it.
    """
    lengths = _watch(module, run)
    made = []
    for path in paths:
        outer = next((other for other in paths if path.startswith(f"{other}.")), None)
        part = asked(module, path, "model", where)
        first = next(name for name, other in module.named_modules() if other is part)
        if first != path:
            raise BuildError(f"{path} is the same module as {first}", where=where, do=f"name it {first}")
        if outer is not None or list(paths).count(path) > 1:
            raise BuildError(f"{path} goes with {outer or path} already", where=where, do="name it once")
        if path not in lengths:
            raise BuildError(
                f"{path} does not answer in the shape of its first input", where=where,
                do="name modules that keep the shape: residual blocks without a change of width, encoder layers",
            )  # fmt: skip
        ways = _ways(module, path, lengths[path], run)
        if not ways:
            raise BuildError(f"the model does not run without {path}", where=where, do="leave it in")
        made.append(ways)
    return tuple(made)


def _ways(module: torch.nn.Module, path: str, length: int, run: Run) -> tuple[Block, ...]:
    """How the module still runs and answers in the same shapes: by removal, by a passage; one where these are alike."""
    whole, answers, ways = run(module), [], []
    bypassed = Block(path, False, length)
    holder = module.get_submodule(path.rpartition(".")[0])
    listed = isinstance(holder, torch.nn.Sequential | torch.nn.ModuleList)
    for block in (dataclasses.replace(bypassed, removed=True), bypassed) if listed else (bypassed,):
        try:
            answer = run(cut(module, (block,)))
        except Exception:  # whatever the user's forward raises where a part is missing
            continue
        if [(one.shape, one.dtype) for one in answer] == [(one.shape, one.dtype) for one in whole]:
            answers.append(answer)
            ways.append(block)
    alike = len(ways) == 2 and all(torch.equal(one, other) for one, other in zip(*answers, strict=True))
    return tuple(ways[:1] if alike else ways)


def _watch(module: torch.nn.Module, run: Run) -> dict[str, int]:
    """Of the submodules that answer in the shape of their first input, at every call: the length of their answer."""
    seen: dict[str, set[int | None]] = {}

    def note(path: str, part: Any, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        first = given[0] if given else next(iter(named.values()), None)
        answered = answer[0] if isinstance(answer, tuple) and answer else answer
        keeps = _kind(first) is not None and _kind(first) == _kind(answered)
        seen.setdefault(path, set()).add((len(answer) if isinstance(answer, tuple) else 0) if keeps else None)

    hooks = [
        part.register_forward_hook(partial(note, path), with_kwargs=True)
        for path, part in module.named_modules()
        if path
    ]
    try:
        demand_run(module, run)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: lengths.pop() or 0 for path, lengths in seen.items() if None not in lengths and len(lengths) == 1}


def _kind(value: Any) -> tuple[torch.Size, torch.dtype] | None:
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else None


def _members(module: torch.nn.Module) -> Iterator[str]:
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.Sequential | torch.nn.ModuleList):
            yield from (f"{path}.{key}" if path else key for key in part._modules)


def _is_weighty(part: torch.nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in part.parameters())


def _is_layer(part: torch.nn.Module) -> bool:
    """Whether it is one of torch's own without parts."""
    return type(part).__module__.startswith("torch.nn.") and not any(part.children())


def _is_line(module: torch.nn.Module, path: str, ways: tuple[Block, ...]) -> bool:
    """Whether it is a ``Sequential`` that its list goes through; not where the list adds its answer to something."""
    return isinstance(module.get_submodule(path), torch.nn.Sequential) and len(ways) == 1
