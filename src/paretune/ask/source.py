"""Source: anything a user has → Artifact. A front door is one file under ``sources/`` and one entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from paretune.ask import plugin
from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.errors import WorkloadError


class Source(Protocol):
    """A front door.

    ``gives`` is the form it makes, ``home`` the target on which that form stands as the baseline, ``needs`` maps each
    module it imports to the requirement that installs it.
    """

    name: ClassVar[str]
    gives: ClassVar[str]
    home: ClassVar[str]
    needs: ClassVar[Mapping[str, str]]

    def read(self, model: object, examples: Split | None, into: Path) -> Artifact | None:
        """Save ``model`` into the empty directory ``into`` and seal it; None when it is not this source's kind.

        ``examples`` are a few decoded training (else held-out) examples, from which inputs are learnt; None when a
        model is measured without data. ``read`` must not run code that comes out of a file.

        Raises
        ------
        WorkloadError
            If the model is this source's kind but cannot be used as it is, or its file does not exist.
        ArtifactError
            If a file is corrupt or unsafe to open, or holds what no runtime here runs.
        """
        ...

    def native(self, array: Any) -> Any:
        """A numpy array as the framework's own tensor, for the user's scores (numpy arrays stay as they are)."""
        ...


def find(model: object, examples: Split | None, into: Path) -> tuple[Artifact, Source]:
    """The artefact of the user's model, through the first front door that takes it.

    Raises
    ------
    WorkloadError
        If no installed source takes it.
    """
    for kind in plugin.usable("sources").values():
        source: Source = kind()
        artifact = source.read(model, examples, into)
        if artifact is not None:
            return artifact, source
    what = f"file {model}" if isinstance(model, str | Path) else f"object of type {type(model).__qualname__}"
    raise WorkloadError(f"no front door takes the {what}", do="`paretune sources` lists what can be given as a model")


def native_of(form: str) -> Callable[[Any], Any]:
    """The tensors that a user's scores expect of a model in this form: its front door's, else numpy's."""
    for kind in plugin.usable("sources").values():
        if kind.gives == form:
            found: Callable[[Any], Any] = kind().native
            return found
    return lambda array: array
