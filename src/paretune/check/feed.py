"""Feed: batches of inputs as files that a child process maps into memory; no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Feed:
    """A directory: one flat file per input, and an index of every batch's dtype, shape and offset."""

    root: Path

    @classmethod
    def write(cls, batches: Iterable[Arrays], root: Path) -> Feed:
        """Write batches one after the other; only one is held in memory."""
        root.mkdir(parents=True, exist_ok=True)
        index: list[list[dict[str, Any]]] = []
        offset = 0
        with (root / "inputs.bin").open("wb") as file:
            for batch in batches:
                row = []
                for array in batch:
                    data = np.ascontiguousarray(array).reshape(array.shape)  # it makes a scalar one-dimensional
                    file.write(b"\0" * (-offset % 64))
                    offset += -offset % 64
                    row.append({"dtype": data.dtype.str, "shape": data.shape, "offset": offset})
                    file.write(data.tobytes())
                    offset += data.nbytes
                index.append(row)
        (root / "index.json").write_text(json.dumps(index))
        return cls(root)

    def read(self) -> list[Arrays]:
        """All batches, mapped privately: a runtime that writes into its inputs changes nobody else's."""
        index = json.loads((self.root / "index.json").read_text())
        path = self.root / "inputs.bin"
        flat = np.memmap(path, np.uint8, "c") if path.stat().st_size else np.empty(0, np.uint8)

        def view(spec: dict[str, Any]) -> np.ndarray[Any, Any]:
            dtype = np.dtype(spec["dtype"])
            size = int(np.prod(spec["shape"], dtype=np.int64)) * dtype.itemsize
            part = flat[spec["offset"] : spec["offset"] + size]
            whole: np.ndarray[Any, Any] = np.asarray(part).view(dtype).reshape(spec["shape"])
            return whole

        return [tuple(view(spec) for spec in row) for row in index]
