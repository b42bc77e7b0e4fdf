"""Which examples a step takes follows from seed and step alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paretune.training.order import Order, parts


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 9))
def test_an_epoch_takes_no_example_twice_and_all_batches_have_one_size(examples, batch, seed):
    order = Order(examples, min(batch, examples), seed)
    for epoch in (0, 1):
        steps = [order.places(epoch * order.steps + number) for number in range(order.steps)]
        taken = np.concatenate(steps)
        assert {len(step) for step in steps} == {order.batch}
        assert len(set(taken.tolist())) == len(taken) > examples - batch
        assert set(taken.tolist()) <= set(range(examples))


def test_epochs_and_seeds_differ_and_repeat():
    order = Order(100, 100, 4)
    assert order.places(0).tolist() != order.places(1).tolist()
    assert order.places(0).tolist() != Order(100, 100, 5).places(0).tolist()
    assert order.places(1).tolist() == Order(100, 100, 4).places(1).tolist()


@given(st.integers(1, 200), st.integers(0, 64))
def test_parts_are_few_even_and_nothing_is_lost(count, size):
    made = parts(np.arange(count), size)
    assert np.concatenate(made).tolist() == list(range(count))
    sizes = [len(part) for part in made]
    assert max(sizes) - min(sizes) <= 1
    fewest = 1 if size == 0 else -(-count // size)
    assert len(made) == (fewest if size != 2 or count % 2 == 0 or count == 1 else fewest - 1)


@given(st.integers(2, 99), st.integers(2, 20))
def test_no_part_of_a_batch_is_a_single_example(count, size):
    found = parts(np.arange(count), size)
    assert np.array_equal(np.concatenate(found), np.arange(count))
    assert min(map(len, found)) >= 2
    assert max(map(len, found)) <= max(size, 3)
