"""Guide: a teacher that is listened to while it answers, and a student held to what its modules give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.attention import map_loss, relation_loss
from paretune.training.device import home
from paretune.training.distillation import Teacher
from paretune.training.features import Taps, fitting, hint_loss, spatial_loss
from paretune.training.healing import heal, sealed
from paretune.training.learner import demand_trainable
from paretune.training.lesson import Lesson, Lessons, demand_lessons
from paretune.training.loss import Call, Step
from paretune.training.plan import Healing, Teaching
from paretune.training.processes import demand_single
from paretune.training.structure import Use, attending, matched, middle, stage_ends, watch
from paretune.training.student import student_of

SPATIAL_WEIGHT = 1000.0
"""Of the mean squared difference of normalised maps (Zagoruyko & Komodakis 2017, section 4.1: β)."""


@dataclass(frozen=True)
class Pair:
    """A module of the student and the one of the teacher that it is held to."""

    student: str
    teacher: str

    def __str__(self) -> str:
        return f"{self.student}={self.teacher}"

    @classmethod
    def read(cls, texts: Sequence[str], where: str) -> tuple[Pair, ...]:
        """``student.path=teacher.path``, or one path for both.

        Raises
        ------
        BuildError
            If a text is neither, or comes twice.
        """
        pairs = []
        for text in texts:
            student, _, teacher = (part.strip() for part in text.partition("="))
            pair = cls(student, teacher or student)
            if not student or "=" in teacher or text.strip().endswith("=") or pair in pairs:
                raise BuildError(
                    f"{text!r} is no pair of modules, or comes twice", where=where,
                    do="write student.path=teacher.path",
                )  # fmt: skip
            pairs.append(pair)
        return tuple(pairs)


class Guide(Teacher):
    """A teacher some of whose modules are listened to; it answers every lesson anew, once."""

    def __init__(self, artifact: Artifact, split: Split, device: torch.device, plan: Healing) -> None:
        super().__init__(
            artifact, split, device, remember=False,
            precision=plan.teacher_precision, channels_last=plan.channels_last,
        )  # fmt: skip
        self.taps: Taps | None = None
        self._newest: tuple[Lesson, torch.Tensor] | None = None

    def __call__(self, lesson: Lesson) -> torch.Tensor:
        """Its answers to a lesson; its taps then hold what its modules gave for it."""
        if self._newest is None or self._newest[0] is not lesson:
            with contextlib.nullcontext() if self.taps is None else self.taps.listening():
                self._newest = lesson, self._answer(lesson)
        return self._newest[1]

    def watched(self, lesson: Lesson) -> tuple[Use, ...]:
        """What its modules do; see :func:`~paretune.training.structure.watch`."""
        return watch(self._model, self._names, tuple(tensor.to(self._device) for tensor in lesson.inputs))

    def listen(self, paths: Sequence[str], where: str) -> Taps:
        """From now on keep what the modules at these paths give."""
        self.taps, self._newest = Taps(self._model, paths, "teacher", where), None
        return self.taps


@dataclass(frozen=True)
class Compared:
    """A term of the loss, what it compares in words, and what projects the student's features where shapes differ."""

    term: Callable[[], torch.Tensor]
    words: tuple[str, ...]
    projections: torch.nn.ModuleList | None = None


