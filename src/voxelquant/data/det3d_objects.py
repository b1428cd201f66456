"""Objects of a ground-truth database that det3d made (`dbinfos_train_10sweeps_withvelo.pkl`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelquant.data.array_pickle import PickledArray, load_array_pickle
from voxelquant.data.objects import ObjectIndex
from voxelquant.errors import DatasetError
from voxelquant.geometry import wrap_to_pi

_POINT_BYTES = 20  # x, y, z relative to the centre, intensity, dt, all float32
_ADVICE = "create the database again with det3d, or move it away to have one built here"


class Det3dObjects:
    """Objects of a det3d database: an info file, and a file of points for each object.

    The info file is read without executing anything. Point files are looked up under `root` by the
    part of their path from the database's folder on (`gt_database...`), whatever folder they were
    created in.

    Args:
        path: Info file: a dict of lists of dicts, by class.
        root: Dataset folder with the database's folder.
        class_names: Classes to keep.

    Raises:
        DatasetError: The info file is damaged, unsafe or of another layout, or the point files
            are not there.
    """

    def __init__(self, path: Path, root: Path, class_names: Sequence[str]) -> None:
        self.path = path
        self.root = root
        content = load_array_pickle(path)
        if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
            raise DatasetError(f"{path}: need a dict of lists of objects, by class; {_ADVICE}")
        names = tuple(name for name in class_names if name in content)
        objects = [(kind, row) for kind, name in enumerate(names) for row in content[name]]
        try:
            self.index = _index(names, objects)
            files = [_point_file(row["path"]) for _, row in objects]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{path}: an object is not laid out as det3d does ({type(error).__name__}: "
                f"{error}); {_ADVICE}"
            ) from error
        # An array of bytes is shared by forked workers, a list of a million strings is not.
        self._files = np.array(files, dtype=np.bytes_)
        self._require_point_files()

    def points(self, row: int) -> Tensor:
        """Points [p, 5] of one object, x, y, z relative to the centre of its box.

        Raises:
            DatasetError: Its file is missing or has another size.
        """
        file = self._file(row)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{file}: cannot be read ({error.strerror}); {_ADVICE}") from error
        expected = int(self.index.num_points[row]) * _POINT_BYTES
        if len(raw) != expected:
            raise DatasetError(
                f"{file}: got {len(raw)} bytes, need the {expected} that {self.path.name} tells "
                f"of; {_ADVICE}"
            )
        return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32).reshape(-1, 5))

    def _file(self, row: int) -> Path:
        return self.root / self._files[row].decode()

    def _require_point_files(self) -> None:
        """Try the first object of each class, before a training starts that would need them all."""
        kinds = self.index.kinds.tolist()
        for kind in sorted(set(kinds)):
            file = self._file(kinds.index(kind))
            if not file.is_file():
                raise DatasetError(f"{self.path} names {file}, which is missing; {_ADVICE}")


def _index(names: tuple[str, ...], objects: list[tuple[int, dict[str, Any]]]) -> ObjectIndex:
    boxes = np.zeros((len(objects), 9), dtype=np.float32)
    for number, (_, row) in enumerate(objects):
        box = row["box3d_lidar"]
        boxes[number] = _nine(box.array if isinstance(box, PickledArray) else np.array(box))
    boxes[:, 6:8] = np.nan_to_num(boxes[:, 6:8], nan=0.0)  # unknown velocities, as frames have them
    if not np.isfinite(boxes).all():
        raise ValueError("a box is not finite")
    boxes_det3d = torch.from_numpy(boxes)
    boxes_det3d[:, 8] = wrap_to_pi(boxes_det3d[:, 8])

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return ObjectIndex(
        names=names,
        kinds=column([kind for kind, _ in objects]),
        boxes_det3d=boxes_det3d,
        num_points=column([int(row["num_points_in_gt"]) for _, row in objects]),
        difficulties=column([int(row.get("difficulty", 0)) for _, row in objects]),
    )


def _nine(box: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if box.shape != (9,):
        raise ValueError(f"box3d_lidar {box.shape}, need [9], with velocity")
    return box.astype(np.float64)


def _point_file(path: str) -> str:
    """The part of an object's path that is looked up under the dataset's root."""
    parts = PurePosixPath(str(path).replace("\\", "/")).parts
    anchors = [i for i, part in enumerate(parts[:-1]) if part.startswith("gt_database")]
    if not anchors or ".." in parts[anchors[-1] :]:
        raise ValueError(f"point file {path!r:.100}, need a path with a folder gt_database...")
    return str(PurePosixPath(*parts[anchors[-1] :]))
