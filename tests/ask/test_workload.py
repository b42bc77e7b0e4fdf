"""Workloads are loaded or refused in one line, and their data is parted honestly."""

import json
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.workload import RANKING, Workload, load, partition
from paretune.errors import CallError, DataError, WorkloadError


def items(count, seed=0, scale=1.0, shift=0.0, labels=True):
    x = np.random.default_rng(seed).normal(shift, scale, size=(count, 4)).astype(np.float32)
    return [(row, n % 3 if labels else None) for n, row in enumerate(x)]


def work(train, heldout, **options):
    return Workload("w", None, train, heldout, **options)


def refused(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    error = caught.value
    assert "\n" not in str(error)
    assert error.do
    assert error.exit_code == 2
    return str(error)


# -- loading ---------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a file into the working directory; imports are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(text, name="my_work.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


GOOD = """
    from paretune import Workload
    data = [([1.0], 0), ([2.0], 1)]
    work = Workload("mine", None, None, data)
    def made():
        return Workload("made", None, None, data)
    def breaks():
        raise RuntimeError("no data\\non this disk")
    def ends():
        raise SystemExit(3)
    def wants(argument):
        return work
    def gives_nothing():
        pass
    def wrong_part():
        return Workload("a/b", None, None, data)
    number = 5
"""


def test_a_workload_or_a_function_that_returns_one(written, tmp_path):
    written(GOOD)
    written(GOOD, "my_package/inner.py")
    written("", "my_package/__init__.py")
    assert load("my_work.py:work").name == "mine"
    assert load(f"{tmp_path / 'my_work.py'}:made").name == "made"
    assert load("my_package.inner:made").name == "made"


def test_a_file_imports_its_neighbours(written):
    written("size = 3\n", "deep/my_neighbour.py")
    written(
        "import my_neighbour\nfrom paretune import Workload\nw = Workload('w', None, None, [0] * my_neighbour.size)\n",
        "deep/my_file.py",
    )
    assert len(load("deep/my_file.py:w").heldout) == 3


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("", "does not name a workload"),
        ("my_work.py", "does not name a workload"),
        ("my_work.py:", "does not name a workload"),
        (":work", "does not name a workload"),
        ("no_such.py:work", "no_such.py: there is no such file"),
        ("no_such_module:work", "no_such_module: does not import: ModuleNotFoundError"),
        ("my_work.py:wrok", "my_work.py: has nothing named 'wrok' — it has work"),
        ("my_work.py:number", "number is a int, not a paretune.Workload"),
        ("my_work.py:gives_nothing", "gives_nothing is a NoneType"),
        ("my_work.py:breaks", "my_work.py: breaks() failed: RuntimeError('no data"),
        ("my_work.py:ends", "ends() failed: SystemExit(3)"),
        ("my_work.py:wants", "wants() failed: TypeError"),
        ("my_work.py:wrong_part", "Workload.name: 'a/b' is not a name"),
    ],
)
def test_what_is_no_workload_is_refused(written, where, what):
    written(GOOD)
    assert what in refused(WorkloadError, load, where)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def (:\n", "does not import: SyntaxError: invalid syntax (my_bad.py, line 1)"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("x = 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_that_does_not_import_is_refused_and_forgotten(written, text, what):
    written(text, "my_bad.py")
    told = refused(WorkloadError, load, "my_bad.py:work")
    assert told.startswith("my_bad.py: ")
    assert what in told
    assert "my_bad" not in sys.modules


def test_an_interrupt_is_not_an_error(written):
    written("raise KeyboardInterrupt\n", "my_bad.py")
    with pytest.raises(KeyboardInterrupt):
        load("my_bad.py:work")


def test_without_a_workload_the_nearest_name_is_offered(written):
    written("def make_it():\n    pass\n")
    assert "did you mean make_it?" in refused(WorkloadError, load, "my_work.py:makeit")
    assert "define it" in refused(WorkloadError, load, "my_work.py:zzz")


def test_a_file_does_not_take_the_place_of_a_module_in_use(written):
    written(GOOD, "json.py")
    assert "is named like the module 'json' in use" in refused(WorkloadError, load, "json.py:work")
    assert sys.modules["json"] is json


def test_a_file_may_be_loaded_again_after_a_change(written):
    written(GOOD)
    load("my_work.py:work")
    written(GOOD.replace('"mine"', '"changed"'))
    written(GOOD.replace('"mine"', '"other"'), "elsewhere/my_work.py")
    assert load("elsewhere/my_work.py:work").name == "other"


# -- the parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"name": ""}, "Workload.name: '' is not a name"),
        ({"name": "a/b"}, "Workload.name"),
        ({"name": "a\nb"}, "Workload.name"),
        ({"name": 3}, "Workload.name"),
        ({"loss": 3}, "Workload.loss: is a int, not a function"),
        ({"collate": "pad"}, "Workload.collate: is a str, not a function"),
        ({"score": "f7"}, "score: there is no built-in score 'f7'"),
    ],
)
def test_parts_that_are_not_what_they_should_be_are_refused(options, what):
    values = {"name": "w", "model": None, "train": None, "heldout": [], **options}
    assert what in refused(WorkloadError, lambda: Workload(**values))


