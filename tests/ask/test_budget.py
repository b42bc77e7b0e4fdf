"""What is written is what is read back, and what cannot be read is refused with its place."""

import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paretune.ask.budget import LATENCIES, Budget, Limit, Objective
from paretune.ask.rates import Rates
from paretune.errors import BudgetError, ParetuneError

BASE = {
    **dict.fromkeys(LATENCIES, "ms"), "throughput": "/s", "size": "B", "memory": "B", "energy": "mJ", "cost": "",
    "drop": "pp",
}  # fmt: skip


@st.composite
def limits(draw) -> Limit:
    name = draw(st.sampled_from(sorted(BASE)))
    unit = draw(st.sampled_from(["pp", "%"])) if name == "drop" else BASE[name]
    score = draw(st.none() | st.text("abz_-09", min_size=1, max_size=8)) if name == "drop" else None
    batch = None if name in ("drop", "size") else draw(st.none() | st.integers(1, 4096))
    value = draw(st.floats(0 if name == "drop" else 1e-6, 1e12))
    return Limit(name, ">=" if name == "throughput" else "<=", value, unit, batch, score)


def rendered(limit: Limit) -> str:
    score = f".{limit.score}" if limit.score else ""
    at = f"@{limit.batch}" if limit.batch is not None else ""
    return f"{limit.name}{score}{at}{limit.op}{limit.value!r}{limit.unit}"


def refused(text: str, **options) -> BudgetError:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@given(limits())
def test_parsing_what_was_written_is_the_identity(limit):
    (found,) = Budget.parse(rendered(limit)).limits
    assert dataclasses.replace(found, text="") == limit
    assert found.text == rendered(limit)
    assert found.describe()["value"] == limit.value


@given(st.lists(limits(), max_size=5, unique_by=lambda limit: (limit.name, limit.score, limit.batch)))
def test_limits_keep_their_order_and_spaces_do_not_matter(several):
    tight = Budget.parse(",".join(map(rendered, several)))
    loose = Budget.parse("  " + " ,  ".join(rendered(limit).replace(limit.op, f" {limit.op} ") for limit in several))
    assert [dataclasses.replace(limit, text="") for limit in tight.limits] == several
    assert [limit.value for limit in loose.limits] == [limit.value for limit in several]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p95<=5ms", 5), ("p95<=0.005 s", 5), ("p95 ≤ 5000us", 5), ("p95<5000µs", 5), ("size<=5MB", 5e6),
        ("size<=5MiB", 5 * 1024**2), ("memory<=.2GB", 2e8), ("energy<=2J", 2000), ("throughput>=1e3/s", 1000),
        ("throughput≥500/s", 500), ("cost<=0.01", 0.01), ("drop<=0pp", 0), ("drop<=+1.5%", 1.5),
    ],
)  # fmt: skip
def test_units_become_base_units(text, value):
    assert Budget.parse(text).limits[0].value == pytest.approx(value)


