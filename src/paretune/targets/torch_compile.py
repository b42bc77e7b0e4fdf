"""PyTorch compiled by TorchInductor (``torch.compile``) to C++ for the CPU at hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from paretune.ask.artifact import Artifact
from paretune.ask.target import Arrays, Runner, Settings
from paretune.errors import MeasureError

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@dataclass(frozen=True)
class TorchCompile:
    """``torch.compile`` with fixed shapes for one batch size; lengths that vary stay free."""

    name: ClassVar[str] = "torch_compile"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14"}
    reference: ClassVar[bool] = False
    cost: ClassVar[float] = 60.0

    @contextlib.contextmanager
    def open(self, artifact: Artifact, settings: Settings) -> Iterator[Runner]:
        """Compile for ``settings.batch`` in a cache directory that is removed again.

        Raises
        ------
        MeasureError
            If the model does not compile.
        """
        import torch

        from paretune.forms import torch as form

        module = form.restore(artifact)
        threads = torch.get_num_threads()
        saved = {name: os.environ.get(name) for name in CACHES}
        with tempfile.TemporaryDirectory(prefix="paretune-", ignore_cleanup_errors=True) as cache:
            os.environ.update(dict.fromkeys(CACHES, cache))
            torch.set_num_threads(settings.threads)
            try:
                yield _compiled(module, artifact, settings.batch)
            finally:
                torch._dynamo.reset()
                torch.set_num_threads(threads)
                for name, value in saved.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})

    def unavailable(self) -> str | None:
        """Says so when no C++ compiler is found, without which nothing can be compiled."""
        wanted = ["cl"] if sys.platform == "win32" else ["g++", "clang++", "c++"]
        named = os.environ.get("CXX")
        if any(shutil.which(name) for name in ([named] if named else wanted)):
            return None
        return f"no C++ compiler ({named or ' or '.join(wanted)}) is on the PATH, and torch.compile needs one"

    @classmethod
    def light(cls, throughput: bool) -> tuple[Self, ...]:
        """The one setting there is."""
        del throughput
        return (cls(),)

    def portable(self, artifact: Artifact, into: Path) -> Artifact | None:
        """The model as ``model.pt2``, to be compiled where it is opened; None if it cannot be exported."""
        from paretune.forms import torch_export

        return torch_export.export_program(artifact, into)


def _compiled(module: Any, artifact: Artifact, batch: int) -> Runner:
    import torch
    from torch._inductor import config

    from paretune.forms import torch as form
    from paretune.forms import torch_export
    from paretune.forms.torch_program import quiet

    lengths = any(isinstance(axis, str) for spec in artifact.inputs for axis in spec.shape[1:])
    # compiled in this process: worker processes would live on and disturb what is measured
    with config.patch(compile_threads=1):
        compiled = torch.compile(
            torch_export.Flat(module, form.keywords(artifact)), dynamic=None if lengths else False, backend="inductor"
        )
        runner = _Runner(compiled, artifact, batch)
        try:
            with quiet():
                runner.infer(form.sample_inputs(artifact.inputs, batch, seed=0))
        except Exception as error:  # dynamo, inductor and the C++ compiler each fail in their own way
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise MeasureError(
                f"does not compile: {type(error).__name__}: {reason}", where="torch_compile", do="use the torch target"
            ) from error
    return runner


@dataclass(frozen=True)
class _Runner:
    compiled: Callable[..., Any]
    artifact: Artifact
    batch: int

    def infer(self, inputs: Arrays) -> Arrays:
        import torch

        from paretune.forms import torch as form

        count = len(inputs[0])
        follow = all("batch" in spec.shape for spec in self.artifact.outputs)
        short = 0 < count < self.batch and follow
        if short:  # the last batch of the data: filled up, because another size would mean compiling again
            inputs = tuple(np.concatenate([part, np.repeat(part[-1:], self.batch - count, axis=0)]) for part in inputs)
        tensors = tuple(form.native(array) for array in inputs)
        for tensor, spec in zip(tensors, self.artifact.inputs, strict=True):
            for place, axis in enumerate(spec.shape):
                if place and isinstance(axis, str):
                    torch._dynamo.maybe_mark_dynamic(tensor, place)
        with torch.inference_mode():
            answers = tuple(form.to_array(tensor) for tensor in self.compiled(*tensors))
        if not short:
            return answers
        return tuple(
            np.take(answer, range(count), axis=spec.shape.index("batch"))
            for answer, spec in zip(answers, self.artifact.outputs, strict=True)
        )
