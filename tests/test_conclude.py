"""What is warned of when a run's calls are read together."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CALLS: list[tuple[str, list[tuple[str, str]]]] = [
    ("data", [("a", "1"), ("b", "1")]),
    ("data", [("a", "1"), ("b", "1"), ("c", "1")]),
]
"""What was held out in each call, and which candidates (id, digest) were tested on it in order."""


@pytest.mark.parametrize(
    ("calls", "many"),
    [
        ([], 0),
        (CALLS, 0),
        ([*CALLS, ("data", [("a", "1"), ("d", "1")])], 2),
        ([*CALLS, ("other", [("a", "1"), ("d", "1")])], 0),
        ([*CALLS, ("data", [("a", "2")]), ("data", [("a", "3")])], 3),
    ],
    ids=["none", "one goes on", "another sequence", "other data", "other parameters"],
)
def test_calls_that_test_others_on_the_same_data_are_counted(tmp_path: Path, calls: Any, many: int) -> None:
    events = []
    for heldout, tested in calls:
        events += [{"event": "stage", "text": "reading"}, {"event": "stage", "text": "confirming", "heldout": heldout}]
        for name, digest in tested:
            events.append({"event": "candidate", "stage": "candidate", "id": name, "artifact": digest})
            events.append({"event": "candidate", "stage": "confirmed", "id": name, "artifact": digest})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"at": "now", "text": "", **one}) + "\n" for one in events))
    loop = SimpleNamespace(root=tmp_path, data=SimpleNamespace(heldout=SimpleNamespace(digest="data")))
    told = import_module("paretune.conclude")._repeated(loop)
    assert [one.split()[0] for one in told] == ([str(many)] if many else [])
