"""Where and in which arithmetic training runs: accelerate, kept from leaving traces in the process."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, parse_flag_from_env

from paretune.errors import BuildError

# cuBLAS reads it when a process asks for its first matrix product, which may be before any training
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_NAMES = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def home() -> torch.device:
    """The device that this process trains on: the one that ``accelerate launch`` gave it, else a GPU, else the CPU."""
    device: torch.device = PartialState(cpu=on_cpu()).device
    return device


def on_cpu() -> bool:
    """Whether training has nothing but CPUs, or was told to use nothing else."""
    # accelerate joins processes on CPUs only when it is told that they have nothing else
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


@contextlib.contextmanager
def accelerator(precision: str) -> Iterator[Accelerator]:
    """An accelerator for ``fp32``, ``bf16`` or ``fp16``.

    accelerate keeps the precision of a process in one place and refuses to change it; here every training has its own,
    and what the caller had set is put back. On the CPU accelerate trains in float32 when asked for fp16: there the
    loss scaling is torch's own.

    Raises
    ------
    BuildError
        If the device has no such arithmetic.
    """
    shared = (AcceleratorState._shared_state, GradientState._shared_state)
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        try:
            made = Accelerator(
                cpu=on_cpu(),
                mixed_precision=_NAMES[precision],
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # weighted here, part by part
                # a frozen head or a branch not taken must not stop several processes
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        except ValueError as error:
            raise BuildError(f"this device does not train in {precision}: {error}", do="use precision=fp32") from error
        if precision == "fp16" and made.device.type == "cpu":
            made.native_amp, made.scaler = True, torch.amp.GradScaler("cpu")
        yield made
        made.free_memory()
    finally:
        for state, held in zip(shared, before, strict=True):
            state.clear()
            state.update(held)


def channels_innermost(module: torch.nn.Module) -> None:
    """Lay out the filters of images with their channels innermost, in place; all other tensors stay as they are."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def arithmetic(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Products and convolutions in ``fp32`` (as they are), ``bf16`` or ``fp16``, where there are no gradients."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """The same numbers every time, where torch has a kernel for it: deterministic algorithms, gradients switched on."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a module whose attributes torch does not declare
    tuned, filled = torch.backends.cudnn.benchmark, memory.fill_uninitialized_memory
    short, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32; whoever wants less says bf16
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        memory.fill_uninitialized_memory = False  # it costs time, and no sound model needs it
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = tuned, short
        torch.set_float32_matmul_precision(products)
        memory.fill_uninitialized_memory = filled
