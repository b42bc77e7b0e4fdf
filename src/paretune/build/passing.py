"""Passing failures: those that may be the moment's fault and not the model's, and are not remembered."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_KINDS = ("OutOfMemoryError", "AcceleratorError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""Names of torch's exception types; no framework is imported here to ask them."""
_MEMORY = ("out of memory", "can't allocate memory", "could not create a memory", "bad_alloc", "cannot allocate memory")
_DEVICE = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "cublasCreate", "HIP error", "NCCL error")
_PEERS = ("closed by peer", "reset by peer", "gloo/transport")
"""Another process of several ended, and took the connection with it."""


def lacks_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of a device, was not enough: by the error or by one that it came of."""
    return any(_is_memory(one) for one in _chain(error))


def is_passing(error: BaseException) -> bool:
    """Whether a device or another process failed, or memory was not enough: another try or machine may do better."""
    return any(_is_memory(one) or _is_device(one) for one in _chain(error))


def _is_memory(error: BaseException) -> bool:
    lacks = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or lacks or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(told in str(error).lower() for told in _MEMORY)


def _is_device(error: BaseException) -> bool:
    if type(error).__name__ in _KINDS:
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in (*_DEVICE, *_PEERS))


def _chain(error: BaseException) -> Iterator[BaseException]:
    told: BaseException | None = error
    seen: set[int] = set()
    while told is not None and id(told) not in seen:
        seen.add(id(told))
        yield told
        told = told.__cause__ or told.__context__
