"""Scenarios: how they are declared, read from a user's file, chosen and staged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.ask.data import Split
from paretune.check.scenario import Scenario, fitting, read, scenario, shipped, staged
from paretune.check.view import views
from paretune.errors import CallError, DataError

MINE = '''
import numpy as np
from paretune.check.scenario import scenario

@scenario("mine")
def upside_down(image, rng):
    """The picture on its head."""
    return image[:, ::-1]

@scenario("mine", strengths=(0.1, 0.9))
def dark(image, rng, strength):
    return image * (1 - strength)

@scenario("mine", "any")
def both(inputs, rng):
    return {name: array * 2 for name, array in inputs.items()}
'''


def images(count: int = 6, shape: tuple[int, ...] = (1, 8, 8)) -> Split:
    rng = np.random.default_rng(0)
    items = [(rng.normal(size=shape).astype(np.float32), number % 2) for number in range(count)]
    return Split.whole(items, None, "heldout")


def rows(split: Split) -> Any:
    return np.concatenate([batch.inputs[0] for batch in split.batches(4)])


def test_a_user_adds_a_scenario_as_one_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    found = read(tmp_path / "mine.py")
    assert [one.name for one in found] == ["upside_down", "dark@1", "dark@2", "both"]
    assert found[0].about == "The picture on its head."
    source = images()
    seen = views(source, ["x"])
    turned = staged(source, found[0], seen["image"], 0)
    assert rows(turned) == pytest.approx(rows(source)[:, :, ::-1], abs=1e-6)
    low = rows(source).min()
    assert rows(staged(source, found[2], seen["image"], 0)) == pytest.approx(low + (rows(source) - low) * 0.1, abs=1e-5)
    assert (rows(staged(source, found[3], seen["any"], 0)) == 2 * rows(source)).all()
    assert [batch.labels.tolist() for batch in turned.batches(6)] == [[0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [("x = 1", "holds no scenario"), ("import nothing_at_all", "does not import"), ("raise SystemExit", "not import"),
     ("from paretune.check.scenes.noise import shot_noise", "holds no scenario"),
     ("from paretune.check.scenario import scenario\n@scenario('a', 'picture')\ndef f(x, rng): pass", "no kind")],
)  # fmt: skip
def test_a_file_without_scenarios_is_told(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(CallError, match=says):
        read(tmp_path / "mine.py")
    with pytest.raises(CallError, match="no such file"):
        read(tmp_path / "none.py")


def test_more_than_sixty_fit_an_image_and_more_than_a_hundred_in_all() -> None:
    fit = fitting(shipped(), views(images(shape=(3, 8, 8)), ["x"]))
    assert len(fit) >= 60 + 60
    assert {one.family for one in fit} == {"noise", "blur", "weather", "lighting", "digital", "geometry"}
    grey = fitting(shipped(), views(images(), ["x"]))
    assert {one.stem for one in fit} - {one.stem for one in grey} == {"saturate"}
    assert all(one.about for one in shipped()), "every one says what it does"


def test_patterns_choose_by_name_stem_or_family() -> None:
    seen = views(images(), ["x"])
    assert {one.name for one in fitting(shipped(), seen, ["*_noise@5", "fog"])} == {
        "gaussian_noise@5", "shot_noise@5", "impulse_noise@5", "speckle_noise@5", *(f"fog@{n}" for n in range(1, 6)),
    }  # fmt: skip
    assert {one.family for one in fitting(shipped(), seen, ["blur"])} == {"blur"}
    assert fitting(shipped(), seen, ["nothing"]) == ()
    with pytest.raises(CallError, match="two scenarios 'fog@1'"):
        fitting([*shipped(), *shipped()], seen, ["fog"])


def test_a_scene_is_known_by_what_it_was_made_of() -> None:
    source = images()
    seen = views(source, ["x"])["image"]
    one, other = (next(one for one in shipped() if one.name == name) for name in ("fog@1", "fog@2"))
    digest = staged(source, one, seen, 0).digest
    assert digest == staged(source, one, seen, 0).digest
    different = [staged(source, one, seen, 1), staged(source, other, seen, 0), staged(source.head(5), one, seen, 0)]
    assert len({digest, source.digest, *(scene.digest for scene in different)}) == 5


def test_an_example_is_changed_alike_wherever_it_stands() -> None:
    source = images(12)
    seen = views(source, ["x"])["image"]
    (one,) = [one for one in shipped() if one.name == "gaussian_noise@3"]
    whole = rows(staged(source, one, seen, 0))
    part = Split(source.examples, (7, 2))
    assert (rows(staged(part, one, seen, 0)) == whole[[7, 2]]).all()
    assert len({array.tobytes() for array in whole - rows(source)}) == 12, "no two get the same noise"


@pytest.mark.parametrize(
    ("function", "says"),
    [(lambda image, rng: image[:, 1:], "shape"), (lambda image, rng: 1 / 0, "ZeroDivisionError"),
     (lambda image, rng: None, "not an array")],
)  # fmt: skip
def test_a_function_that_fails_is_a_data_error_that_names_it(function: Any, says: str) -> None:
    source = images()
    broken = Scenario("broken", "mine", "image", function)
    with pytest.raises(DataError, match=says) as caught:
        rows(staged(source, broken, views(source, ["x"])["image"], 0))
    assert "broken" in str(caught.value)


def test_the_decorator_refuses_what_is_no_kind() -> None:
    with pytest.raises(CallError, match="'images' is no kind of input"):
        scenario("mine", "images")  # type: ignore[arg-type]


def test_the_scenario_in_the_documentation_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.py").write_text(block)
    found = read(tmp_path / "mine.py")
    assert [one.name for one in found] == ["oil_film@1", "oil_film@2", "oil_film@3"]
    source = images(shape=(3, 8, 8))
    seen = rows(staged(source, found[2], views(source, ["x"])["image"], 0))
    assert seen.std() < 0.5 * rows(source).std()
    stems = {one.stem for one in shipped()}
    assert {stem for stem in stems if f"`{stem}`" not in page} == set(), "every one is described"
