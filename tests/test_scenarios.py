"""Scenarios end to end: a candidate that fails under one corruption alone is found, and one failure ends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


class Sides(torch.nn.Module):
    """Which half of a picture is brighter; ``ceiling`` is where values saturate, as coarse numbers do."""

    def __init__(self, ceiling: float) -> None:
        super().__init__()
        self.ceiling = ceiling
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = (x.clamp(max=self.ceiling) * self.gain).mean(dim=1).reshape(len(x), 8, 2, 4)
        return halves.mean(dim=(1, 3)) * 100


def items(count: int = 400) -> list[Any]:
    """Grey halves between 0.2 and 0.65; the same bright and dark pixels in both halves set the range."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, count)
    images = np.full((count, 1, 8, 8), 0.45)
    images += np.where(np.arange(8) // 4 == labels[:, None, None, None], 0.1, -0.1)
    images += 0.03 * rng.normal(size=images.shape)
    images[:, :, 0, [0, 4]], images[:, :, 7, [0, 4]] = 1.0, 0.0
    return list(zip(images.astype(np.float32), labels, strict=True))


def packed(module: torch.nn.Module, into: Path) -> Path:
    split = Split.whole(items(8), None, "train")
    (into / "model").mkdir(parents=True)
    artifact, _ = source.find(module.eval(), split, into / "model")
    candidate = Candidate(Recipe(), plugin.load("targets", "torch")())
    pack(candidate, artifact, into / "bundle", machine=MACHINE, workload={}, evidence={})
    return into / "bundle"


@pytest.fixture(scope="module")
def saturating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(Sides(0.66), tmp_path_factory.mktemp("saturating"))


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload("sides", Sides(10.0).eval(), None, items())


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
    assert verdicts["brightness@5"] == verdicts["brightness@4"] == "breaks"
    assert {stem for stem, verdict in verdicts.items() if verdict == "breaks"} <= {f"brightness@{n}" for n in range(1, 6)}
    assert [one["family"] for one in told["families"]] == ["lighting", "geometry"], "the worst first"
    assert told["families"][0]["excess"]["verdict"] == "breaks"
    assert told["families"][0]["worst"] in ("brightness@4", "brightness@5")
    (worst,) = [one for one in told["findings"] if one["scenario"] == "brightness@5"]
    assert worst["original"] > 0.95 > worst["candidate"]
    assert worst["agreement"] == pytest.approx(1 - worst["original"] + worst["candidate"], abs=0.05)
    assert worst["excess"]["low"] > 1
    assert told["warnings"] == ["the bundle's evidence was made on another machine (Another CPU)"]


def test_the_original_itself_breaks_nothing_and_a_seed_gives_the_same_again(
    tmp_path: Path, workload: Workload, briefly: None
) -> None:
    same = packed(Sides(10.0), tmp_path)
    heard: list[Event] = []

    class Ear:
        def on(self, event: Event) -> None:
            heard.append(event)

    only = ("fog@5", "impulse_noise@5", "batch", "layout", "shape", "edge", "2_threads")
    first, again, other = (
        plain(scenarios(same, workload, only=only, limit=80, seed=seed, threads=1, batch=8, observers=[Ear()],
                        store=tmp_path / "store", baseline=baseline))
        for seed, baseline in ((0, None), (0, None), (1, same))
    )  # fmt: skip
    assert {one["verdict"] for one in first["findings"]} == {"holds", "undecided"}
    assert {one["family"] for one in first["findings"]} == {"weather", "noise", "batch", "layout", "shape", "edge", "load"}
    assert len(first["findings"]) >= 20
    figures = [[one["original"] for one in told["findings"] if one["kind"] == "accuracy"] for told in (first, again)]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 2
    assert other["examples"] == 80
    assert any(event.data.get("total") for event in heard)


def test_a_scenario_of_the_users_own_and_one_that_fails(tmp_path: Path, saturating: Path, workload: Workload) -> None:
    (tmp_path / "mine.py").write_text(
        "from paretune.check.scenario import scenario\n\n"
        "@scenario('mine')\ndef blinding(image, rng):\n    '''A lamp.'''\n    return image * 0.5 + 0.5\n\n"
        "@scenario('mine')\ndef broken(image, rng):\n    return image.no_such_thing\n\n"
        "@scenario('mine', 'any')\ndef infinite(inputs, rng):\n    return {k: v * float('inf') for k, v in inputs.items()}\n"
    )
    told = plain(scenarios(saturating, workload, own=tmp_path / "mine.py", only="mine", limit=200, threads=1))
    found = {one["scenario"]: one for one in told["findings"]}
    assert set(found) == {"blinding", "broken", "infinite"}
    assert found["blinding"]["verdict"] == "breaks"
    assert found["blinding"]["about"] == "A lamp."
    for name, says in (("broken", "no_such_thing"), ("infinite", "not finite")):
        assert found[name]["verdict"] == "undecided"
        assert says in found[name]["error"]
        assert found[name]["excess"] is None
    assert told["families"][0]["scenarios"] == 3


def test_a_candidate_that_fails_where_the_original_answers_breaks(tmp_path: Path, workload: Workload) -> None:
    class Fussy(Sides):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # not a number as soon as one value is above 1.2
            return super().forward(x) + torch.where(x > 1.2, torch.nan, 0.0).sum(dim=(1, 2, 3))[:, None]

    (tmp_path / "mine.py").write_text(
        "from paretune.check.scenario import scenario\n\n"
        "@scenario('mine', 'any')\ndef glaring(inputs, rng):\n    return {k: v + 1 for k, v in inputs.items()}\n"
    )
    told = plain(
        scenarios(packed(Fussy(10.0), tmp_path), workload, own=tmp_path / "mine.py", only=["mine", "contrast@1"],
                  limit=40, threads=1)
    )  # fmt: skip
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
    bare = Workload("bare", Sides(1.0).eval(), None, [(image, None) for image, _ in items(10)])
    with pytest.raises(DataError, match="has no labels"):
        scenarios(saturating, bare)
    with pytest.raises(CallError, match="is no bundle"):
        scenarios(tmp_path, bare)


def test_a_table_and_a_text_have_scenarios_too(tmp_path: Path) -> None:
    made: Callable[..., Any] = lambda inputs, module: (inputs, module)  # noqa: E731
    torch.manual_seed(0)
    cases = [
        made(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), torch.nn.Linear(6, 3)),
        made(
            np.random.default_rng(0).integers(1, 40, (60, 9)),
            torch.nn.Sequential(torch.nn.Embedding(41, 4), torch.nn.Flatten(), torch.nn.Linear(36, 3)),
        ),
    ]
    for (inputs, module), kind in zip(cases, ("row", "tokens"), strict=True):
        module.eval()
        with torch.inference_mode():
            labels = module(torch.from_numpy(inputs)).argmax(1).numpy()
        work = Workload(kind, module, None, list(zip(inputs, labels, strict=True)))
        into = tmp_path / kind
        (into / "model").mkdir(parents=True)
        artifact, _ = source.find(module, Split.whole(work.heldout, None, "train"), into / "model")
        candidate = Candidate(Recipe(), plugin.load("targets", "torch")())
        pack(candidate, artifact, into / "bundle", machine=MACHINE, workload={}, evidence={})
        told = plain(scenarios(into / "bundle", work, only=[kind, "edge", "dtype"], limit=40, threads=1))
        scored = [one for one in told["findings"] if one["kind"] == "accuracy"]
        assert len(scored) == 25
        assert all(one["excess"]["value"] == 0 for one in scored), "it is the same model"
        assert min(one["original"] for one in scored) < 0.9, "something did happen to the data"
        assert not [one for one in told["findings"] if one["verdict"] == "breaks"]
