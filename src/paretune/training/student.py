"""Students: smaller modules made of a torch module, by leaving blocks out and by taking channels away."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build import history
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.forms import torch_blocks
from paretune.forms.torch_blocks import Block
from paretune.forms.torch_dependency import ANSWERS, Proof, groups
from paretune.forms.torch_edits import difference
from paretune.forms.torch_run import Run, runner, watched
from paretune.forms.torch_width import cut, merged
from paretune.training.first_weights import draw
from paretune.training.healing import sealed
from paretune.training.importance import by_weights
from paretune.training.learner import demand_trainable
from paretune.training.lesson import demand_lessons
from paretune.training.plan import Teaching
from paretune.training.pupil import pupil
from paretune.training.selection import counted, going


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
    of layers (torch-pruning's dependency graph: Fang et al. 2023, "DepGraph").

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
    data = demand_lessons(fit.train, name)
    left_out = _left_out(module, size.depth, runner(artifact, data)) if size.depth < 1 else ()
    edits = torch_blocks.edits(left_out)
    for edit in edits:
        edit.apply(module)
    narrow: tuple[Narrow, ...] = ()
    wide: tuple[str, ...] = ()
    if size.width < 1:
        before = copy.deepcopy(module)
        narrow, wide = narrowed(module, size.width, artifact, data, fit.seed)
        edits = (*edits, *difference(before, module))
    if not edits:
        raise BuildError(
            f"no smaller student with {size} can be made of the model{f': {wide[0]}' if wide else ''}", where=name,
            do="set width or depth lower (depth where there are lists of blocks), or use student=given",
        )  # fmt: skip
    untouched = tuple(path or "the model" for path in draw(module, fit.seed)) if weights == "fresh" else ()
    place = dataclasses.replace(fit, scratch=fit.scratch / part)
    technique = name.partition(".")[0]
    student = sealed(module, artifact, artifact, place, (*form.edits_of(artifact), *edits), name=technique)
    rows = [*((block.path, 1, 0) for block in left_out), *narrow]
    fit.record(history.table(technique, part, ("block, or layer and its channels", "before", "after"), rows))
    return student, _told(part, size, left_out, narrow, wide, untouched, weights, artifact, student)


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
"""A group of layers by its name, its channels before and after."""


def narrowed(
    module: torch.nn.Module, width: float, artifact: Artifact, data: Split, seed: int
) -> tuple[tuple[Narrow, ...], tuple[str, ...]]:
    """Take the share of channels that does not fit ``width`` away, in place; what was narrowed, and what stays and why.

    Every group is proven (:mod:`paretune.forms.torch_dependency`): where sizes are written into ``forward``, or a
    shortcut pads its channels, it stays.
    """
    names, inputs = form.keywords(artifact), watched(artifact, data)
    try:
        found = groups(module, names, inputs, seed=seed)
    except BuildError as error:
        return (), (error.what,)
    scores = by_weights(module, found.groups, "l2")
    scored = [one for one in found.groups if one.name in scores]
    counts = counted(scored, scores, 1 - width, "per_layer", 1, 1)
    gone = {one: one.cuts(going(one, scores[one.name], counts[one.name])) for one in scored}
    cuts = merged(gone.values())
    fault = Proof(module, names, inputs, seed).fault_of(cuts) if cuts else None
    if fault is not None:
        return (), (fault,)
    cut(module, cuts)
    kept = {one: counts[one.name] * len(one.units[0]) for one in scored}
    rows = tuple((one.name, one.width, kept[one]) for one in gone if kept[one] < one.width)
    wide = [
        f"{one.name} has {one.width} channels, of which none goes at {width:g}"
        for one in gone
        if kept[one] == one.width
    ]
    wide += [f"{path}: {reason}" for path, reason in found.left.items() if reason != ANSWERS]
    return rows, tuple(wide) if rows or wide else ("it has no layers between others",)


# -- words -----------------------------------------------------------------------------------------------------------


def _told(
    part: str, size: Size, left_out: Sequence[Block], narrow: Sequence[Narrow], wide: Sequence[str],
    untouched: Sequence[str], weights: str, before: Artifact, after: Artifact,
) -> str:  # fmt: skip
    """What was made, in words and figures."""
    said = [f"{part} made with {size}, weights {weights}"]
    if left_out:
        said.append(f"{_many(len(left_out), 'block')} left out: {_listed([block.path for block in left_out])}")
    if narrow:
        widths = _listed([f"{path} {channels} → {kept}" for path, channels, kept in narrow])
        said.append(f"{_many(len(narrow), 'group')} of layers narrowed: {widths}")
    if wide:
        said.append(f"{'not narrowed' if narrow else 'nothing was narrowed'}: {_listed(wide)}")
    if untouched:
        said.append(f"kept all the same, for want of reset_parameters: {_listed(untouched)}")
    said.append(f"parameters {before.parameters} → {after.parameters}")
    return "; ".join(said)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + rest
