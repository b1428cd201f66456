"""The log of a training: one JSON record a line, in step with the checkpoint that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from voxelquant.recipes.artifacts import write_text_atomic


class TrainingLog:
    """Appends records to `log.jsonl`.

    A run that was killed had logged steps that its last checkpoint knows nothing of; they are made
    again, so their records, and a line that was cut, are dropped.

    Args:
        path: the file; what another run wrote is dropped where this one begins at step 0.
        first_step: steps that are done already.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        if not first_step:
            path.unlink(missing_ok=True)
        elif path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step(line) <= first_step]
            write_text_atomic(path, "".join(kept))

    def append(self, record: Mapping[str, object]) -> None:
        """Add one record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
