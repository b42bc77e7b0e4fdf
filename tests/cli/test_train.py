"""``paretune train`` and ``paretune batch-size`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TRAINED = {
    "candidates": [
        {"recipe": [{"technique": "torch_finetune", "knobs": {"epochs": 1}}, {"technique": "torch_to_onnx"}],
         "target": "onnxruntime"},
    ]
}  # fmt: skip


def test_train_tells_what_it_made_and_where_to_go_on(workloads, call, capsys):
    (workloads / "chain.json").write_text(json.dumps(TRAINED))
    assert call("train", "works.py:good", "--recipe", "chain.json", "--store", "store") == 0
    said = capsys.readouterr()
    assert "torch_finetune(epochs=1)" in said.out
    assert "next: paretune optimize with --recipe chain.json --store store" in said.err
    assert call("train", "works.py:good", "--recipe", "chain.json", "--store", "store", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (Path(told["path"]) / "artifact.json").is_file()


def test_batch_size_shows_every_size_and_what_else_pays(workloads, call, capsys):
    asked = ["batch-size", "works.py:good", "--technique", "torch_distill", "--knob", "batch=16", "--up-to", "24"]
    assert call(*asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["examples_per_s"]) == ["2", "4", "8", "16", "24"]
    assert told["largest"] == 24
    assert told["micro_batch"] <= told["batch"] == 16
    assert told["micro_batch"] * told["accumulation"] >= 16
    assert {"as asked", "channels_last"} <= set(told["ways"])
    assert call(*asked) == 0
    said = capsys.readouterr().out
    assert f"micro_batch={told['micro_batch']}" in said or "micro_batch=" in said
    assert "channels_last: " in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--technique", "onnx_fold"], "onnx_fold does not train"),
        (["--technique", "torch_distil"], "torch_distill"),
        (["--knob", "precision"], "'precision' cannot be read"),
        (["--knob", "precision=fp8"], "precision"),
    ],
)
def test_what_batch_size_cannot_do_is_told_in_a_line(workloads, call, complaint, arguments, told):
    assert call("batch-size", "works.py:good", *arguments) == 2
    assert told in complaint()
