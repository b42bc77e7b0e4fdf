"""Data as users have it becomes the same batches, however it is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split, as_array, feeds
from paretune.errors import DataError

X = np.random.default_rng(0).normal(size=(23, 2, 3)).astype(np.float32)
Y = np.arange(23) % 4


def pairs(inputs=X, labels=Y):
    return list(zip(inputs, labels, strict=True))


def whole(data, collate=None):
    return Split.whole(data, collate, "heldout")


def joined(split, size):
    parts = list(split.batches(size))
    assert all(len(part) == size for part in parts[:-1])
    inputs = tuple(np.concatenate(arrays) for arrays in zip(*(part.inputs for part in parts), strict=True))
    labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
    return inputs, labels


def refused(call, *args):
    with pytest.raises(DataError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert caught.value.where
    assert caught.value.do
    return str(caught.value)


def read(data, collate=None):
    return list(whole(data, collate).batches(4))


@given(st.integers(1, 30), st.integers(1, 30))
def test_batches_joined_are_the_whole(count, size):
    inputs, labels = joined(whole(pairs(X[:count], Y[:count])) if count <= 23 else whole(pairs()), size)
    np.testing.assert_array_equal(inputs[0], X[:count])
    np.testing.assert_array_equal(labels, Y[:count])
    assert inputs[0].dtype == np.float32


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_taking_is_a_seeded_draw_without_repeats(count, seed):
    split = whole(pairs())
    taken = split.take(count, seed)
    assert len(taken) == min(count, 23)
    assert len(set(taken.indices)) == len(taken)
    assert set(taken.indices) <= set(split.indices)
    assert split.take(count, seed).indices == taken.indices
    # fewer are the beginning of more: what is known of the larger draw covers the smaller
    assert split.take(count // 2, seed).indices == taken.indices[: count // 2]


def test_different_seeds_draw_differently():
    assert len({whole(pairs()).take(23, seed).indices for seed in range(20)}) == 20


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
        DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=5, shuffle=True),
        DataLoader(pairs(), batch_size=None),
        DataLoader(pairs(), batch_size=2, drop_last=True),
        DataLoader(pairs(), sampler=WeightedRandomSampler([1.0] * 23, 5)),
        Subset(pairs(), range(23)),
        [(x, int(y)) for x, y in pairs()],
        [(torch.from_numpy(x).requires_grad_(), torch.tensor(y)) for x, y in pairs()],
        [(torch.from_numpy(x).bfloat16().double().float(), y) for x, y in pairs(X.round())],
    ],
)
def test_the_kinds_of_data_are_one(data):
    split = whole(data)
    assert len(split) == 23
    (x,), labels = joined(split, 4)
    np.testing.assert_allclose(x, X.round() if np.all(x == x.round()) else X)
    np.testing.assert_array_equal(labels, Y)
    assert split.keys is None


def test_a_sampler_that_restricts_its_loader_counts():
    train = DataLoader(pairs(), batch_size=4, sampler=SubsetRandomSampler(range(15)))
    heldout = DataLoader(pairs(), batch_size=4, sampler=SubsetRandomSampler([22, 15, 16]))
    ours, theirs = whole(train), whole(heldout)
    assert (len(ours), len(theirs)) == (15, 3)
    np.testing.assert_array_equal(joined(theirs, 2)[1], Y[[22, 15, 16]])
    assert not set(ours.digests) & set(theirs.digests)


def test_several_inputs_by_place_and_by_name():
    z = np.arange(23)
    (a, b), _ = joined(whole([((x, int(n)), 0) for x, n in zip(X, z, strict=True)]), 5)
    np.testing.assert_array_equal(a, X)
    np.testing.assert_array_equal(b, z)
    # the second half names them in another order
    items = [({"x": x, "n": n} if n < 11 else {"n": n, "x": x}, 0) for x, n in zip(X, z, strict=True)]
    split = whole(items)
    (a, b), _ = joined(split, 4)
    assert split.keys == ("x", "n")
    np.testing.assert_array_equal(a, X)
    np.testing.assert_array_equal(b, z)


def test_a_collate_function_pads():
    texts = [([1] * length, length % 2) for length in (3, 1, 4, 1, 5)]

    def pad(items):
        longest = max(len(ids) for ids, _ in items)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in items])
        return {"ids": ids, "mask": ids > 0}, torch.tensor([label for _, label in items])

    split = whole(texts, pad)
    first, second = split.batches(3)
    assert split.keys == ("ids", "mask")
    assert [array.shape for array in first.inputs] == [(3, 4), (3, 4)]
    assert second.inputs[0].shape == (2, 5)
    assert split.input_specs(["ids", "mask"]) == (
        TensorSpec("ids", "int64", ("batch", "length_1")), TensorSpec("mask", "bool", ("batch", "length_1")),
    )  # fmt: skip
    assert len(set(split.digests)) == 4
    assert whole(DataLoader(texts, collate_fn=pad)).digest == split.digest

    def pad_with_ones(items):
        longest = max(len(ids) for ids, _ in items)
        ids = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in items])
        return {"ids": ids, "mask": ids > 0}, torch.tensor([label for _, label in items])

    assert whole(texts, pad_with_ones).digest != split.digest, "each example alone is the same, what is answered is not"


def test_examples_are_decoded_once():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    split = whole(Counting(pairs()))
    for _ in range(3):
        joined(split, 7)
    assert Counting.reads == 23


@given(st.integers(0, 22))
def test_digests_know_every_input_and_the_whole_every_label(place):
    split = whole(pairs())
    changed, relabelled = X.copy(), Y.copy()
    changed[place, 1, 1] += 1
    relabelled[place] += 1
    other = whole(pairs(changed))
    assert [a != b for a, b in zip(split.digests, other.digests, strict=True)] == [i == place for i in range(23)]
    assert whole(pairs(X, relabelled)).digests == split.digests
    assert len({split.digest, other.digest, whole(pairs(X, relabelled)).digest}) == 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(pairs())


class Measured(Stream):
    def __len__(self):
        return 23


class Unsure(list):
    def __len__(self):
        raise TypeError("who knows")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (Stream(), "Stream, which has no length or cannot be indexed"),
        (DataLoader(Stream(), batch_size=2), "Stream, which has no length or cannot be indexed"),
        (Measured(), "Measured, which cannot be indexed"),
        (DataLoader(Measured()), "Measured, which cannot be indexed"),
        (Unsure(), "its length cannot be asked: TypeError('who knows')"),
        (None, "is a NoneType"),
        ((x for x in X), "is a generator"),
        ([], "holds no examples"),
        (DataLoader(pairs(), sampler=SubsetRandomSampler([])), "holds no examples"),
        (X, "heldout[0]: is a ndarray, not a pair (inputs, label)"),
        ([(1, 2, 3)], "is a tuple of 3, not a pair"),
        ({"a": 1}, "heldout[0]: reading it failed: KeyError(0)"),
        ([("text", 1)], "holds a str where an array"),
        ([(np.datetime64("2020-01-01"), 1)], "holds a datetime64"),
        ([(object(), 1)], "holds a object"),
        ([(([[1, 2], [3]],), 1)], "cannot be made an array"),
        ([(X[0], None), (X[0], 1)], "some labels are missing"),
        ([(X[0], 1), (X[0, :1], 1)], "heldout[0…1]: examples differ in shape: (1, 3) and (2, 3)"),
        ([(X[0], [1]), (X[0], [1, 2])], "examples differ in shape"),
        ([({"a": 1}, 1), ({"b": 1}, 1)], "number or names of their inputs"),
        ([({"a": 1, "b": 1}, 1), ({"a": 1}, 1)], "number or names of their inputs"),
        ([((1, 2), 1), ((1, 2, 3), 1)], "number or names of their inputs"),
        ([(1, 1), ((1, 2), 1)], "number or names of their inputs"),
        ([((), 1)], "gave inputs of shape nothing"),
    ],
)
def test_bad_data_is_refused_in_one_line_that_says_where_and_what_to_do(data, what):
    assert what in refused(read, data)


@pytest.mark.parametrize(
    ("collate", "what"),
    [
        (lambda items: 1 / 0, "heldout[0…3]: collate failed: ZeroDivisionError"),
        (lambda items: X, "collate returned a ndarray"),
        (lambda items: (X, Y, 1), "collate returned a tuple"),
        (lambda items: (X[:1], Y[:4]), "collating 4 items gave inputs of shape (1, 2, 3)"),
        (lambda items: (3.0, Y[:4]), "gave inputs of shape ()"),
        (lambda items: (X[:4], Y[:3]), "gave labels of shape (3,)"),
        (lambda items: (X[:4], 1), "gave labels of shape ()"),
        (lambda items: (["a"] * 4, Y[:4]), "holds a str"),
        (lambda items: ({"a": X[: len(items)], str(len(items)): X[: len(items)]}, None), "names its inputs a, 3"),
    ],
)
def test_a_bad_collate_function_is_refused(collate, what):
    assert what in refused(read, pairs(), collate)


def test_a_dataset_that_fails_says_at_which_example():
    class Failing(list):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("bad\nsector")
            return super().__getitem__(index)

    assert "heldout[5]: reading it failed: OSError('bad\\nsector')" in refused(read, Failing(pairs()))


def test_specs_free_the_axes_that_vary():
    items = [((np.zeros((length, 3), np.float32), 1), 0) for length in (2, 5, 2)]
    split = whole(items)
    assert split.input_specs(["a", "b"]) == (
        TensorSpec("a", "float32", ("batch", "length_1", 3)), TensorSpec("b", "int64", ("batch",)),
    )  # fmt: skip
    assert "number of axes differs" in refused(whole([(X[0], 0), (X[0, 0], 0)]).input_specs, ["a"])


def artifact(*specs):
    return Artifact("onnx", None, {}, specs, ())


def test_feeds_follow_the_models_order_by_name():
    split = whole([({"b": n, "a": x}, 0) for n, x in enumerate(X)])
    model = artifact(TensorSpec("a", "float32", ("batch", "h", 3)), TensorSpec("b", "int64", ("batch",)))
    fed = list(feeds(split, model, 10))
    assert [len(a) for a, _ in fed] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([a for a, _ in fed]), X)
    np.testing.assert_array_equal(np.concatenate([b for _, b in fed]), range(23))


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        ([("x", "float32", ("batch", 3, 2))], "heldout: x: has shape (4, 2, 3) and the model takes ('batch', 3, 2)"),
        ([("x", "float32", ("batch", 2))], "has shape"),
        ([("x", "float32", (1, 2, 3))], "has shape"),
        ([("x", "float64", ("batch", 2, 3))], "is float32 and the model takes float64"),
        (
            [("x", "float32", ("batch", 2, 3)), ("y", "float32", ("batch",))],
            "gives 1 inputs and the model takes 2: x, y",
        ),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(specs, what):
    model = artifact(*(TensorSpec(*spec) for spec in specs))
    assert what in refused(lambda: list(feeds(whole(pairs()), model, 4)))


def test_names_that_do_not_fit_the_model_are_refused():
    model = artifact(TensorSpec("b", "float32", ("batch", 2, 3)))
    told = refused(lambda: list(feeds(whole([({"a": x}, 0) for x in X]), model, 4)))
    assert "names its inputs a and the model b" in told


def test_a_half_tensor_is_widened_as_numpy_has_none():
    assert as_array(torch.ones(2, dtype=torch.bfloat16), "x").dtype == np.float32
    assert as_array(torch.ones(2, dtype=torch.float16), "x").dtype == np.float16
