"""An asked latency decides how much is pruned: the most that fits stays, in multiples that the target rewards."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paretune
from paretune.ask import source
from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.ask.knob import make, values_of
from paretune.ask.plugin import load
from paretune.build.candidate import Builder, Candidate, read_recipes
from paretune.build.history import Entry
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.check.machine import measuring_lock
from paretune.check.plan import HURRIED
from paretune.errors import BuildError, MeasureError, RecipeError, StoppedError
from paretune.forms import onnx as onnx_form
from paretune.forms import torch as form
from paretune.reach import EXAMPLES, LEAST, Timed, asked, dry, reached

SIDE = 16


class Net(nn.Module):
    """Seven wide convolutions of which channels can go, six of them in three blocks that can be left out."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.head = nn.Linear(width, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(image))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + 0.1 * self.outer(torch.relu(self.inner(x))))


def net() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


def images(count: int) -> list[tuple[np.ndarray, int]]:
    drawn = np.random.default_rng(5).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
    return [(image, place % 4) for place, image in enumerate(drawn)]


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    train = Split.whole(images(400), None, "train")
    place = tmp_path / "original"
    place.mkdir()
    original, _ = source.find(net(), train, place)

    class Silent:
        def on(self, event: object) -> None: ...

    return Builder(Store(tmp_path / "store"), original, Fit(train, None, original, 0, tmp_path / "work"), Silent())


def pruned(reach: str, name: str = "torch_prune_channels", **knobs: Any) -> Candidate:
    step = make(load("techniques", name), knobs, name)
    return Candidate(Recipe((step,)), load("targets", "torch")(), reach)


