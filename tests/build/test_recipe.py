"""Recipes are legal when their forms connect, and are written and read back unchanged."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask import plugin
from paretune.build.recipe import Recipe
from paretune.build.technique import KINDS, ONCE
from paretune.errors import CallError, PluginError, RecipeError

KINDS_BY_NAME = plugin.usable("techniques")
STEPS = [step for kind in KINDS_BY_NAME.values() for step in (kind(), *kind.light())]


def step(name, **knobs):
    return Recipe.of([{"technique": name, "knobs": knobs}]).steps[0]


@given(st.lists(st.sampled_from(STEPS), max_size=5).map(tuple))
def test_reading_what_was_written_is_the_identity(steps):
    recipe = Recipe(steps)
    again = Recipe.of(json.loads(json.dumps(recipe.describe())))
    assert again == recipe
    assert again.describe() == recipe.describe()
    assert again.title == recipe.title


@given(st.lists(st.sampled_from(STEPS), max_size=5).map(tuple), st.sampled_from(["torch", "onnx", "openvino"]))
def test_a_recipe_gives_a_form_or_says_why_not(steps, form):
    here, kinds, legal = form, [], True
    for one in steps:
        legal &= here in one.takes and (one.kind not in ONCE or one.kind not in kinds)
        kinds.append(one.kind)
        here = one.gives
    if legal:
        assert Recipe(steps).gives(form) == here
    else:
        with pytest.raises(RecipeError) as caught:
            Recipe(steps).gives(form)
        assert caught.value.where
        assert caught.value.do
        assert "\n" not in str(caught.value)


def test_nothing_leaves_the_model_as_it_is():
    assert Recipe().gives("torch") == "torch"
    assert (Recipe().title, Recipe().describe()) == ("", [])


def test_a_title_names_the_steps_and_the_knobs_that_were_turned():
    recipe = Recipe((step("torch_to_onnx"), step("onnx_int8_static", calibration="entropy", samples=256)))
    assert recipe.title == "torch_to_onnx → onnx_int8_static(calibration=entropy)"


@pytest.mark.parametrize(
    ("steps", "form", "what"),
    [
        (["onnx_fold"], "torch", "onnx_fold: onnx_fold takes onnx, not torch"),
        (["torch_to_onnx", "torch_to_onnx"], "torch", "takes torch, not onnx"),
        (["onnx_fold", "onnx_fold"], "onnx", "onnx_fold is a second fold step"),
        (["onnx_fp16", "onnx_int8_dynamic"], "onnx", "onnx_int8_dynamic is a second precision step"),
    ],
)
def test_steps_that_do_not_connect_are_refused(steps, form, what):
    with pytest.raises(RecipeError) as caught:
        Recipe(tuple(map(step, steps))).gives(form)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("described", "kind", "what"),
    [
        (["onnx_fold"], RecipeError, '"onnx_fold" is no step'),
        ([{}], RecipeError, "{} is no step"),
        ([{"technique": 3}], RecipeError, "is no step"),
        ([{"technique": object}], RecipeError, "is no step"),
        ([{"technique": "onnx_flod"}], PluginError, "did you mean onnx_fold?"),
        ([{"technique": "onnx_fold", "knobs": {"speed": 1}}], RecipeError, "onnx_fold: has no knob 'speed'"),
        ([{"technique": "onnx_fold", "knobs": []}], RecipeError, "are no knobs"),
        ([{"technique": "onnx_int8_static", "knobs": {"samples": 0}}], RecipeError, "onnx_int8_static.samples: 0 is"),
    ],
)
def test_what_is_no_recipe_is_refused(described, kind, what):
    with pytest.raises(kind) as caught:
        Recipe.of(described)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CallError)


def test_every_technique_is_of_a_known_kind():
    assert {kind.kind for kind in KINDS_BY_NAME.values()} <= set(KINDS)
