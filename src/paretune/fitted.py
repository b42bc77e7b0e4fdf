"""Fitted: within a run, a candidate with a latency to reach is refused, fitted to it, and looked at when trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from paretune.ask.artifact import Artifact
from paretune.build.candidate import Builder, Candidate
from paretune.build.history import Entry
from paretune.build.recipe import Recipe
from paretune.check.measurement import Measurement, Subject
from paretune.deliver.trial import Trial
from paretune.errors import RecipeError
from paretune.journal import Journal
from paretune.reach import asked, dry, reached

Screened = Callable[[Subject, tuple[int, ...]], Measurement]
"""Times a subject at these batch sizes."""


def demand(candidate: Candidate, batches: tuple[int, ...]) -> None:
    """Refuse a latency that nothing can be chosen for, or that a run at these batch sizes would not measure.

    Raises
    ------
    RecipeError
        If there is one, and it is such a one.
    """
    if not candidate.reach:
        return
    try:
        limit, _ = asked(candidate)
    except RecipeError as error:
        raise RecipeError(error.what, where=f"{candidate.title}: {error.where}", do=error.do) from error
    if limit.batch is not None and limit.batch not in batches:
        measured = ",".join(str(batch) for batch in sorted({*batches, limit.batch}))
        raise RecipeError(
            f"nothing is measured at batch {limit.batch} in this run", where=f"{candidate.title}: reach",
            do=f"ask --batch {measured}",
        )  # fmt: skip


def fitted(
    trial: Trial,
    builder: Builder,
    screened: Screened,
    batches: tuple[int, ...],
    journal: Journal,
    pause: Callable[[], None],
) -> Candidate:
    """The trial's candidate with the knobs that keep most of the work at its latency; the trial has the table.

    Parameters
    ----------
    pause
        Called after everything that was tried; it may raise to stop.

    Raises
    ------
    BuildError, MeasureError, RecipeError
        As for :func:`~paretune.reach.reached`; and whatever ``pause`` raises.
    """
    limit, _ = asked(trial.candidate)
    few = dry(builder)

    def build(recipe: Recipe) -> Artifact:
        with journal.building():
            return few.build(recipe)

    def timed(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        subject = Subject(f"{trial.id}-{artifact.digest[:8]}", artifact, candidate.target)
        runs = screened(subject, batches if limit.batch is None else (limit.batch,)).runs
        return {batch: run.percentile_ms(limit.name) for batch, run in runs.items()}

    def told(text: str) -> None:
        journal.say("progress", text)
        pause()

    def record(entry: Entry) -> None:
        trial.tried = (entry,)

    chosen = reached(trial.candidate, build, timed, told, record)
    journal.say("stage", f"{trial.candidate.title}: {chosen.title}")
    return chosen


def missed(wanted: Candidate, trial: Trial, confidence: float) -> Iterator[str]:
    """Where the trained model of ``trial`` misses the latency that ``wanted`` was to reach, as its interval shows.

    What was timed was not trained: healing between cuts may make others go.
    """
    assert trial.measurement is not None
    limit, _ = asked(wanted)
    for batch, run in trial.measurement.runs.items():
        if limit.batch not in (None, batch):
            continue
        found, where = run.percentile(limit.name, confidence), f"{trial.candidate.title}: {limit.name}@{batch}"
        if found is None:
            yield f"{where}: {run.samples} samples are too few to tell whether {limit.text} still holds when trained"
        elif found.low > limit.value:
            yield (
                f"{where} is {found.value:.3g} ms now that it is trained, where {limit.text} was reached before: "
                "give reach a little less"
            )
