"""PyTorch in eager mode on the CPU: the runtime on which a torch model stands as the baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from paretune.ask.artifact import Artifact
from paretune.ask.knob import knob
from paretune.ask.target import Arrays, Runner, Settings

if TYPE_CHECKING:
    import torch as torch_


@dataclass(frozen=True)
class Torch:
    """Eager PyTorch (``torch.inference_mode``), with or without autocast to bfloat16."""

    name: ClassVar[str] = "torch"
    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    needs: ClassVar[Mapping[str, str]] = {"torch": "torch>=2.11,<2.14"}
    reference: ClassVar[bool] = False
    cost: ClassVar[float] = 2.0

    precision: str = knob("fp32", "arithmetic of products and convolutions", choices=("fp32", "bf16"))

    @contextlib.contextmanager
    def open(self, artifact: Artifact, settings: Settings) -> Iterator[Runner]:
        """Restore the module and run it as it is; raises :class:`ArtifactError` when it cannot be restored."""
        import torch

        from paretune.forms import torch as form

        before = torch.get_num_threads()
        torch.set_num_threads(settings.threads)
        try:
            yield _Runner(form.restore(artifact), artifact, self.precision == "bf16")
        finally:
            torch.set_num_threads(before)

    def unavailable(self) -> str | None:
        """Never: PyTorch runs on every CPU it is built for."""
        return None

    @classmethod
    def light(cls, throughput: bool) -> tuple[Self, ...]:
        """fp32; bf16 too where the CPU has instructions for it."""
        del throughput
        return (cls(), cls(precision="bf16")) if _has_bf16() else (cls(),)

    def portable(self, artifact: Artifact, into: Path) -> Artifact | None:
        """The model as ``model.pt2``, which needs none of the user's code; None if it cannot be exported."""
        from paretune.forms import torch_export

        return torch_export.export_program(artifact, into)


@dataclass(frozen=True)
class _Runner:
    module: torch_.nn.Module
    artifact: Artifact
    bf16: bool

    def infer(self, inputs: Arrays) -> Arrays:
        import torch

        from paretune.forms import torch as form

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            return form.call(self.module, self.artifact, inputs, bare=True)


def _has_bf16() -> bool:
    import torch

    capable = torch.cpu.get_capabilities()
    return any(bool(capable.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