@given(
    st.text(max_size=40)
    | st.text("p95drop@<>=.,0123456789msKMBGp%/ -+eE", max_size=30)
    | st.builds(lambda a, b: a + b, limits().map(rendered), st.text(min_size=1, max_size=6))
)
@example("p95@" + "9" * 5000 + "<=5ms")
@example("p95<=1e999ms")
@example("drop<=" + "9" * 400 + "pp")
@example("p95@٣<=٥ms")
@example("p95<=5ms,,drop<=1pp")
@example("p95<=5ms\n,x")
def test_nonsense_is_a_budget_or_a_budget_error_in_one_line(text):
    told = ""
    try:
        budget = Budget.parse(text)
    except BudgetError as error:
        told = str(error)
    if told:
        assert told.startswith("budget")
        assert "\n" not in told
    else:
        assert all(math.isfinite(limit.value) for limit in budget.limits)
        assert bool(budget.limits) == bool(text.strip())


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("drop<=1pp, p97<=5ms", "unknown limit 'p97'", 12),
        ("p95<=5ms,drop<=1", "a unit is missing", 17),
        ("p95<=5mz", "unknown unit 'mz'", 7),
        ("p95>=5ms", "p95 needs <=", 4),
        ("throughput<=5/s", "throughput needs >=", 11),
        ("p95 =5ms", "'=' is no comparison", 5),
        ("p95@0<=5ms", "a batch size is at least 1", 5),
        ("size@2<=5MB", "size takes no batch size", 6),
        ("size.x<=5MB", "only drop takes the name of a score", 6),
        ("p95<=-5ms", "cannot be", 6),
        ("p95<= 0ms", "cannot be", 7),
        ("size<=1e999MB", "cannot be", 7),
        ("cost<=1EUR", "unknown unit 'EUR'", 8),
        ("p95<=5ms,", "a limit is missing", 10),
        ("fast please", "a comparison is missing", 6),
        ("p95@1 <= fast", "a number is missing", 10),
        ("<=5ms", "cannot be read", 1),
    ],
)
def test_an_error_says_what_and_at_which_character(text, what, place):
    error = refused(text)
    assert what in error.what
    assert error.what.endswith(f" at character {place}")
    assert text in error.where
    shown, caret = error.quote
    assert shown == text
    assert caret == " " * (place - 1) + "^"


def test_a_unit_that_is_not_known_is_answered_with_those_that_are():
    assert refused("p95<=5").do == refused("p95<=5mz").do == "p95 takes us, µs, ms, s"
    assert refused("cost<=1EUR").do == "cost takes none"


def test_a_quote_has_one_line_whatever_was_given():
    shown, caret = refused("p95<=5ms\n\t,x").quote
    assert shown == "p95<=5ms  ,x"
    assert shown[caret.index("^") - 1 :] == "x"


def test_contradicting_limits_are_refused_and_repeated_ones_are_not():
    assert "contradict" in refused("p95<=5ms, p95<=4ms").what
    assert "contradict" in refused("drop<=1pp, drop<=1%").what
    assert len(Budget.parse("p95<=5ms, p95@1<=4ms, drop<=1pp, drop.iou<=2pp, p95<=5000us").limits) == 5


def test_the_objective_and_the_confidence():
    assert Budget.parse("").objective == Objective()
    assert Budget.parse("", "p50@32").objective == Objective("p50", 32)
    assert Budget.parse("", " size ").objective.text == "lowest size"
    for wrong in ("speed", "size@2", "p50@0", "p50@", "p50@" + "9" * 5000, ""):
        assert refused("", minimize=wrong).where == "--minimize"
    for level in (0.2, 1.0, math.nan, -1):
        assert "confidence" in refused("", confidence=level).what


def test_batches_are_those_asked_and_those_named():
    budget = Budget.parse("p95@8<=5ms, drop<=1pp", "p50@32")
    assert budget.batches([1, 8]) == (1, 8, 32)
    assert budget.asks("drop")
    assert budget.asks("p50")
    assert not budget.asks("throughput")


def test_a_budget_error_is_the_callers():
    assert issubclass(BudgetError, ParetuneError)
    assert refused("x").exit_code == 2


def test_a_limit_on_cost_needs_a_price() -> None:
    budget = Budget.parse("cost@8<=0.01, energy<=5mJ", "energy@8")
    with pytest.raises(BudgetError, match=r"cost@8<=0.01.*needs prices — give --prices"):
        budget.at(Rates(3.0))
    priced = budget.at(Rates(3.0, 0.34, currency="EUR"))
    assert priced.limits == budget.limits
    assert priced.describe()["rates"] == {
        "watts_per_core": 3.0, "per_hour": 0.34, "per_kwh": 0.0, "currency": "EUR",
    }  # fmt: skip
    assert priced.objective.text == "lowest energy at batch 8"
    assert Budget.parse("energy<=5mJ").at(Rates()).rates == Rates()
