"""Scenarios end to end: a candidate that fails under one corruption alone is found, and one failure ends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from paretune.ask import plugin, source
from paretune.ask.data import Split
from paretune.ask.event import Event
from paretune.ask.workload import Workload
from paretune.build.candidate import Candidate
from paretune.build.recipe import Recipe
from paretune.check import pressure
from paretune.deliver.bundle import pack
from paretune.errors import CallError, DataError
from paretune.scenarios import scenarios

MACHINE = {"threads": 1, "digest": "another", "cpu": "Another CPU"}


def graph(nodes: list[tuple[str, list[str], dict[str, Any]]], weights: dict[str, Any], given: Any, into: Path) -> Path:
    """An ONNX file: nodes in a row, each with the last one's answer (``.``) among its inputs; logits [batch, 2]."""
    made, last = [], "x"
    for number, (kind, inputs, attributes) in enumerate(nodes):
        name = "logits" if number == len(nodes) - 1 else f"t{number}"
        made.append(helper.make_node(kind, [last if one == "." else one for one in inputs], [name], **attributes))
        last = name
    kind = helper.np_dtype_to_tensor_dtype(given.dtype)
    whole = helper.make_graph(
        made, "g", [helper.make_tensor_value_info("x", kind, ["batch", *given.shape[1:]])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, into / "model.onnx")
    return into / "model.onnx"


def sides(ceiling: float, into: Path, least: float | None = None) -> Path:
    """Which half of a picture is brighter; ``ceiling`` is where values saturate, and answers are whole numbers: coarse
    arithmetic as in a quantised model. With ``least``, a value above it makes the answer no number."""
    halves = np.eye(2)[np.tile(np.arange(8) // 4, 8)] * 100 / 32
    weights: dict[str, Any] = {
        "low": np.float32(-9), "high": np.float32(ceiling), "flat": np.array([-1, 64]), "halves": halves.astype("f4"),
        "least": np.float32(least or 0),
    }  # fmt: skip
    nodes: list[Any] = [("Clip", [".", "low", "high"], {}), ("Reshape", [".", "flat"], {}),
                        ("MatMul", [".", "halves"], {}), ("Round", ["."], {})]  # fmt: skip
    if least is not None:
        # there and back through a square root, which a negative number has not
        nodes = [("Sub", ["least", "."], {}), ("Sqrt", ["."], {}), ("Mul", [".", "."], {}), ("Sub", ["least", "."], {}),
                 *nodes]  # fmt: skip
    return graph(nodes, weights, items(1)[0][0][None], into)


def items(count: int = 400) -> list[Any]:
    """Halves of 0.35 and 0.55; the same bright and dark pixels in both halves set the range."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    images = np.full((count, 1, 8, 8), 0.45)
    images += np.where(np.arange(8) // 4 == labels[:, None, None, None], 0.1, -0.1)
    images += 0.03 * rng.normal(size=images.shape)
    images[:, :, 0, [0, 4]], images[:, :, 7, [0, 4]] = 1.0, 0.0
    return list(zip(images.astype(np.float32), labels, strict=True))


def packed(model: Path, split: Split, into: Path) -> Path:
    (into / "model").mkdir(parents=True)
    artifact, _ = source.find(str(model), split, into / "model")
    candidate = Candidate(Recipe(), plugin.load("targets", "onnxruntime")())
    pack(candidate, artifact, into / "bundle", machine=MACHINE, workload={}, evidence={})
    return into / "bundle"


def pictures() -> Split:
    return Split.whole(items(8), None, "train")


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saturating")
    return packed(sides(0.6, place), pictures(), place)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return Workload("sides", str(sides(10.0, tmp_path_factory.mktemp("sides"))), None, items())


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "ROUNDS", 2)


def plain(found: Any) -> dict[str, Any]:
    told: dict[str, Any] = found.describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    return told


def test_a_fault_that_shows_under_one_corruption_alone_is_found(saturating: Path, workload: Workload) -> None:
    told = plain(scenarios(saturating, workload, only=["brightness", "contrast", "rotation"], threads=1))
    assert told["clean"]["original"] == told["clean"]["candidate"] == 1.0
    verdicts = {one["scenario"]: one["verdict"] for one in told["findings"]}
    assert {name for name, verdict in verdicts.items() if verdict == "breaks"} == {"brightness@5"}
    assert [one["family"] for one in told["families"]] == ["lighting", "geometry"], "the worst first"
    assert told["families"][0]["excess"]["verdict"] == "breaks"
    assert told["families"][0]["worst"] == "brightness@5"
    (worst,) = [one for one in told["findings"] if one["scenario"] == "brightness@5"]
    assert worst["original"] > 0.95 > worst["candidate"]
    assert worst["agreement"] == pytest.approx(1 - worst["original"] + worst["candidate"], abs=0.05)
    assert worst["excess"]["low"] > 1
    assert told["warnings"] == [
        "the bundle's evidence was made on another machine or with other versions (Another CPU)"
    ]


def test_the_original_itself_breaks_nothing_and_a_seed_gives_the_same_again(
    tmp_path: Path, workload: Workload, briefly: None
) -> None:
    same = packed(Path(str(workload.model)), pictures(), tmp_path)
    heard: list[Event] = []

    class Ear:
        def on(self, event: Event) -> None:
            heard.append(event)

    only = ("fog@5", "impulse_noise@5", "batch", "layout", "shape", "edge", "2_threads")
    store = {"store": tmp_path / "store", "limit": 80, "threads": 1, "batch": 8}
    first = plain(scenarios(same, workload, only=only, baseline=same, observers=[Ear()], **store))
    assert {one["verdict"] for one in first["findings"]} == {"holds", "undecided"}
    families = {"weather", "noise", "batch", "layout", "shape", "edge", "load"}
    assert {one["family"] for one in first["findings"]} == families
    assert len(first["findings"]) >= 20
    assert any(event.data.get("total") for event in heard)
    again, other = (plain(scenarios(same, workload, only=only[:2], seed=seed, **store)) for seed in (0, 1))
    figures = [
        [one["original"] for one in told["findings"] if one["kind"] == "accuracy"] for told in (first, again, other)
    ]
    assert figures[0] == figures[1] != figures[2]
    assert len(figures[0]) == 2


def test_a_scenario_of_the_users_own_and_one_that_fails(tmp_path: Path, saturating: Path, workload: Workload) -> None:
    (tmp_path / "mine.py").write_text(
        "from paretune.check.scenario import scenario\n\n"
        "@scenario('mine')\ndef blinding(image, rng):\n    '''A lamp.'''\n    return image * 0.5 + 0.5\n\n"
        "@scenario('mine')\ndef broken(image, rng):\n    return image.no_such_thing\n\n"
        "@scenario('mine', 'any')\ndef narrow(inputs, rng):\n"
        "    return {name: array[:, :, :4] for name, array in inputs.items()}\n"
    )
    told = plain(scenarios(saturating, workload, own=tmp_path / "mine.py", only="mine", limit=200, threads=1))
    found = {one["scenario"]: one for one in told["findings"]}
    assert set(found) == {"blinding", "broken", "narrow"}
    assert found["blinding"]["verdict"] == "breaks"
    assert found["blinding"]["about"] == "A lamp."
    for name, says in (("broken", "no_such_thing"), ("narrow", "(32, 1, 8, 4)")):
        assert found[name]["verdict"] == "undecided"
        assert says in found[name]["error"]
        assert found[name]["excess"] is None
    assert told["families"][0]["scenarios"] == 3


def test_a_candidate_that_fails_where_the_original_answers_breaks(tmp_path: Path, workload: Workload) -> None:
    (tmp_path / "mine.py").write_text(
        "from paretune.check.scenario import scenario\n\n"
        "@scenario('mine', 'any')\ndef glaring(inputs, rng):\n    return {k: v + 1 for k, v in inputs.items()}\n"
    )
    fussy = packed(sides(10.0, tmp_path, 1.2), pictures(), tmp_path)
    told = plain(scenarios(fussy, workload, own=tmp_path / "mine.py", only=["mine", "contrast@1"], limit=40, threads=1))
    found = {one["scenario"]: one for one in told["findings"]}
    assert found["glaring"]["verdict"] == "breaks"
    assert "not finite" in found["glaring"]["error"]
    assert found["contrast@1"]["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("options", "says"),
    [({"only": ["nothing"]}, "no scenario matches nothing"), ({"limit": 1}, "out of range"),
     ({"batch": 0}, "out of range"), ({"confidence": 1.0}, "out of range"), ({"own": "none.py"}, "no such file"),
     ({"baseline": "none"}, "is no bundle")],
)  # fmt: skip
def test_a_wrong_call_is_told(options: dict[str, Any], says: str, saturating: Path, workload: Workload) -> None:
    with pytest.raises(CallError, match=says):
        scenarios(saturating, workload, **{"threads": 1, "limit": 10, **options})


def test_data_that_cannot_be_scored_is_told(saturating: Path, tmp_path: Path) -> None:
    bare = Workload("bare", "model.onnx", None, [(image, None) for image, _ in items(10)])
    with pytest.raises(DataError, match="has no labels"):
        scenarios(saturating, bare)
    with pytest.raises(CallError, match="is no bundle"):
        scenarios(tmp_path, bare)
    whole = Workload("whole", "model.onnx", None, items(10), "f1")
    with pytest.raises(DataError, match="f1 is of a whole set"):
        scenarios(saturating, whole)


@pytest.mark.parametrize("kind", ["row", "tokens"])
def test_a_table_and_a_text_have_scenarios_too(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Any]
    if kind == "row":
        given: Any = rng.normal(size=(60, 6)).astype(np.float32)
        nodes: list[Any] = [("MatMul", [".", "weights"], {})]
        weights = {"weights": rng.normal(size=(6, 2)).astype(np.float32)}
        answers = given @ weights["weights"]
    else:
        given = rng.integers(1, 40, (60, 9))
        nodes = [("Gather", ["words", "."], {}), ("ReduceMean", ["."], {"axes": [1], "keepdims": 0})]
        weights = {"words": rng.normal(size=(41, 2)).astype(np.float32)}
        answers = weights["words"][given].mean(axis=1)
    model = graph(nodes, weights, given, tmp_path)
    work = Workload(kind, str(model), None, list(zip(given, answers.argmax(axis=1), strict=True)))
    bundle = packed(model, Split.whole(work.heldout, None, "train"), tmp_path)
    told = plain(scenarios(bundle, work, only=[f"{kind}", "edge", "dtype"], limit=40, threads=1))
    scored = [one for one in told["findings"] if one["kind"] == "accuracy"]
    assert len(scored) == 25
    assert all(one["excess"]["value"] == 0 for one in scored), "it is the same model"
    assert min(one["original"] for one in scored) < 0.9, "something did happen to the data"
    assert not [one for one in told["findings"] if one["verdict"] == "breaks"]