class Guidance:
    """A student and a guide side by side, both seen to run on two training examples.

    Parameters
    ----------
    module
        The student, restored from ``artifact``.
    plan
        Its ``teacher_precision`` and ``channels_last`` are how the original is asked.
    name
        The technique's, for errors.

    Raises
    ------
    BuildError
        If the student cannot learn, there is no training data, or one of the two fails on it.
    """

    def __init__(self, module: torch.nn.Module, artifact: Artifact, fit: Fit, plan: Healing, name: str) -> None:
        demand_trainable(module, name)
        data = demand_lessons(fit.train, name)
        self.module, self.where = module.to(home()), f"{name}.pairs"
        self._names = form.keywords(artifact)
        self.guide = Guide(fit.teacher, data, home(), plan)
        self._lesson = Lessons(data, artifact, home()).at(np.arange(min(2, len(data))))
        self.student = watch(module, self._names, self._lesson.inputs)
        self.teacher = self.guide.watched(self._lesson)

    def listen(self, pairs: Sequence[Pair]) -> tuple[Taps, Taps]:
        """Taps on both sides, which hold features of two examples.

        Raises
        ------
        BuildError
            If a module does not exist, or gives nothing.
        """
        self.ours = Taps(self.module, [pair.student for pair in pairs], "student", self.where)
        theirs = self.guide.listen([pair.teacher for pair in pairs], self.where)
        with torch.no_grad(), self.ours.listening():
            form.call_flat(self.module, self._names, self._lesson.inputs)
        self.guide(self._lesson)
        return self.ours, theirs

    def around(
        self, term: Callable[[], torch.Tensor], weight: float, alone: Callable[[], bool] = lambda: False
    ) -> Callable[[Step], Step]:
        """Makes a step of distillation by the guide add ``weight`` times a term of what both taps hold.

        ``alone``: whether the term teaches alone for now.
        """

        def made(step: Step) -> Step:
            def wrapped(call: Call, lesson: Lesson) -> torch.Tensor:
                self.guide(lesson)
                with self.ours.listening():
                    answered = step(call, lesson)
                added = weight * term()
                if not alone():
                    return answered + added
                demand_single("a term that teaches alone, for it leaves parameters without gradients,", self.where)
                return added

            return wrapped

        return made

    @contextlib.contextmanager
    def naming(self, pair: Pair) -> Iterator[None]:
        """Errors within name the pair."""
        try:
            yield
        except BuildError as error:
            raise BuildError(f"{pair}: {error.what}", where=error.where or self.where, do=error.do) from error


def guided(
    plan: Teaching,
    artifact: Artifact,
    fit: Fit,
    name: str,
    compared: Callable[[Guidance], Compared],
    weight: float,
    alone: float = 0.0,
) -> Artifact:
    """The student of a plan, distilled from the original with a term of what both are heard to give; sealed.

    Parameters
    ----------
    compared
        Makes the term; what it projects with is trained with the student and left out of the artefact.
    weight
        Of the term.
    alone
        Share of the steps in which the term teaches alone.

    Raises
    ------
    BuildError
        If the plan compiles the student or asks for a consensus, nothing can be compared, no student can be made, or
        healing fails.
    """
    if plan.consensus:
        raise BuildError(
            "a teacher that is listened to answers each view as it comes", where=f"{name}.consensus",
            do="use consensus=0",
        )  # fmt: skip
    if plan.compile:
        raise BuildError(
            "a compiled module's insides cannot be listened to", where=f"{name}.compile", do="leave it off"
        )
    learner, made = student_of(plan, artifact, fit, name)
    module = form.restore(learner)
    guidance = Guidance(module, learner, fit, plan, name)
    found = compared(guidance)
    share = [0.0]  # of the steps that were made

    def each(done: int, total: int) -> None:
        share[0] = done / total

    outcome = heal(
        module, learner, fit, plan, name=name, teacher=guidance.guide, companion=found.projections, each=each,
        around=guidance.around(found.term, weight, lambda: share[0] < alone),
    )  # fmt: skip
    note = f"{name}: {outcome.line}; held to {', '.join(found.words)}"
    return sealed(module, learner, artifact, fit, form.edits_of(learner), *made, note)


# -- attention -------------------------------------------------------------------------------------------------------


