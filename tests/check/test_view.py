"""Views: there and back is the identity, ranges are the data's own, and what comes back is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paretune.ask.data import Split
from paretune.check.view import UNKNOWN, inputs_of, views, with_inputs
from paretune.errors import DataError

RNG = np.random.default_rng(0)


def split(items: list[Any], collate: Any = None) -> Split:
    return Split.whole([(inputs, 0) for inputs in items], collate, "heldout")


def normalised(count: int = 6, shape: tuple[int, ...] = (3, 8, 10)) -> list[Any]:
    images = RNG.random((count, *shape))
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.0, 1.0
    mean, deviation = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    return list(((images - mean[:, None, None]) / deviation[:, None, None]).astype(np.float32))


def test_a_normalised_image_is_seen_between_0_and_1_and_comes_back_as_it_was() -> None:
    images = normalised()
    view = views(split(images), ["x"])["image"]
    seen = np.stack([view.see({"0": image}) for image in images])
    assert seen.min(axis=(0, 2, 3)) == pytest.approx(0, abs=1e-6)
    assert seen.max(axis=(0, 2, 3)) == pytest.approx(1, abs=1e-6)
    for image, one in zip(images, seen, strict=True):
        (back,) = view.back(one, {"0": image}, "here").values()
        assert back.dtype == np.float32
        assert back == pytest.approx(image, abs=1e-6)


def test_channels_last_and_bytes_are_understood() -> None:
    images = [RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8) for _ in range(3)]
    view = views(split(images), ["x"])["image"]
    seen = view.see({"0": images[0]})
    assert seen.shape == (3, 12, 16)
    assert seen[0] == pytest.approx(images[0][:, :, 0] / 255)
    (back,) = view.back(seen, {"0": images[0]}, "here").values()
    assert (back == images[0]).all()
    assert back.dtype == np.uint8


@pytest.mark.parametrize(
    ("items", "kinds"),
    [
        (normalised(), {"image", "any"}),
        ([RNG.normal(size=(3, 7, 9)).astype(np.float32)] * 2, {"any"}),
        ([RNG.normal(size=5).astype(np.float32) for _ in range(3)], {"row", "any"}),
        ([RNG.integers(2, 9, 5) for _ in range(3)], {"tokens", "any"}),
        ([{"ids": RNG.integers(2, 9, 5), "mask": np.ones(5, np.int64)} for _ in range(3)], {"tokens", "any"}),
        ([(normalised(1)[0], RNG.normal(size=4)) for _ in range(3)], {"image", "row", "any"}),
    ],
)
def test_the_kinds_that_data_holds_are_found(items: list[Any], kinds: set[str]) -> None:
    assert set(views(split(items), ["a", "b"])) == kinds


def test_strings_before_collating_are_a_kind_of_their_own() -> None:
    texts = split(["one text", "another"], lambda items: (np.zeros((len(items), 2)), np.zeros(len(items))))
    found = views(texts, ["ids"])
    assert set(found) == {"text"}
    assert found["text"].back("changed", {"0": "one text"}, "here") == {"0": "changed"}
    with pytest.raises(DataError, match="not a text"):
        found["text"].back(3, {"0": "one text"}, "here")


def test_rows_are_standard_scores_and_what_is_missing_becomes_the_mean() -> None:
    rows = [(np.array([10.0, 0.0]) + np.array([2.0, 3.0]) * RNG.normal(size=2)).astype(np.float32) for _ in range(500)]
    view = views(split(rows), ["x"])["row"]
    seen = np.stack([view.see({"0": row}) for row in rows])
    assert seen.mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert seen.std(axis=0) == pytest.approx(1)
    (back,) = view.back(np.array([np.nan, 1.0]), {"0": rows[0]}, "here").values()
    assert back == pytest.approx(
        [np.mean([row[0] for row in rows]), np.mean(rows, 0)[1] + np.std(rows, 0)[1]], rel=1e-5
    )


SPECIAL = [
    {"ids": np.array([101, 7, 8, 9, 102, 0, 0]), "attention_mask": np.array([1, 1, 1, 1, 1, 0, 0])},
    {"ids": np.array([101, 5, 6, 7, 8, 4, 102]), "attention_mask": np.ones(7, np.int64)},
]


def test_special_tokens_and_padding_stay_where_they_are() -> None:
    view = views(split(SPECIAL), ["ids", "attention_mask"])["tokens"]
    assert list(view.see(SPECIAL[0])) == [7, 8, 9]
    back = view.back(np.array([9, UNKNOWN]), SPECIAL[0], "here")
    assert list(back["ids"]) == [101, 9, 1, 102, 0, 0, 0], "1 stands in no text"
    assert list(back["attention_mask"]) == [1, 1, 1, 1, 0, 0, 0]
    longer = view.back(np.arange(20, 40), SPECIAL[0], "here")
    assert list(longer["ids"]) == [101, 20, 21, 22, 23, 24, 102]
    assert longer["attention_mask"].all()
    same = view.back(view.see(SPECIAL[1]), SPECIAL[1], "here")
    assert list(same["ids"]) == list(SPECIAL[1]["ids"])


def test_texts_of_several_lengths_may_become_shorter() -> None:
    texts = [np.array([5, 6, 7, 8]), np.array([3, 9])]
    ragged = split(texts, lambda items: (np.zeros((len(items), 4)), np.zeros(len(items))))
    view = views(ragged, ["ids"])["tokens"]
    assert list(view.back(np.array([6, 5]), {"0": texts[0]}, "here")["0"]) == [6, 5]
    with pytest.raises(DataError, match="not some numbers"):
        view.back(np.array([]), {"0": texts[0]}, "here")


def test_what_a_scenario_returns_is_checked() -> None:
    images = normalised()
    found = views(split(images), ["x"])
    with pytest.raises(DataError, match=r"here: returned shape \(3, 8, 9\)"):
        found["image"].back(np.zeros((3, 8, 9)), {"0": images[0]}, "here")
    with pytest.raises(DataError, match="not an array of numbers"):
        found["image"].back("image", {"0": images[0]}, "here")
    for wrong in (images[0], {}, {"y": images[0]}):
        with pytest.raises(DataError, match="did not return a dict of x"):
            found["any"].back(wrong, {"0": images[0]}, "here")
    with pytest.raises(DataError, match="float64 for 0, which is float32"):
        found["any"].back({"x": images[0].astype(float)}, {"0": images[0]}, "here")


@pytest.mark.parametrize(
    "inputs", [np.arange(3.0), (np.arange(3), np.ones(2)), {"a": np.arange(3)}, [1.0, 2.0], [np.arange(3), np.ones(2)]]
)
def test_an_item_is_taken_apart_and_put_together_as_it_was(inputs: Any) -> None:
    named = inputs_of((inputs, 3))
    assert named is not None
    again, label = with_inputs((inputs, 3), named)
    assert label == 3
    assert type(again) is type(inputs)
    assert str(again) == str(inputs)


def test_an_item_that_is_no_pair_of_arrays_is_told() -> None:
    assert inputs_of(3) is None
    assert inputs_of((object(), 1)) is None


def test_tensors_stay_tensors() -> None:
    import torch

    image = torch.ones(3, 8, 8)
    again, _ = with_inputs((image, 0), {"0": np.zeros((3, 8, 8), np.float32)})
    assert isinstance(again, torch.Tensor)
    assert again.dtype == torch.float32
    assert again.sum() == 0
