"""Hidden units and attention heads of a torch module, found by disturbing it, and taken out for good.

What lies between linear layers cannot be read off a module: it stands in somebody's ``forward``. So a column of one
layer's answer is disturbed, and the columns of the next one's input tell what hangs on it: the same column alone where
only elementwise functions lie between (a feed-forward part), the columns of a head where it is attention. Nothing may
hang on it by another way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from paretune.forms.torch_attention import Attention
from paretune.forms.torch_run import Run, demand_run, twin

UNMOVED = 1e-4
"""Share of the largest value below which a change is taken for rounding."""
Places = tuple[tuple[str, str], ...]
"""(path of a module, name of its attribute)."""


@dataclass(frozen=True)
class Hidden:
    """Units between linear layers that can be left out.

    Attributes
    ----------
    into
        Path of the layer that takes them in.
    sources
        Paths of the layers that make them.
    size
        Columns to a unit: 1 in a feed-forward part, else those of a head.
    count
        Units there are.
    heads, widths
        Attributes that hold the number of units, and that of columns.
    """

    into: str
    sources: tuple[str, ...]
    size: int
    count: int
    heads: Places = ()
    widths: Places = ()

    def columns(self, units: Sequence[int]) -> list[int]:
        """The columns of these units, in order."""
        return [unit * self.size + place for unit in units for place in range(self.size)]


def found(module: torch.nn.Module, run: Run) -> tuple[tuple[Hidden, ...], tuple[str, ...]]:
    """All that can be narrowed, in the order of the calls; and paths of attention whose heads cannot be taken out."""
    demand_run(module, run)
    calm = _Watch(module).watch(run)
    gathered: dict[str, dict[str, int]] = {}
    for path in calm.order:
        flow = _flow(module, run, calm, path)
        if flow is not None:
            gathered.setdefault(flow[0], {})[path] = flow[1]
    able, unable = [], []
    for into in (path for path in calm.order if path in gathered):
        sizes = gathered[into]
        size, width = max(sizes.values()), layer(module, into).in_features
        if not set(sizes.values()) <= {1, size}:
            continue
        hidden = Hidden(into, tuple(sizes), size, width // size)
        fitted = next((one for one in _attributes(module, hidden) if _narrows(module, run, one)), None)
        if fitted is not None:
            able.append(fitted)
        elif size > 1:
            unable.append(into)
    return tuple(able), tuple(unable)


def narrow(module: torch.nn.Module, hidden: Hidden, units: Sequence[int]) -> None:
    """Keep only these units, in place: slices of the layers' parameters, and the attributes that count them."""
    columns = hidden.columns(units)
    for path in hidden.sources:
        source = layer(module, path)
        _put(source, "weight", source.weight[columns])
        if source.bias is not None:
            _put(source, "bias", source.bias[columns])
        source.out_features = len(columns)
    into = layer(module, hidden.into)
    _put(into, "weight", into.weight[:, columns])
    into.in_features = len(columns)
    for path, name in hidden.heads:
        part = module.get_submodule(path)
        if isinstance(part, Attention):
            part.heads = tuple(part.heads[unit] for unit in units)
        else:
            setattr(part, name, len(units))
    for path, name in hidden.widths:
        setattr(module.get_submodule(path), name, len(columns))


def layer(module: torch.nn.Module, path: str) -> torch.nn.Linear:
    """The linear layer at a path that was found."""
    return cast(torch.nn.Linear, module.get_submodule(path))