def attention_term(guidance: Guidance, texts: Sequence[str], maps: str) -> Compared:
    """The mean over pairs of the losses between attention maps.

    ``maps``: ``spatial``, ``attention``, ``relations``, or ``auto``: attention maps and value relations where both
    modules attend, spatial maps elsewhere. Without ``texts`` the last attention of both is compared, as in MiniLM,
    or else the ends of all stages.

    Raises
    ------
    BuildError
        If a pair does not exist or does not fit, or none is found.
    """
    pairs = Pair.read(texts, guidance.where) or _attention_pairs(guidance, maps)
    ours, theirs = guidance.listen(pairs)
    kinds = [maps] * len(pairs)
    if maps == "auto":
        kinds = ["both" if ours.attends(one.student) and theirs.attends(one.teacher) else "spatial" for one in pairs]

    def term() -> torch.Tensor:
        total = []
        for pair, kind in zip(pairs, kinds, strict=True):
            with guidance.naming(pair):
                total.append(_compared(kind, pair, ours, theirs))
        return torch.stack(total).mean()

    with torch.no_grad():
        term()  # what does not fit is told before anything is trained
    words = {"spatial": "spatial maps", "attention": "attention maps", "relations": "value relations"}
    words["both"] = "attention maps and value relations"
    return Compared(term, tuple(f"{words[kind]} of {pair}" for pair, kind in zip(pairs, kinds, strict=True)))


def _compared(kind: str, pair: Pair, ours: Taps, theirs: Taps) -> torch.Tensor:
    if kind == "spatial":
        return SPATIAL_WEIGHT * spatial_loss(ours.output(pair.student), theirs.output(pair.teacher))
    student, teacher = ours.attention(pair.student), theirs.attention(pair.teacher)
    losses = {"attention": (map_loss,), "relations": (relation_loss,), "both": (map_loss, relation_loss)}[kind]
    return torch.stack([loss(student, teacher) for loss in losses]).sum()


def _attention_pairs(guidance: Guidance, maps: str) -> tuple[Pair, ...]:
    student, teacher = attending(guidance.student), attending(guidance.teacher)
    if maps != "spatial" and student and teacher:
        return (Pair(student[-1].path, teacher[-1].path),)
    ends = stage_ends(guidance.student), stage_ends(guidance.teacher)
    if maps in ("auto", "spatial") and all(ends):
        return tuple(Pair(one.path, other.path) for one, other in matched(*ends))
    whose = "student" if not (student if maps in ("attention", "relations") else ends[0]) else "teacher"
    what = "attention" if maps in ("attention", "relations") else "attention and no feature maps"
    raise BuildError(
        f"the {whose} has no {what} to compare", where=guidance.where,
        do="name pairs of modules, or use torch_distill_hints (an exported program calls none of its modules)",
    )  # fmt: skip


# -- hints -----------------------------------------------------------------------------------------------------------


def hint_term(guidance: Guidance, texts: Sequence[str], seed: int) -> Compared:
    """The mean over pairs of the losses between features.

    Without ``texts`` the modules half-way are compared, as in FitNets.

    Raises
    ------
    BuildError
        If a pair does not exist or does not fit, or none is found.
    """
    pairs = Pair.read(texts, guidance.where) or (_middle_pair(guidance),)
    ours, theirs = guidance.listen(pairs)
    fittings = []
    for pair in pairs:
        with guidance.naming(pair):
            fittings.append(fitting(ours.output(pair.student), theirs.output(pair.teacher)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projections = torch.nn.ModuleList(one.projection() for one in fittings)

    def term() -> torch.Tensor:
        total = []
        for pair, projection in zip(pairs, projections, strict=True):
            with guidance.naming(pair):
                projected = projection(ours.output(pair.student))
                total.append(hint_loss(projected, theirs.output(pair.teacher)))
        return torch.stack(total).mean()

    projections.to(home())
    with torch.no_grad():
        term()
    told = tuple(
        f"{pair}" + ("" if one.kind == "none" else f" (projected from {one.ours} to {one.theirs})")
        for pair, one in zip(pairs, fittings, strict=True)
    )
    return Compared(term, told, projections)


def _middle_pair(guidance: Guidance) -> Pair:
    student, teacher = middle(guidance.student), middle(guidance.teacher)
    if student is None or teacher is None:
        whose = "student" if student is None else "teacher"
        raise BuildError(
            f"nothing half-way through the {whose} was found", where=guidance.where,
            do="name pairs of modules (an exported program calls none of its modules)",
        )  # fmt: skip
    return Pair(student.path, teacher.path)
