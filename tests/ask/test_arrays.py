"""A workload from a model file and arrays."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from paretune.ask.arrays import from_npz
from paretune.ask.workload import partition
from paretune.errors import DataError


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    return path


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def test_arrays_become_named_inputs_and_labels(tmp_path, model):
    x, t = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12)
    data = saved(tmp_path, x=x, t=t, label=t % 3, train_x=x[:4] + 100, train_t=t[:4], train_label=t[:4])
    work = from_npz(model, data, "mse")
    assert (work.name, work.model, work.score) == ("net", str(model), "mse")
    parts = partition(work)
    assert parts.heldout.keys == ("x", "t")
    (whole,) = parts.heldout.batches(12)
    np.testing.assert_array_equal(whole.inputs[0], x)
    np.testing.assert_array_equal(whole.inputs[1], t)
    np.testing.assert_array_equal(whole.labels, t % 3)
    assert len(parts.fit) + len(parts.ranking) == 4


def test_without_train_arrays_a_slice_of_heldout_is_used(tmp_path, model):
    data = saved(tmp_path, x=np.random.default_rng(0).normal(size=(50, 3)), label=np.zeros(50))
    work = from_npz(model, data)
    assert work.train is None
    assert (len(partition(work).fit), len(partition(work).heldout)) == (10, 40)


def refused(model, data):
    with pytest.raises(DataError) as caught:
        from_npz(model, data)
    assert caught.value.where
    assert caught.value.do
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"x": np.zeros(3)}, "no array 'label'"),
        ({"label": np.zeros(3)}, "no inputs"),
        ({"x": np.zeros(3), "label": np.zeros(4)}, "x 3, label 4"),
        ({"x": np.zeros((0, 2)), "label": np.zeros(0)}, "or are empty"),
        ({"x": np.float32(3), "label": np.zeros(1)}, "x 0"),
        ({"x": np.zeros(3), "label": np.zeros(3), "train_x": np.zeros(3)}, "(train_…): has no array 'label'"),
        ({"x": np.array([{}, {}]), "label": np.zeros(2)}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, model, arrays, what):
    assert what in refused(model, saved(tmp_path, **arrays))


def test_what_is_no_npz_is_refused(tmp_path, model):
    path = tmp_path / "data.npz"
    assert "there is no such file" in refused(model, path)
    assert "there is no such file" in refused(model, tmp_path)
    archive, array = io.BytesIO(), io.BytesIO()
    np.savez_compressed(archive, x=np.arange(1000), label=np.arange(1000))
    np.save(array, np.zeros(3))
    torn = bytearray(archive.getvalue())
    torn[60:90] = b"\xff" * 30
    for content in (b"", b"no arrays", pickle.dumps({"x": 1}), archive.getvalue()[:200], bytes(torn)):
        path.write_bytes(content)
        assert "cannot be read" in refused(model, path)
    path.write_bytes(array.getvalue())
    assert "one bare array" in refused(model, path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops   ")
    assert "cannot be read" in refused(model, path)


def test_reading_never_unpickles(tmp_path, model):
    class Bomb:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'went-off')!r}, 'w')",)

    refused(model, saved(tmp_path, x=np.array([Bomb()], object), label=np.zeros(1)))
    (tmp_path / "data.npz").write_bytes(pickle.dumps(Bomb()))
    refused(model, tmp_path / "data.npz")
    assert not (tmp_path / "went-off").exists()


def test_a_missing_model_is_named(tmp_path):
    assert "no such model file" in refused(tmp_path / "no.onnx", tmp_path / "no.npz")