@given(st.integers(1, 60), st.integers(2, 20), st.integers(0, 9))
def test_training_data_is_parted_into_fit_and_ranking(count, heldout, seed):
    parts = partition(work(items(count), items(heldout, seed=1)), seed)
    again = partition(work(items(count), items(heldout, seed=1)), seed)
    assert parts.heldout.indices == tuple(range(heldout))
    assert (parts.fit.indices, parts.ranking.indices) == (again.fit.indices, again.ranking.indices)
    assert set(parts.fit.indices) | set(parts.ranking.indices) == set(range(count))
    assert len(parts.ranking) == max(1, count // 5)
    if count > 1:
        assert not set(parts.fit.indices) & set(parts.ranking.indices)


def test_ranking_takes_no_more_than_it_needs():
    parts = partition(work([(float(n), 0) for n in range(6 * RANKING)], items(5)))
    assert (len(parts.ranking), len(parts.fit)) == (RANKING, 5 * RANKING)


@given(st.integers(3, 60), st.randoms(use_true_random=False))
def test_without_training_data_heldout_is_parted_by_digest(count, random):
    data = items(count)
    shuffled = random.sample(data, count)
    parts, other = partition(work(None, data)), partition(work(None, shuffled), seed=5)
    assert parts.fit is parts.ranking
    assert len(parts.fit) == max(1, count // 5)
    assert not set(parts.fit.digests) & set(parts.heldout.digests)
    assert len(parts.fit) + len(parts.heldout) == count
    # the same examples in another order, under another seed, are parted alike
    assert set(other.fit.digests) == set(parts.fit.digests)
    assert "no training data" in parts.warnings[0]


def test_a_limit_draws_from_heldout():
    data = work(items(20), items(50, seed=1))
    few = partition(data, 3, heldout_limit=10)
    assert len(few.heldout) == len(set(few.heldout.indices)) == 10
    assert partition(data, 3, heldout_limit=10).heldout.indices == few.heldout.indices
    assert partition(data, 4, heldout_limit=10).heldout.indices != few.heldout.indices
    assert partition(data, 3, heldout_limit=500).heldout.indices == tuple(range(50))


@pytest.mark.parametrize(
    ("train", "heldout", "limit", "what"),
    [
        (None, [], None, "heldout: holds no examples"),
        ([], items(9), None, "train: holds no examples"),
        (None, items(1), None, "heldout: holds one example"),
        (items(9), items(1), None, "heldout: holds one example"),
        (None, items(2), None, "heldout: is too small to be split"),
        (items(9), items(9), 1, "heldout_limit: 1 is too few"),
        (items(9), items(9), 0, "heldout_limit: 0 is too few"),
        (items(9), items(9), -3, "heldout_limit: -3 is too few"),
        (items(9), items(9, labels=False), None, "heldout: has no labels"),
        (items(9, labels=False), items(9), None, "train: has no labels"),
        (None, None, None, "heldout: is a NoneType"),
        (5, items(9), None, "train: is a int"),
    ],
)
def test_data_from_which_nothing_follows_is_refused(train, heldout, limit, what):
    assert what in refused(DataError, partition, work(train, heldout), heldout_limit=limit)


def test_overlap_is_noticed_by_digest():
    train, heldout = items(50), items(50, seed=1)
    assert partition(work(train, heldout)).warnings == ()
    (warning,) = partition(work(train, [(x.copy(), 2 - y) for x, y in train])).warnings
    assert warning.startswith("10 of 10 examined training examples also stand in held-out")


def test_other_preprocessing_is_noticed():
    train = items(400)
    for heldout in (items(400, 1, scale=1 / 255), items(400, 1, shift=2.0), items(400, 1, scale=3)):
        (warning,) = partition(work(train, heldout)).warnings
        assert "input 0 differs between train (mean" in warning
        assert "preprocessing" in warning


def test_order_and_names_are_no_difference():
    # sorted by class, classes differ in brightness
    ordered = sorted(items(800, 1, scale=2.0), key=lambda item: float(item[0].sum()))
    assert partition(work(items(800, 2, scale=2.0), ordered)).warnings == ()
    train = [({"a": x, "b": x * 50}, y) for x, y in items(300)]
    heldout = [({"b": x * 50, "a": x}, y) for x, y in items(300, 1)]
    assert partition(work(train, heldout)).warnings == ()


def test_a_workload_error_is_the_callers():
    assert issubclass(DataError, WorkloadError)
    assert issubclass(WorkloadError, CallError)
