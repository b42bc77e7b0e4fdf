"""A failure that another try may mend is told from one that is the model's."""

import errno

import pytest
import torch

from paretune.build.passing import is_passing, lacks_memory
from paretune.errors import BuildError


def caused(error: Exception) -> BuildError:
    try:
        raise BuildError("the model fails in training") from error
    except BuildError as told:
        return told


def cpu_allocator() -> RuntimeError:
    try:
        torch.empty(2**55)
    except RuntimeError as error:
        return error
    raise AssertionError("so much memory there is nowhere")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        cpu_allocator(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("could not create a memory object"),
    ],
)
def test_want_of_memory(error):
    for told in (error, caused(error), caused(caused(error))):
        assert lacks_memory(told)
        assert is_passing(told)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: unspecified launch failure",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234",
    ],
)
def test_a_device_that_fails(text):
    assert is_passing(caused(RuntimeError(text)))
    assert not lacks_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [ValueError("two"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(errno.ENOENT, "gone"),
     BuildError("all parameters are frozen"), ValueError("out of memory")],
)  # fmt: skip
def test_what_the_model_does_wrong_every_time(error):
    assert not is_passing(error)
    assert not is_passing(caused(error))
