"""The ground-truth database: every annotated object of a dataset's frames, in one file.

A safetensors file: the points of all objects one behind the other, and an index of the objects.
It is written as a stream, a frame at a time, since on nuScenes the points take several GB, and read
through a memory map, so that worker processes share what the operating system keeps of it. The
header says what the objects were cut out of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxelquant.atomic_file import atomic_path
from voxelquant.data.loader import FrameLoader, LoaderOptions
from voxelquant.data.objects import CutObjects, ObjectIndex, cut_objects, keep_box_points
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import Draw
from voxelquant.digest import file_digest, text_digest
from voxelquant.errors import DatasetError

FORMAT = 2
_KEY = "object_database"  # entry of the file's metadata
_COLUMNS = 5  # x, y, z relative to the centre, intensity, dt
_DTYPES = {torch.float32: "F32", torch.int32: "I32"}
_POINTS = "points"
_SPARE_BYTES = 1024  # of the header, for names, shapes and offsets of the tensors

Progress = Callable[[int, int], None]  # frames done, frames in all


@dataclass(frozen=True)
class DatabaseKey:
    """What a database depends on: another key, another database.

    Attributes:
        annotations: info file, or version folder and split of the tables.
        annotation_digest: of the content of the file that the boxes come from.
        frames: number of key frames.
        frame_digest: of their tokens, in order.
        nsweeps: revolutions merged into a frame.
        classes: detection classes whose objects are kept.
        format: version of this file's layout.
    """

    annotations: str
    annotation_digest: str
    frames: int
    frame_digest: str
    nsweeps: int
    classes: tuple[str, ...]
    format: int = FORMAT

    @classmethod
    def of(cls, dataset: FrameDataset) -> DatabaseKey:
        """Key of the database of a dataset; reads no frame."""
        return cls(
            annotations=_annotation_name(dataset),
            annotation_digest=file_digest(dataset.annotation_path)[:16],
            frames=len(dataset),
            frame_digest=text_digest("\n".join(dataset.sample_tokens))[:16],
            nsweeps=dataset.nsweeps,
            classes=tuple(sorted(dataset.class_names)),
        )

    def difference(self, now: DatabaseKey) -> str | None:
        """The first field that is another one now, in words; None if the keys agree."""
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(now, field.name)
            if old != new:
                return f"{field.name.replace('_', ' ')} was {old}, is {new}"
        return None


def database_name(dataset: FrameDataset) -> str:
    """File name of the database of a dataset.

    `object_database_v1.0-trainval_train_10sweeps.safetensors`, say.
    """
    return f"object_database_{_annotation_name(dataset)}_{dataset.nsweeps}sweeps.safetensors"


def _annotation_name(dataset: FrameDataset) -> str:
    path = dataset.annotation_path
    return path.stem if path.suffix == ".pkl" else f"{dataset.version}_{dataset.split}"


def build_database(
    dataset: FrameDataset,
    path: Path,
    *,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Cut the objects out of every frame and write them; the file appears whole or not at all.

    Holds one frame and the index (52 bytes an object) in memory.

    Args:
        dataset: Annotated frames.
        path: Final name.
        num_workers: Processes that read frames ahead; they do not change what is written.
        progress: Called after every frame.

    Raises:
        DatasetError: The file cannot be written, or a frame cannot be read or has no annotations.
    """
    loader: FrameLoader = FrameLoader(
        dataset,
        [Draw(index, seed=0) for index in range(len(dataset))],
        [keep_box_points] if num_workers else [],
        LoaderOptions(num_workers=num_workers),
    )
    with atomic_path(path, DatasetError) as temporary, temporary.open("wb") as file:
        writer = _DatabaseWriter(file, DatabaseKey.of(dataset), dataset.class_names)
        for done, batch in enumerate(loader, start=1):
            writer.add(cut_objects(batch.frames[0]))
            if progress is not None:
                progress(done, len(dataset))
        writer.finish()


