"""Batches come back from their files as they were written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paretune.check.feed import Feed

DTYPES = st.one_of(
    st.just(np.dtype("bool")), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.complex_number_dtypes(),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
)  # fmt: skip
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
BATCHES = st.lists(st.lists(ARRAYS, max_size=3).map(tuple), max_size=4)


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(BATCHES)
@settings(max_examples=60, deadline=None)
def test_reading_gives_what_was_written(batches: list[tuple[np.ndarray[Any, Any], ...]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        read = Feed.write(iter(batches), Path(place) / "feed").read()
        assert len(read) == len(batches)
        for got, wanted in zip(read, batches, strict=True):
            assert len(got) == len(wanted)
            assert all(map(same, got, wanted))
            assert all(array.ctypes.data % 64 == 0 for array in got if array.size), "kernels like aligned inputs"


def test_what_lies_badly_in_memory_is_written_in_order(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    batches = [(whole.T, whole[:, ::2]), (np.asfortranarray(whole), whole[1])]
    for got, wanted in zip(Feed.write(batches, tmp_path).read(), batches, strict=True):
        assert all(map(same, got, wanted))


def test_who_writes_into_its_inputs_changes_nobody_elses(tmp_path: Path) -> None:
    feed = Feed.write([(np.ones((2, 3), np.float32),)], tmp_path)
    mine = feed.read()[0][0]
    mine[:] = 5
    assert (feed.read()[0][0] == 1).all()
