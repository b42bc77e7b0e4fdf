"""Students: smaller modules made of a torch module, by leaving blocks out and by taking channels away."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paretune.ask.artifact import Artifact
from paretune.build import history
from paretune.build.passing import is_passing
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_blocks
from paretune.forms.torch_blocks import Block
from paretune.forms.torch_edits import difference
from paretune.forms.torch_program import quiet
from paretune.forms.torch_run import Run, runner
from paretune.training.healing import sealed
from paretune.training.learner import demand_trainable
from paretune.training.lesson import demand_lessons
from paretune.training.plan import Teaching
from paretune.training.pupil import pupil


@dataclass(frozen=True)
class Size:
    """How much of a model a student keeps: shares of its widths and of its blocks, 0 … 1."""

    width: float
    depth: float

    def __str__(self) -> str:
        return f"width {self.width:.3g}, depth {self.depth:.3g}"


def student_of(plan: Teaching, artifact: Artifact, fit: Fit, name: str) -> tuple[Artifact, tuple[str, ...]]:
    """What is to learn by the knob ``student``, and what was made, in words.

    Raises
    ------
    BuildError
        If the workload has no student, or none can be made.
    """
    if plan.student != "made":
        return pupil(plan.student, artifact, fit, name), ()
    student, note = made(artifact, Size(plan.width, plan.depth), plan.weights, fit, name, "student")
    return student, (note,)


def made(artifact: Artifact, size: Size, weights: str, fit: Fit, name: str, part: str) -> tuple[Artifact, str]:
    """A smaller student of the artefact's module, sealed in a directory called ``part`` of ``fit.scratch``; a note.

    Blocks are left out first, evenly over every list of modules; then the channels of least L2 norm go from every group
    of layers that the model runs without (torch-pruning's dependency graph: Fang et al. 2023, "DepGraph").

    Parameters
    ----------
    weights
        ``kept``: those of what is left; ``fresh``: drawn anew by the modules' own ``reset_parameters``.

    Raises
    ------
    BuildError
        If the model cannot learn or run, or nothing of it can be left out.
    """
    module = form.restore(artifact)
    demand_trainable(module, name)
    run = runner(artifact, demand_lessons(fit.train, name), graded=True)
    left_out = _left_out(module, size.depth, run) if size.depth < 1 else ()
    edits = torch_blocks.edits(left_out)
    for edit in edits:
        edit.apply(module)
    narrow: tuple[Narrow, ...] = ()
    reason = ""
    if size.width < 1:
        before = copy.deepcopy(module)
        narrow, reason = narrowed(module, size.width, run)
        edits = (*edits, *difference(before, module))
    if not edits:
        raise BuildError(
            f"no smaller student with {size} can be made of the model{f': {reason}' if reason else ''}", where=name,
            do="set width or depth below 1 (depth where there are lists of blocks), or use student=given",
        )  # fmt: skip
    untouched = refreshed(module, fit.seed) if weights == "fresh" else ()
    place = dataclasses.replace(fit, scratch=fit.scratch / part)
    student = sealed(module, artifact, artifact, place, (*form.edits_of(artifact), *edits))
    rows = [*((block.path, 1, 0) for block in left_out), *narrow]
    fit.record(
        history.table(name.partition(".")[0], part, ("block, or layer and its channels", "before", "after"), rows)
    )
    return student, _told(part, size, left_out, narrow, untouched, weights, artifact, student)


def _left_out(module: torch.nn.Module, depth: float, run: Run) -> tuple[Block, ...]:
    """Blocks to leave out, evenly over each list; a list keeps the share ``depth`` of its weighty members, one at the
    least."""
    lists: dict[str, list[Block]] = defaultdict(list)
    for ways in torch_blocks.candidates(module, run):
        lists[ways[0].path.rpartition(".")[0]].append(ways[0])
    found: list[Block] = []
    for path, blocks in lists.items():
        members = module.get_submodule(path).children() if path else module.children()
        total = sum(any(parameter.ndim > 1 for parameter in member.parameters()) for member in members)
        surplus = min(len(blocks), total - max(1, round(depth * total)))
        found += [blocks[int((place + 0.5) * len(blocks) / surplus)] for place in range(surplus)]
    return tuple(found)


# -- width -----------------------------------------------------------------------------------------------------------

Narrow = tuple[str, int, int]
"""A group of layers by the path of its first, its channels before and after."""


def narrowed(module: torch.nn.Module, width: float, run: Run) -> tuple[tuple[Narrow, ...], str]:
    """Take channels away in place; what was narrowed, and why the last other group could not be, in words.

    Groups are tried one after the other, and undone where the model no longer runs or answers in another shape: where
    sizes are written into its ``forward``, or a shortcut pads its channels. Afterwards all parameters have gradients.
    """
    import torch_pruning

    with torch.no_grad():
        shapes = [one.shape for one in run(module)]
    done: list[Narrow] = []
    reason = "torch-pruning finds no layers whose channels it can take away"
    for path, channels, group in _groups(torch_pruning, module, run):
        kept = max(1, round(width * channels))
        before, shared = _snapshot(module), _shared(module)
        try:
            norms = torch_pruning.importance.MagnitudeImportance(p=2)(group)
            group.prune(torch.argsort(norms, stable=True)[: channels - kept].tolist())
            _tie(module, shared)
            with torch.no_grad():
                if [one.shape for one in run(module)] != shapes:
                    raise ValueError(f"it answers in another shape with fewer channels of {path}")
            done.append((path, channels, kept))
        except Exception as error:  # whatever torch-pruning or the user's forward raises
            if is_passing(error):
                raise  # a lack of memory says nothing of the model
            reason = f"without channels of {path}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            _undo(before)
    return tuple(done), reason


def _groups(pruning: Any, module: torch.nn.Module, run: Run) -> Iterator[tuple[str, int, Any]]:
    """Layers whose channels go together: the path of the first, the number of its channels, the group."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the graph is read off what gradients would flow through
    names = {part: path for path, part in module.named_modules()}
    graph = pruning.DependencyGraph()
    try:
        with torch.enable_grad(), quiet():
            graph.build_dependency(module, (), forward_fn=lambda model, inputs: run(model), verbose=False)
            roots = [group[0].dep.target.module for group in graph.get_all_groups()]
    except Exception as error:  # a forward that torch-pruning cannot follow: it has no groups
        if is_passing(error):
            raise
        return
    for root in roots:
        pruner = graph.get_pruner_of_module(root)
        channels = pruner.get_out_channels(root)
        yield names[root], channels, graph.get_pruning_group(root, pruner.prune_out_channels, list(range(channels)))


def _snapshot(module: torch.nn.Module) -> list[tuple[torch.nn.Module, dict[str, Any]]]:
    """The attributes of every module; pruning puts other tensors in their place and never writes into them."""
    return [
        (part, {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(part).items()})
        for part in module.modules()
    ]


def _undo(snapshot: Sequence[tuple[torch.nn.Module, dict[str, Any]]]) -> None:
    for part, held in snapshot:
        vars(part).clear()
        vars(part).update(held)


def _shared(module: torch.nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [alike for alike in names.values() if len(alike) > 1]


def _tie(module: torch.nn.Module, shared: Sequence[Sequence[str]]) -> None:
    """Make shared parameters one again; a ValueError where they came apart."""
    for first, *others in shared:
        kept = module.get_parameter(first)
        for name in others:
            if not torch.equal(kept, module.get_parameter(name)):
                raise ValueError(f"the shared weights {first} and {name} come apart")
            path, _, key = name.rpartition(".")
            module.get_submodule(path)._parameters[key] = kept


# -- weights ---------------------------------------------------------------------------------------------------------


def refreshed(module: torch.nn.Module, seed: int) -> tuple[str, ...]:
    """Draw all parameters anew, seeded, by the modules' own ``reset_parameters``; names of those that have no such."""
    untouched = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for path, part in module.named_modules():
            own = [f"{path}.{name}" if path else name for name, _ in part.named_parameters(recurse=False)]
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if own and callable(reset):
                reset()
            else:
                untouched += own
    return tuple(untouched)


def _told(
    part: str, size: Size, left_out: Sequence[Block], narrow: Sequence[Narrow], untouched: Sequence[str], weights: str,
    before: Artifact, after: Artifact,
) -> str:  # fmt: skip
    """What was made, in words and figures."""
    said = [f"{part} made with {size}, weights {weights}"]
    if left_out:
        said.append(f"{_many(len(left_out), 'block')} left out: {_listed([block.path for block in left_out])}")
    if narrow:
        widths = _listed([f"{path} {channels} → {kept}" for path, channels, kept in narrow])
        said.append(f"{_many(len(narrow), 'group')} of layers narrowed: {widths}")
    if untouched:
        said.append(f"kept all the same, as their modules have no reset_parameters: {_listed(untouched)}")
    said.append(f"parameters {before.parameters} → {after.parameters}")
    return "; ".join(said)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + rest
