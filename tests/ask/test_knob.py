"""Knobs accept what lies in their range, and a recipe file cannot smuggle in anything else."""

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.ask.knob import knob, knobs_of, make, values_of
from paretune.errors import RecipeError


@dataclass(frozen=True)
class Owner:
    count: int = knob(4, "how many", low=1, high=8)
    share: float = knob(0.5, "how much", low=0, high=1)
    mode: str = knob("a", "which way", choices=("a", "b"))
    power: float = knob(1.0, "which exponent", choices=(1.0, 2.0))
    fast: bool = knob(True, "whether to hurry")
    keep: tuple[str, ...] = knob((), "names that stay")
    note: str = "not a knob"


def test_fields_are_knobs_where_they_are_declared_so():
    assert list(knobs_of(Owner)) == ["count", "share", "mode", "power", "fast", "keep"]
    assert values_of(Owner(count=2))["count"] == 2
    assert knobs_of(Owner())["share"].describe() == {
        "name": "share", "default": 0.5, "help": "how much", "low": 0, "high": 1,
    }  # fmt: skip
    json.dumps([one.describe() for one in knobs_of(Owner).values()])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(1, 8), "share": st.floats(0, 1), "mode": st.sampled_from("ab"),
            "power": st.sampled_from([1.0, 2.0]), "fast": st.booleans(), "keep": st.lists(st.text(max_size=5)),
        },
    )
)  # fmt: skip
def test_values_survive_a_file(values):
    made = make(Owner, json.loads(json.dumps(values)), "owner")
    assert make(Owner, json.loads(json.dumps(values_of(made))), "owner") == made
    for name, value in values.items():
        assert getattr(made, name) == (tuple(value) if isinstance(value, list) else value)


def test_a_whole_number_for_a_float_is_the_same_setting():
    for values in ({"share": 1}, {"power": 2}):
        spelt = {name: float(value) for name, value in values.items()}
        assert json.dumps(values_of(make(Owner, values, "o"))) == json.dumps(values_of(make(Owner, spelt, "o")))


@pytest.mark.parametrize(
    "values",
    [
        {"count": 0}, {"count": 9}, {"count": 2.0}, {"count": True}, {"count": "2"}, {"count": None}, {"share": -0.1},
        {"share": 1.1}, {"share": math.nan}, {"share": math.inf}, {"share": True}, {"share": "1"}, {"mode": "c"},
        {"mode": ["a"]}, {"power": True}, {"power": 3}, {"fast": 1}, {"keep": "abc"}, {"keep": [1]}, {"keep": [["a"]]},
        {"note": "x"}, {"nothing": 1},
    ],
)  # fmt: skip
def test_what_lies_outside_is_refused_by_name(values):
    with pytest.raises(RecipeError) as caught:
        make(Owner, values, "owner")
    assert caught.value.where.startswith("owner")
    assert next(iter(values)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], "count", 5])
def test_knobs_are_a_mapping(values):
    with pytest.raises(RecipeError, match=r"owner: .* are no knobs"):
        make(Owner, values, "owner")
