"""What a profile has done so far, on disk: its request, its ranges, and frames in chunks.

A process that is killed loses the frames since its last chunk. Chunks say which frames they hold,
so that any number of processes may go on with what any other number has left behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.detection.decode import Detections
from voxelquant.detection.head_change import HeadChange
from voxelquant.errors import BadInputError
from voxelquant.recipes.artifacts import to_jsonable, write_json_atomic
from voxelquant.recipes.sensitivity_frames import FrameOutcome

REQUEST_FILE = "profile.json"
RANGES_FILE = "ranges.safetensors"
CHUNK_FOLDER = "frames"
_FORMAT = 1
_CHANGE_FIELDS = 4  # of HeadChange


@dataclass(frozen=True)
class ProfileStore:
    """The work dir of one profile."""

    folder: Path

    @property
    def ranges(self) -> Path:
        """The calibrated state, written once, before any frame."""
        return self.folder / RANGES_FILE

    def open(self, request: Mapping[str, Any]) -> None:
        """Begin this profile, or go on with the same one.

        Args:
            request: everything that the frames' outcome depends on.

        Raises:
            BadInputError: the folder holds the profile of another request, or cannot be written.
        """
        path = self.folder / REQUEST_FILE
        wanted = {"format": _FORMAT, **to_jsonable(request)}
        if not path.exists():
            write_json_atomic(path, wanted)
            return
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BadInputError(
                f"{path}: not a profile's request ({error}); choose another --work-dir"
            ) from None
        other = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if other:
            raise BadInputError(
                f"{self.folder}: holds a profile of another request ({', '.join(other)} differ); "
                "choose another --work-dir, or delete this one"
            )

    def sweep(self) -> None:
        """Remove what a killed process left unfinished; only while no other process writes."""
        for unfinished in (self.folder / CHUNK_FOLDER).glob(".chunk_*"):
            unfinished.unlink()

    def done(self) -> set[int]:
        """Frames that lie in chunks.

        Raises:
            BadInputError: a chunk cannot be read.
        """
        return {frame for path in self._chunks() for frame in _frames_of(path)}

    def save(self, outcomes: Mapping[int, FrameOutcome]) -> None:
        """Write the outcomes of some frames as one chunk.

        Raises:
            BadInputError: it cannot be written.
        """
        frames = sorted(outcomes)
        detections = [found for frame in frames for found in outcomes[frame].detections]
        changes = [[astuple(c) for c in outcomes[frame].changes] for frame in frames]
        variants = len(changes[0])
        counts = torch.tensor([len(found) for found in detections])
        tensors = {
            "boxes_det3d": torch.cat([found.boxes_det3d for found in detections]),
            "scores": torch.cat([found.scores for found in detections]),
            "labels": torch.cat([found.labels for found in detections]),
            "counts": counts.view(len(frames), variants),
            "changes": torch.tensor(changes, dtype=torch.float64),  # [frames, variants, 4]
        }
        path = self.folder / CHUNK_FOLDER / f"chunk_{frames[0]:06d}.safetensors"
        with atomic_path(path) as unfinished:
            save_file(tensors, unfinished, metadata={"frames": json.dumps(frames)})

    def load(self, variants: int) -> dict[int, FrameOutcome]:
        """Outcomes of all frames that are done, in order of frame.

        Raises:
            BadInputError: a chunk cannot be read, or is of another number of variants.
        """
        outcomes: dict[int, FrameOutcome] = {}
        for path in self._chunks():
            outcomes.update(_read_chunk(path, variants))
        return dict(sorted(outcomes.items()))

    def _chunks(self) -> list[Path]:
        return sorted((self.folder / CHUNK_FOLDER).glob("chunk_*.safetensors"))


def _frames_of(path: Path) -> list[int]:
    try:
        with safe_open(path, framework="pt") as file:
            return [int(frame) for frame in json.loads((file.metadata() or {})["frames"])]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_chunk(path: Path, variants: int) -> dict[int, FrameOutcome]:
    frames = _frames_of(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        counts, changes = tensors["counts"], tensors["changes"]
        boxes = (tensors[key] for key in ("boxes_det3d", "scores", "labels"))
        parts = [list(part.split(counts.flatten().tolist())) for part in boxes]
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise _damaged(path, error) from None
    expected = (len(frames), variants)
    if counts.shape != expected or changes.shape != (*expected, _CHANGE_FIELDS):
        raise _damaged(path, f"counts {tuple(counts.shape)}, need {expected}")
    found = [Detections(*item) for item in zip(*parts, strict=True)]
    return {
        frame: FrameOutcome(
            tuple(found[row * variants : (row + 1) * variants]), _changes(changes[row])
        )
        for row, frame in enumerate(frames)
    }


def _changes(rows: Tensor) -> tuple[HeadChange, ...]:
    return tuple(
        HeadChange(error, int(positives), int(lost), int(created))
        for error, positives, lost, created in rows.tolist()
    )


def _damaged(path: Path, reason: object) -> BadInputError:
    return BadInputError(f"{path}: not a chunk of this profile ({reason}); delete it and run again")
