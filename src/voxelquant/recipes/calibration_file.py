"""A calibration in progress, on disk: what a process has seen, and for which request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelquant.data.sampling import Shard
from voxelquant.errors import CalibrationError
from voxelquant.plural import counted
from voxelquant.quant.histogram import MagnitudeHistogram
from voxelquant.quant.histogram_file import read_histograms, write_histograms


@dataclass(frozen=True)
class Seen:
    """Histograms of the first `batches` batches of a process."""

    batches: int
    histograms: dict[str, MagnitudeHistogram]


@dataclass(frozen=True)
class CalibrationFile:
    """Where one process keeps its part of a calibration until the result is written, or longer.

    Attributes:
        folder: of the run, or one for observations.
        shard: the process.
        request: all that the histograms depend on, as plain JSON.
        lasting: whether the file is meant to outlive the run; one of another request is then not
            replaced.
    """

    folder: Path
    shard: Shard
    request: Mapping[str, Any]
    lasting: bool = False

    @property
    def path(self) -> Path:
        """Each process has its own file, so nothing is shared while they work."""
        stem = "observations" if self.lasting else "calibration"  # which `remove` knows
        return self.folder / f"{stem}.rank{self.shard.rank}.safetensors"

    def save(self, seen: Seen) -> None:
        """Keep what was seen so far; a process that is killed meanwhile leaves the file before."""
        facts = {"batches": seen.batches, "request": dict(self.request)}
        write_histograms(self.path, seen.histograms, facts)

    def load(self) -> tuple[Seen, str]:
        """What an earlier run of the same request has seen, and a line about it for the user.

        A file of another request, or a damaged one, counts for nothing.

        Raises:
            CalibrationError: a lasting file is of another request.
        """
        nothing = Seen(0, {})
        if not self.path.exists():
            return nothing, ""
        try:
            histograms, facts = read_histograms(self.path)
        except CalibrationError as error:
            return nothing, f"starting afresh: {error}"
        found = facts.get("request", {})
        other = [key for key, value in self.request.items() if found.get(key) != value]
        if other and self.lasting:
            raise CalibrationError(
                f"{self.path}: got observations made otherwise ({', '.join(other)}); name another "
                "folder with --observations, or remove the file"
            )
        if other:
            return nothing, f"starting afresh: {self.path} is of other {', '.join(other)}"
        batches = counted(facts["batches"], "batch", "batches")
        return Seen(facts["batches"], histograms), f"{batches} seen before"

    def remove(self) -> None:
        """Forget it, the result is written; the main process clears what other runs left, too."""
        self.path.unlink(missing_ok=True)
        if self.shard.rank == 0:
            for pattern in ("calibration.rank*", ".calibration.rank*"):  # whole, and begun
                for path in self.folder.glob(f"{pattern}.safetensors"):
                    path.unlink(missing_ok=True)