class _DatabaseWriter:
    """Writes points as they come, then the index, then the header in front of them."""

    def __init__(self, file: BinaryIO, key: DatabaseKey, class_names: tuple[str, ...]) -> None:
        self._file = file
        self._metadata = {_KEY: json.dumps({"key": asdict(key), "names": class_names})}
        used = len(json.dumps(self._metadata).encode())
        self._header_bytes = -(-(used + _SPARE_BYTES) // 8) * 8
        self._file.write(bytes(8 + self._header_bytes))
        self._cuts: list[CutObjects] = []
        self._points = 0

    def add(self, cut: CutObjects) -> None:
        self._write(cut.points)
        self._points += len(cut.points)
        self._cuts.append(CutObjects(cut.labels, cut.boxes_det3d, cut.num_points, torch.empty(0)))

    def finish(self) -> None:
        index = {
            "boxes_det3d": torch.cat([cut.boxes_det3d for cut in self._cuts]),
            "kinds": torch.cat([cut.labels for cut in self._cuts]).to(torch.int32),
            "num_points": torch.cat([cut.num_points for cut in self._cuts]).to(torch.int32),
        }
        header: dict[str, Any] = {"__metadata__": self._metadata}
        end = 0
        shapes = {_POINTS: (torch.float32, [self._points, _COLUMNS])}
        shapes |= {name: (tensor.dtype, list(tensor.shape)) for name, tensor in index.items()}
        for name, (dtype, shape) in shapes.items():
            start, end = end, end + 4 * torch.Size(shape).numel()
            entry = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
            header[name] = entry
        for tensor in index.values():
            self._write(tensor)
        text = json.dumps(header).encode().ljust(self._header_bytes)
        assert len(text) == self._header_bytes, "the header has outgrown its place"
        self._file.seek(0)
        self._file.write(self._header_bytes.to_bytes(8, "little") + text)

    def _write(self, tensor: Tensor) -> None:
        self._file.write(tensor.contiguous().numpy().data)


class ObjectDatabase:
    """Objects of a database file; their points stay on disk until they are asked for.

    Attributes:
        path: The file.
        key: What it was built from.
        index: Class, box and number of points of every object.

    Raises:
        DatasetError: The file is missing, damaged or no object database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self.key, names = _read_metadata(self._file.metadata() or {})
            self.index, self._starts = _read_index(self._file, names)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DatasetError(
                f"{path}: no object database of this version, or a damaged one "
                f"({type(error).__name__}: {error})"
            ) from error

    def points(self, row: int) -> Tensor:
        """Points [p, 5] of one object, x, y, z relative to the centre of its box."""
        start, end = self._starts[row : row + 2].tolist()
        return self._file.get_slice(_POINTS)[start:end]

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: the process that unpickles this opens its own."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = _open(self.path)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DatasetError(f"{path}: cannot be read as an object database ({error})") from error


def _read_metadata(metadata: dict[str, str]) -> tuple[DatabaseKey, tuple[str, ...]]:
    content = json.loads(metadata[_KEY])
    values = content["key"] | {"classes": tuple(content["key"]["classes"])}
    return DatabaseKey(**values), tuple(map(str, content["names"]))


def _read_index(file: Any, names: tuple[str, ...]) -> tuple[ObjectIndex, Tensor]:
    """The index, and where the points of each object start, [n + 1] int64."""
    boxes, kinds, counts = (file.get_tensor(n) for n in ("boxes_det3d", "kinds", "num_points"))
    n = len(boxes)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.to(torch.int64).cumsum(0)))
    if not (
        boxes.shape == (n, 9)
        and kinds.shape == counts.shape == (n,)
        and file.get_slice(_POINTS).get_shape() == [int(starts[-1]), _COLUMNS]
        and bool(boxes.isfinite().all() and (kinds >= 0).all() and (kinds < len(names)).all())
        and bool((counts > 0).all())
    ):
        raise ValueError("its index does not fit its points")
    return ObjectIndex(names, kinds, boxes, counts, torch.zeros_like(kinds)), starts