def _put(part: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    trained = getattr(part, name).requires_grad
    setattr(part, name, torch.nn.Parameter(value.detach().clone(), requires_grad=trained))


# --- what hangs on what ---


@dataclass
class _Watch:
    """One run with hooks on the linear layers that may be narrowed."""

    module: torch.nn.Module
    order: list[str] = field(default_factory=list)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    answers: tuple[torch.Tensor, ...] = ()

    def watch(
        self,
        run: Run,
        disturbed: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        pinned: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> _Watch:
        """``disturbed`` changes what layers answer, ``pinned`` what they are given."""
        layers = {path: part for path, part in self.module.named_modules() if type(part) is torch.nn.Linear}
        calls: list[str] = []

        def before(path: str, part: Any, given: tuple[Any, ...]) -> Any:
            calls.append(path)
            if not given:
                return None  # called by keyword: it is not looked into
            self.inputs[path] = given[0].detach()
            return (pinned[path](given[0]), *given[1:]) if pinned and path in pinned else None

        def after(path: str, part: Any, given: Any, answer: torch.Tensor) -> Any:
            return disturbed[path](answer) if disturbed and path in disturbed else None

        hooks = [part.register_forward_pre_hook(partial(before, path)) for path, part in layers.items()]
        hooks += [part.register_forward_hook(partial(after, path)) for path, part in layers.items()]
        try:
            self.answers = run(self.module)
        finally:
            for hook in hooks:
                hook.remove()
        used = _used_once(self.module)
        self.order = [path for path in calls if calls.count(path) == 1 and path in self.inputs and path in used]
        return self


def _flow(module: torch.nn.Module, run: Run, calm: _Watch, path: str) -> tuple[str, int] | None:
    """Where the answer of a layer goes, and to how many columns each of its columns; None where it goes elsewhere."""
    width = layer(module, path).out_features
    first = _Watch(module).watch(run, {path: partial(_nudge, columns=[0])})
    into = next((other for other in calm.order if _moved(calm, first, other)), None)
    if width < 2 or into is None or layer(module, into).in_features != width:
        return None
    moved = _moved(calm, first, into)
    size = len(moved)
    last = _Watch(module).watch(run, {path: partial(_nudge, columns=[width - 1])})
    ends = moved == list(range(size)) and _moved(calm, last, into) == list(range(width - size, width))
    if not ends or width % size or size == width:
        return None
    kept = calm.inputs[into]
    alone = _Watch(module).watch(run, {path: partial(_nudge, columns=list(range(width)))}, {into: lambda given: kept})
    return (into, size) if _alike(calm.answers, alone.answers) else None


def _nudge(answer: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """Noise as large as the answer on some of its columns, always the same."""
    noise = torch.randn(answer.shape, generator=torch.Generator().manual_seed(len(columns)), dtype=torch.float32)
    scale = 1 + 2 * float(answer.detach().abs().max())
    kept = torch.zeros(answer.shape[-1])
    kept[columns] = scale
    return answer + (noise * kept).to(answer)


def _moved(calm: _Watch, other: _Watch, path: str) -> list[int]:
    """The columns of a layer's input that changed."""
    before, after = calm.inputs[path], other.inputs.get(path)
    if after is None or before.shape != after.shape:
        return list(range(before.shape[-1]))
    limit = UNMOVED * max(float(before.abs().max()), 1e-12)
    changes = (after - before).abs().reshape(-1, before.shape[-1]).amax(dim=0)
    return [int(column) for column in torch.nonzero(changes > limit).flatten()]


def _alike(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Whether answers are the same but for rounding."""
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        scale = max(float(one.abs().max()), 1e-12) if one.numel() else 1.0
        if not torch.allclose(one.double(), other.double(), rtol=0.0, atol=10 * UNMOVED * scale, equal_nan=True):
            return False
    return True


def _used_once(module: torch.nn.Module) -> set[str]:
    """Layers none of whose parameters belongs to another module too."""
    owners: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    paths = {path for path, part in module.named_modules() if type(part) is torch.nn.Linear}
    return {path for path in paths if all(len(owners[id(one)]) == 1 for one in module.get_submodule(path).parameters())}


# --- what else counts the units ---


def _attributes(module: torch.nn.Module, hidden: Hidden) -> Iterator[Hidden]:
    """The ways in which attributes may count units and columns, the likeliest first."""
    if hidden.size == 1:
        yield hidden
        return
    heads, widths = [], []
    for path in _between(hidden):
        part = module.get_submodule(path)
        if isinstance(part, Attention):
            yield Hidden(hidden.into, hidden.sources, hidden.size, hidden.count, ((path, "heads"),))
            return
        for name, value in vars(part).items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if value == hidden.count and "head" in name:
                heads.append((path, name))
            elif value == hidden.count * hidden.size:
                widths.append((path, name))
    # a head's size may be the number of heads, too: then one of the attributes alone
    single = [[one] for one in heads] if len(heads) > 1 else []
    for some, others in itertools.product((heads, *single, []), ([], widths)):
        yield Hidden(hidden.into, hidden.sources, hidden.size, hidden.count, tuple(some), tuple(others))


def _between(hidden: Hidden) -> list[str]:
    """The modules that hold these layers, from the one that holds all of them down."""
    paths = [path.split(".")[:-1] for path in (*hidden.sources, hidden.into)]
    common = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    inner = {".".join(path[:end]) for path in paths for end in range(len(common), len(path) + 1)}
    return sorted(inner)


def _narrows(module: torch.nn.Module, run: Run, hidden: Hidden) -> bool:
    """Whether the module without its first unit answers as it does where that unit is zero."""
    units = list(range(1, hidden.count))
    gone = hidden.columns([0])

    def emptied(given: torch.Tensor) -> torch.Tensor:
        given = given.clone()
        given[..., gone] = 0
        return given

    small = twin(module)
    narrow(small, hidden, units)
    wanted = _Watch(module).watch(run, pinned={hidden.into: emptied}).answers
    try:
        return _alike(wanted, run(small))
    except Exception:  # whatever the user's forward raises where a size is written into it
        return False