def by_macs(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
    """A target on which a multiply-accumulate always takes as long: a nanosecond."""
    assert artifact.macs is not None
    return {1: artifact.macs / 1e6}


def fitting(
    candidate: Candidate, builder: Builder, timed: Timed, told: Callable[[str], None] = lambda text: None
) -> tuple[Candidate, Entry]:
    """What was chosen, and the table of what was tried."""
    entries: list[Entry] = []
    found = reached(candidate, dry(builder).build, timed, told, entries.append)
    (entry,) = entries
    return found, entry


WHOLE_MS = 57.08
"""Of the net, by :func:`by_macs`."""


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_the_most_that_is_fast_enough_stays(builder: Builder, share: float) -> None:
    limit_ms = share * WHOLE_MS
    found, entry = fitting(pruned(f"p50<={limit_ms}ms"), builder, by_macs)
    assert not found.reach
    kept = builder.build(Recipe(tuple(dataclasses.replace(step, epochs=0) for step in found.recipe.steps)))
    assert kept.macs is not None
    assert 0.85 * limit_ms < kept.macs / 1e6 <= limit_ms
    rows = [dict(zip(entry["columns"], row, strict=True)) for row in entry["rows"]]
    assert rows[0]["macs_ratio"] is None
    assert rows[0]["p50 at batch 1, ms"] == pytest.approx(WHOLE_MS, rel=1e-3), "the whole was timed first"
    fits = [row["macs"] for row in rows if row["reached"] == "yes"]
    assert all(row["macs"] / 1e6 <= limit_ms for row in rows if row["reached"] == "yes")
    assert kept.macs == max(fits)


def widths(artifact: Artifact) -> list[int]:
    module = form.restore(artifact)
    return [one.out_channels for one in module.modules() if isinstance(one, nn.Conv2d)]


def test_widths_are_those_that_the_target_rewards(builder: Builder) -> None:
    def by_vectors(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        """Only widths in multiples of 16 are computed at full speed."""
        return {1: sum((width if width % 16 == 0 else 1.5 * width) ** 2 for width in widths(artifact))}

    found, _ = fitting(pruned(f"p50<={0.45 * 7 * 64**2}ms", round_to=12), builder, by_vectors)
    step = found.recipe.steps[0]
    assert values_of(step)["round_to"] != 12
    kept = builder.build(Recipe((dataclasses.replace(step, epochs=0),)))
    assert widths(kept) == [32] * 7, "where 24 is the widest multiple of 12 that is fast enough"


def test_the_same_model_is_timed_once(builder: Builder) -> None:
    timed: list[str] = []

    def once(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        timed.append(artifact.digest)
        return by_macs(candidate, artifact)

    _, entry = fitting(pruned("p50<=30ms"), builder, once)
    assert len(timed) == len(set(timed)) < len(entry["rows"])


def test_blocks_are_chosen_by_latency_too(builder: Builder) -> None:
    found, entry = fitting(pruned("p50@1<=40ms", "torch_prune_blocks", epochs=3, batch=8), builder, by_macs)
    step = found.recipe.steps[0]
    assert values_of(step)["epochs"] == 3, "what was chosen is trained as it was asked"
    kept = builder.build(Recipe((dataclasses.replace(step, epochs=0),)))
    assert kept.macs is not None
    assert kept.macs / WHOLE_MS / 1e6 == pytest.approx(2 / 3, abs=0.05), "one of three blocks went"
    assert "round_to" not in entry["columns"]


def test_nothing_is_trained_while_it_is_looked_for(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    from paretune.training import healing

    trained: list[tuple[int, int]] = []
    train = healing.train

    def seen(module: nn.Module, artifact: Artifact, data: Split, step: Any, plan: Any, *more: Any, **also: Any) -> Any:
        trained.append((len(data), plan.epochs))
        return train(module, artifact, data, step, plan, *more, **also)

    monkeypatch.setattr(healing, "train", seen)
    distil = make(load("techniques", "torch_distill"), {"epochs": 50}, "torch_distill")
    wanted = pruned("p50<=30ms", epochs=50, iterations=4)
    wanted = dataclasses.replace(wanted, recipe=Recipe((*wanted.recipe.steps, distil)))
    found, _ = fitting(wanted, builder, by_macs)
    assert [values_of(step)["epochs"] for step in found.recipe.steps] == [50, 50]
    assert set(trained) == {(EXAMPLES, 1)}, "one pass over few examples, where a step cannot do without"


def test_what_cannot_be_built_is_told_and_passed_over(builder: Builder) -> None:
    """Of three blocks at least one stays where half of them may go."""
    found, entry = fitting(pruned("p50<=45ms", "torch_prune_blocks", most=0.5, epochs=0), builder, by_macs)
    told = [row[-1] for row in entry["rows"]]
    assert any(str(one).startswith("cannot be built: ") for one in told)
    assert "yes" in told
    assert found.recipe.steps[0].macs_ratio > LEAST
    with pytest.raises(BuildError, match=r"p50<=1us is out of reach: with .* ms, and with less it cannot be built: "):
        fitting(pruned("p50<=1us", "torch_prune_blocks", most=0.5, epochs=0), builder, by_macs)


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        ("p50<=1s", r"p50@1 57.1 ms without torch_prune_channels: nothing has to go for p50<=1s"),
        ("p50<=1us", r"p50<=1us is out of reach: with 5 % of the multiply-accumulates, .* it is p50@1 [\d.]+ ms"),
    ],
)
def test_a_latency_that_needs_no_pruning_or_too_much_is_told(builder: Builder, reach: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        fitting(pruned(reach), builder, by_macs)


def test_what_shows_only_in_training_is_timed_without(builder: Builder) -> None:
    prune = make(load("techniques", "torch_prune_channels"), {"epochs": 2}, "torch_prune_channels")
    knobs = {"epochs": 2, "importance": "movement"}
    sparse = make(load("techniques", "torch_sparsify_magnitude"), knobs, "torch_sparsify_magnitude")
    wanted = Candidate(Recipe((prune, sparse)), load("targets", "torch")(), f"p50<={0.5 * WHOLE_MS}ms")
    found, entry = fitting(wanted, builder, by_macs)
    assert any(row[-1] == "yes" for row in entry["rows"])
    assert found.recipe.steps[1] == sparse, "what is trained then is what was asked"


def test_whoever_listens_may_stop_it(builder: Builder) -> None:
    def stop(text: str) -> None:
        raise StoppedError("enough")

    with pytest.raises(StoppedError):
        fitting(pruned("p50<=30ms"), builder, by_macs, stop)


def test_what_was_tried_is_told_where_nothing_is_reached_too(builder: Builder) -> None:
    entries: list[Entry] = []
    with pytest.raises(BuildError):
        reached(pruned("p50<=1us"), dry(builder).build, by_macs, record=entries.append)
    (entry,) = entries
    assert len(entry["rows"]) >= 2
    assert {row[-1] for row in entry["rows"]} == {"no"}


def test_what_cannot_be_measured_is_passed_over(builder: Builder) -> None:
    """The whole net, say, where its target has no kernel for layers as wide."""

    def small(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        if (artifact.macs or 0) > 50e6:
            raise MeasureError("no kernel is that wide", where="here")
        return by_macs(candidate, artifact)

    found, entry = fitting(pruned("p50<=30ms"), builder, small)
    assert entry["rows"][0][-1] == "cannot be measured: no kernel is that wide"
    assert entry["rows"][0][entry["columns"].index("macs")] == pytest.approx(1e6 * WHOLE_MS, rel=1e-3)
    plain, _ = fitting(pruned("p50<=30ms"), builder, by_macs)
    assert found == plain


def test_what_is_too_large_says_nothing_against_what_is_larger_than_the_best(builder: Builder) -> None:
    """Once something is fast enough, what cannot be measured is too much, and all between is still looked at."""

    def small(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        if (artifact.macs or 0) > 20e6:
            raise MeasureError("no kernel is that wide", where="here")
        return by_macs(candidate, artifact)

    _, entry = fitting(pruned("p50<=55ms"), builder, small)
    macs = entry["columns"].index("macs")
    assert 17e6 < max(row[macs] for row in entry["rows"] if row[-1] == "yes") <= 20e6


def test_what_another_moment_may_mend_ends_the_search(builder: Builder) -> None:
    def disturbed(candidate: Candidate, artifact: Artifact) -> dict[int, float]:
        error = MeasureError("the memory is not enough")
        error.passing = True
        raise error

    with pytest.raises(MeasureError, match="the memory is not enough"):
        fitting(pruned("p50<=30ms"), builder, disturbed)

    def starved(recipe: Recipe) -> Artifact:
        raise BuildError("failed") from MemoryError()

    entries: list[Entry] = []
    with pytest.raises(BuildError, match="failed"):
        reached(pruned("p50<=30ms"), starved, by_macs, record=entries.append)
    assert entries[0]["rows"] == [], "nothing was concluded from it"


def test_a_step_that_needs_the_pruning_before_it_is_in_nobodys_way(builder: Builder) -> None:
    """Without it there is no assistant between the original and a student as large."""
    name = "torch_distill_progressive"
    assisted = make(load("techniques", name), {"epochs": 9, "student": "artifact"}, name)
    plain = pruned("p50<=15ms")
    wanted = dataclasses.replace(plain, recipe=Recipe((*plain.recipe.steps, assisted)))
    found, entry = fitting(wanted, builder, by_macs)
    assert str(entry["rows"][0][-1]).startswith("cannot be built: no assistant between ")
    assert values_of(found.recipe.steps[0])["macs_ratio"] < 0.5
    assert found.recipe.steps[1] == assisted


def test_where_nothing_can_be_pruned_that_is_what_is_said(builder: Builder) -> None:
    def build(recipe: Recipe) -> Artifact:
        if recipe.steps:
            raise BuildError("no group of channels can go", where="torch_prune_channels", do="leave it out")
        return builder.build(recipe)

    told = "torch_prune_channels: nothing for p50<=30ms: no group of channels can go — leave it out"
    with pytest.raises(BuildError, match=told):
        reached(pruned("p50<=30ms"), build, by_macs)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (pruned("drop<=1pp"), "'drop<=1pp' is not one latency — write it like p50@1<=2ms; a drop is for --budget"),
        (pruned("p50<=2ms, p95<=3ms"), "is not one latency"),
        (pruned("2ms"), "reach: '2ms' is not one latency — write it like p50@1<=2ms"),
        (
            pruned("p50<=2ms", "torch_finetune"),
            "no step of torch_finetune has macs_ratio, .* — use torch_prune_channels or torch_prune_blocks, or drop",
        ),
        (pruned("p50<=2ms", widths=("stem=8",)), "torch_prune_channels.widths: widths chooses what goes"),
        (pruned("p50<=2ms", "torch_prune_blocks", remove=("blocks.0",)), "remove chooses what goes"),
        (
            Candidate(Recipe((*pruned("").recipe.steps, *pruned("", "torch_prune_blocks").recipe.steps)),
                      load("targets", "torch")(), "p50<=2ms"),
            "more than one step of torch_prune_channels → torch_prune_blocks has macs_ratio",
        ),
    ],
)  # fmt: skip
def test_what_nothing_can_be_chosen_for_is_refused(candidate: Candidate, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        asked(candidate)


def test_recipe_files_ask_for_a_latency(tmp_path: Path) -> None:
    steps = [{"technique": "torch_prune_channels"}]
    entry: Mapping[str, Any] = {"recipe": steps, "target": "torch", "reach": "p50<=2ms"}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"candidates": [entry]}))
    (found,) = read_recipes(path)
    assert found.reach == "p50<=2ms"
    assert found.title == "torch_prune_channels → torch for p50<=2ms"
    assert Candidate.of(found.describe()) == found
    assert found.id != dataclasses.replace(found, reach="").id
    path.write_text(json.dumps({"candidates": [{**entry, "reach": 2}]}))
    with pytest.raises(RecipeError, match='candidate 1: reach: 2 is no latency — write it like "p50@1<=2ms"'):
        read_recipes(path)


def test_a_run_reaches_a_latency_on_a_real_runtime_and_finds_it_again(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("paretune.confirm"), "fitting", lambda *told: (HURRIED, 2))
    items = images(600)
    workload = paretune.Workload("wide", net(), train=items[:400], heldout=items[400:])
    export = make(load("techniques", "torch_to_onnx"), {}, "torch_to_onnx")
    prune = make(load("techniques", "torch_prune_blocks"), {"epochs": 1}, "torch_prune_blocks")
    session = onnx_form.session(builder.build(Recipe((export,))).path(".onnx"), 1)
    took = []
    with measuring_lock():
        for _ in range(50):
            begun = time.perf_counter()
            session.run(None, {"image": items[0][0][None]})
            took.append(time.perf_counter() - begun)
    # with one block it is 2.3 times as fast, without any seven times and more: noise between them is in nobody's way
    wanted = Candidate(
        Recipe((prune, export)), load("targets", "onnxruntime")(), f"p50@1<={1e3 * np.median(took) / 4:.6f}ms"
    )
    same = dataclasses.replace(wanted, reach=wanted.reach.replace("@1", ""))
    tables = []
    for _ in range(2):
        paretune.optimize(
            workload, recipes=[wanted, same], targets=["onnxruntime"], time="10m", heldout_limit=100,
            out=tmp_path / "run", resume=True, threads=1, observers=(),
        )  # fmt: skip
        found = json.loads((tmp_path / "run" / "result.json").read_text())
        chosen, other = (one for one in found["candidates"] if one["role"] == "candidate")
        assert (other["status"], other["reach"]) == ("skipped", same.reach)
        assert other["why"].startswith(f"its latency leaves what is there already: {chosen['id']}, ")
        assert other["history"][0]["title"] == f"reach {same.reach}"
        assert (chosen["status"], chosen["reach"]) == ("built", None)
        (tried,) = (one for one in chosen["history"] if one["title"] == f"reach {wanted.reach}")
        assert chosen["macs"] in {row[tried["columns"].index("macs")] for row in tried["rows"] if row[-1] == "yes"}
        tables.append(tried["rows"])
    assert tables[0] == tables[1], "a resumed run takes the times that it took before"


def test_a_batch_that_the_run_does_not_measure_is_refused_before_the_model_is_made(tmp_path: Path) -> None:
    def never() -> nn.Module:
        raise AssertionError

    workload = paretune.Workload("wide", never, train=images(20), heldout=images(20))
    wanted = pruned("p50@32<=1ms")
    with pytest.raises(
        RecipeError, match=r"for p50@32<=1ms: reach: nothing is measured at batch 32 in this run — ask --batch 1,32"
    ):
        paretune.optimize(workload, recipes=[wanted], batch=1, out=tmp_path / "run", observers=())


def test_a_trained_model_that_misses_what_was_reached_untrained_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("paretune.confirm"), "fitting", lambda *told: (HURRIED, 2))
    items = images(300)
    workload = paretune.Workload("wide", net(), train=items[:200], heldout=items[200:])
    monkeypatch.setattr(
        import_module("paretune.fitted"), "reached", lambda asked, *more: dataclasses.replace(asked, reach="")
    )
    wanted = pruned("p50@1<=1us", "torch_prune_blocks", macs_ratio=0.7, epochs=0)
    paretune.optimize(
        workload, recipes=[wanted], targets=["torch"], time="10m", heldout_limit=50, out=tmp_path / "run", observers=()
    )
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    (warned,) = (one for one in found["warnings"] if "p50@1" in one)
    assert "ms now that it is trained, where p50@1<=1us was reached before: give reach a little less" in warned
