"""Features: what modules inside a model give, heard by hooks, and what of a teacher's a student is held to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from paretune.errors import BuildError, ParetuneError
from paretune.forms import torch as form
from paretune.forms.torch_path import asked
from paretune.training.attention import Attention, Listening, Look, demand_alike

POOLS: dict[int, Callable[..., torch.Tensor]] = {
    3: functional.adaptive_avg_pool1d,
    4: functional.adaptive_avg_pool2d,
    5: functional.adaptive_avg_pool3d,
}
"""By the number of axes of what is pooled."""


class Taps:
    """Listens to modules of a model while it runs; hooks are there only as long as it listens.

    Of a module that runs several times in one forward pass the last run counts. Of several outputs the first tensor
    does. An attention is that of the last call within the module, at any depth.

    Parameters
    ----------
    paths
        Dotted, as ``named_modules()`` has them.
    whose
        ``student`` or ``teacher``, for errors.
    where
        The knob that named them, for errors.
    """

    def __init__(self, module: torch.nn.Module, paths: Sequence[str], whose: str, where: str) -> None:
        self._parts = {path: asked(module, path, whose, where) for path in paths}
        self._whose, self._where = whose, where
        self._outputs: dict[str, torch.Tensor] = {}
        self._looks: dict[str, Look] = {}
        self._running: list[str] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Forget what was heard, and listen to the forward passes within."""
        self._outputs.clear()
        self._looks.clear()
        self._running.clear()
        hooks: list[Any] = []
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it runs whole encoder layers past their modules
        try:
            for path, part in self._parts.items():
                hooks.append(part.register_forward_pre_hook(lambda part, given, path=path: self._running.append(path)))
                hooks.append(part.register_forward_hook(lambda part, given, answer, path=path: self._end(path, answer)))
            with Listening(self._hear):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for hook in hooks:
                hook.remove()

    def output(self, path: str) -> torch.Tensor:
        """What the module gave, float32, [n, …].

        Raises
        ------
        BuildError
            If it did not run, or gave no tensor.
        """
        if path not in self._outputs:
            raise self._silent(path, "gives no tensor in a forward pass")
        return self._outputs[path].float()

    def attention(self, path: str) -> Attention:
        """The attention within the module.

        Raises
        ------
        BuildError
            If there was none.
        """
        if path not in self._looks:
            raise self._silent(path, "attends to nothing in a forward pass")
        return self._looks[path]()

    def attends(self, path: str) -> bool:
        return path in self._looks

    def _hear(self, look: Look) -> None:
        for path in self._running:
            self._looks[path] = look

    def _end(self, path: str, answer: Any) -> None:
        self._running.remove(path)
        tensor = first_tensor(answer)
        if tensor is not None:
            self._outputs[path] = tensor

    def _silent(self, path: str, what: str) -> BuildError:
        return BuildError(
            f"{path} of the {self._whose} {what}", where=self._where,
            do="name a module that the model calls (an exported program calls none of its modules)",
        )  # fmt: skip


def first_tensor(answer: Any) -> torch.Tensor | None:
    """The first tensor of whatever a module returned; None where there is none."""
    try:
        return form.flatten_outputs(answer)[1][0]
    except ParetuneError:
        return None


# -- spatial attention -----------------------------------------------------------------------------------------------


def spatial_map(features: torch.Tensor) -> torch.Tensor:
    """Where a convolutional feature [n, channels, …] is large: the sum of squares over channels, [n, …]."""
    return features.float().pow(2).sum(dim=1)


def spatial_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of spatial maps, each divided by its Euclidean norm.

    Zagoruyko & Komodakis 2017, "Paying More Attention to Attention", section 3.1, with the sum of squares as the map.
    Numbers of channels may differ; of maps of unlike sizes both are averaged down to the smaller along each axis.
    """
    if student.ndim != teacher.ndim or student.ndim not in POOLS:
        raise BuildError(
            f"features of shape {list(student.shape[1:])} in the student and {list(teacher.shape[1:])} in the teacher "
            "have no places to compare", do="name modules that give [channels, height, width] in both",
        )  # fmt: skip
    ours, theirs = _fitted(spatial_map(student).unsqueeze(1), spatial_map(teacher).unsqueeze(1))
    flat = [functional.normalize(one.flatten(1), dim=1) for one in (ours, theirs)]
    return functional.mse_loss(flat[0], flat[1])


def _fitted(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both averaged down to the smaller size along every axis behind the channels."""
    size = [min(one, other) for one, other in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    pool = POOLS[student.ndim]
    fitted = [one if list(one.shape[2:]) == size else pool(one, size) for one in (student, teacher)]
    return fitted[0], fitted[1]


# -- hints -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitting:
    """How a student's feature is brought to the shape of a teacher's: ``kind`` is one of the names below."""

    kind: str  # "none", "channels" (along axis 1, by a 1 × 1 convolution) or "last" (along the last axis)
    ours: int
    theirs: int

    def projection(self) -> torch.nn.Module:
        """What is trained for it, beside the student."""
        if self.kind == "none":
            return torch.nn.Identity()
        made = torch.nn.Linear(self.ours, self.theirs)
        return made if self.kind == "last" else Pointwise(made)


class Pointwise(torch.nn.Module):
    """A linear map of the channels at every place: [n, channels, …] → [n, channels', …]."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.linear(features.movedim(1, -1)).movedim(-1, 1)
        return mapped


def fitting(student: torch.Tensor, teacher: torch.Tensor) -> Fitting:
    """The projection between features: along the channels of maps, along the last axis of sequences and vectors.

    Three axes are a sequence [n, length, width] where their lengths agree, else [n, channels, places].

    Raises
    ------
    BuildError
        If the features have unlike numbers of axes.
    """
    if student.ndim != teacher.ndim or student.ndim < 2:
        raise BuildError(
            f"features of shape {list(student.shape[1:])} in the student and {list(teacher.shape[1:])} in the teacher "
            "cannot be brought together", do="name modules whose features have as many axes",
        )  # fmt: skip
    sequence = student.ndim == 2 or (student.ndim == 3 and student.shape[1] == teacher.shape[1])
    axis = -1 if sequence else 1
    ours, theirs = student.shape[axis], teacher.shape[axis]
    return Fitting("none" if ours == theirs else "last" if sequence else "channels", ours, theirs)


def hint_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of a projected feature and the teacher's.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3. Maps of unlike sizes are averaged down to the
    smaller along each axis.
    """
    if student.ndim == teacher.ndim and student.ndim in POOLS and student.shape[1] == teacher.shape[1]:
        student, teacher = _fitted(student, teacher)
    demand_alike(student, teacher, "features")
    return functional.mse_loss(student.float(), teacher.float())
