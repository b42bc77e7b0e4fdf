"""Scores against the plainest loops that say the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paretune.ask import score
from paretune.errors import DataError, WorkloadError

FLOATS = st.floats(-1e6, 1e6, width=32)


def logits(min_dims: int = 2, max_dims: int = 2):
    shapes = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, max_side=6)
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=FLOATS))


@st.composite
def labelled(draw, max_dims: int = 2):
    values = draw(logits(2, max_dims))
    shape = (values.shape[0], *values.shape[2:])
    return values, draw(hnp.arrays(np.int64, shape, elements=st.integers(0, max(1, values.shape[1] - 1))))


@st.composite
def paired(draw):
    values = draw(logits(1, 3))
    return values, draw(hnp.arrays(np.float32, values.shape, elements=FLOATS))


def predicted(column: np.ndarray) -> int:
    if len(column) == 1:
        return int(column[0] > 0)
    return max(range(len(column)), key=lambda place: (column[place], -place))


@given(labelled())
def test_accuracy_is_the_share_of_right_classes(data):
    values, labels = data
    wanted = [float(predicted(row) == label) for row, label in zip(values, labels, strict=True)]
    assert score.accuracy(values, labels).tolist() == wanted
    assert score.accuracy({"hidden": labels, "logits": values}, labels).tolist() == wanted
    assert score.accuracy([(values,), labels], labels[:, None]).tolist() == wanted


@given(labelled(4).filter(lambda data: data[0].ndim == 4 and data[0].shape[1] > 1))
def test_accuracy_of_pixels_is_the_share_of_right_pixels(data):
    values, labels = data
    wanted = []
    for image, mask in zip(values, labels, strict=True):
        hits = [predicted(image[:, y, x]) == mask[y, x] for y in range(mask.shape[0]) for x in range(mask.shape[1])]
        wanted.append(sum(hits) / len(hits))
    np.testing.assert_allclose(score.accuracy(values, labels), wanted)


@given(st.integers(1, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_top5_is_one_where_at_most_four_are_larger(count, classes, random):
    rows = [random.sample(range(100), classes) for _ in range(count)]
    labels = np.array([random.randrange(classes) for _ in range(count)])
    wanted = [float(sum(x > row[label] for x in row) < 5) for row, label in zip(rows, labels, strict=True)]
    assert score.top5(np.array(rows, np.float32), labels).tolist() == wanted


@given(paired())
def test_errors_are_mean_differences_with_a_minus(data):
    values, labels = data
    for row, label, mse, mae in zip(
        values, labels, score.mse(values, labels), score.mae(values, labels), strict=True
    ):  # fmt: skip
        gaps = [float(a) - float(b) for a, b in zip(np.ravel(row), np.ravel(label), strict=True)]
        assert mse == pytest.approx(-math.fsum(gap * gap for gap in gaps) / len(gaps))
        assert mae == pytest.approx(-math.fsum(map(abs, gaps)) / len(gaps))


@given(paired())
def test_cosine_is_the_angle_and_never_leaves_its_range(data):
    values, labels = data
    found = score.cosine(values, labels)
    assert np.all(np.abs(found) <= 1)
    for row, label, cosine in zip(values, labels, found, strict=True):
        a, b = np.ravel(row).tolist(), np.ravel(label).tolist()
        norm = math.hypot(*a) * math.hypot(*b)
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        # sums of opposite terms cancel: what may differ is small against the norms
        assert cosine == pytest.approx(dot / norm if norm else 0.0, abs=1e-9)
    assert np.all(score.cosine(values, values) >= np.where([np.any(row) for row in values], 1 - 1e-9, 0))


@given(labelled(4).filter(lambda data: data[0].ndim >= 3))
def test_iou_is_the_mean_over_the_classes_present(data):
    values, labels = data
    labels = labels - (np.arange(labels.size).reshape(labels.shape) % 5 == 0)  # some become -1: left out
    found = score.iou(values, labels)
    assert np.all((found >= 0) & (found <= 1))
    for image, mask, value in zip(values, labels, found, strict=True):
        pairs = [
            (predicted(image[(slice(None), *place)]), int(mask[place]))
            for place in np.ndindex(*mask.shape)
            if mask[place] >= 0
        ]
        ratios = [
            sum(pair == (c, c) for pair in pairs) / sum(c in pair for pair in pairs)
            for c in {x for p in pairs for x in p}
        ]
        assert value == pytest.approx(sum(ratios) / len(ratios) if ratios else 1.0)


@pytest.mark.parametrize("name", score.PER_EXAMPLE)
def test_labels_that_do_not_fit_are_refused(name):
    with pytest.raises(DataError, match=rf"score {name}: labels of shape \(3,\).*give one label"):
        score.BUILT_IN[name](np.zeros((2, 7), np.float32), np.zeros(3))


def test_top5_wants_logits():
    with pytest.raises(DataError, match="needs logits"):
        score.top5(np.zeros(4), np.zeros(4))


def test_scores_have_names():
    def mine(outputs, labels):
        return labels

    assert score.named("accuracy") == {"accuracy": score.accuracy}
    assert score.named(mine) == {"mine": mine}
    assert list(score.named(lambda outputs, labels: labels)) == ["lambda"]
    assert score.named({"a": "mse", "b": mine}) == {"a": score.mse, "b": mine}


@pytest.mark.parametrize("wrong", ["f7", None, 3, {}, {"a": 5}, {1: "mse"}, {"a": "nothing"}])
def test_what_is_no_score_is_refused_in_one_line(wrong):
    with pytest.raises(WorkloadError) as caught:
        score.named(wrong)
    assert caught.value.where == "score"
    assert caught.value.do
    assert "\n" not in str(caught.value)
