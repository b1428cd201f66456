"""nuScenes key frames from det3d info files (`infos_val_10sweeps_withvelo_filter_True.pkl`)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from voxelquant.data.array_pickle import PickledArray, load_array_pickle
from voxelquant.data.records import Annotations, FrameDataset, FrameRecord, SweepRecord
from voxelquant.data.tables import open_tables, split_sample_tokens
from voxelquant.errors import DatasetError
from voxelquant.geometry import invert_pose
from voxelquant.plural import counted

Info = Mapping[str, Any]  # one key frame of an info file


class InfoDataset(FrameDataset):
    """Key frames that a det3d info file lists; only scoring needs the tables and the devkit.

    The file is read without executing anything. Point files are looked up under `root` by the part
    of their path from `samples` or `sweeps` on, whatever folder the file was created in. Infos do
    not tell how many points a box holds, so `Frame.num_lidar_pts` is None.

    Args:
        info_path: Info file; `filter_True` files already lack the boxes without points.
        root: Dataset folder with `samples` and `sweeps`.
        class_names: Detection classes in the order of their labels; other boxes are dropped.
        nsweeps: Revolutions merged into a frame, the key frame included.
        version: Version folder under `root` whose tables the frames are scored against, if any.
        split: Split of these tables that has the same key frames.
        interval: Every how many-th key frame is taken, the first one included.

    Raises:
        DatasetError: The file is missing, damaged, unsafe or of another layout.
    """

    def __init__(
        self,
        info_path: str | Path,
        root: str | Path,
        class_names: Sequence[str],
        nsweeps: int = 10,
        *,
        version: str | None = None,
        split: str | None = None,
        interval: int = 1,
    ) -> None:
        super().__init__(class_names)
        if nsweeps < 1:
            raise DatasetError(f"got nsweeps {nsweeps}, need at least 1: the key frame itself")
        self.info_path = Path(info_path)
        self.root = Path(root)
        self.nsweeps = nsweeps
        self.version = version or ""
        self.split = split or self.info_path.stem
        infos = load_array_pickle(info_path)
        if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
            raise DatasetError(
                f"{info_path}: got {type(infos).__name__}, need a list of dicts, one a key frame; "
                "det3d's create_data writes such files"
            )
        self._infos: list[Info] = infos[::interval]
        self._tokens = tuple(str(self._field(info, "token")) for info in self._infos)

    def __str__(self) -> str:
        return str(self.info_path)

    @property
    def sample_tokens(self) -> tuple[str, ...]:
        """Token of every key frame, in the order of the file."""
        return self._tokens

    @property
    def annotation_path(self) -> Path:
        """The info file."""
        return self.info_path

    @cached_property
    def nusc(self) -> Any:
        """Tables of the same key frames, opened when first asked for.

        Raises:
            DatasetError: There are none, they are damaged, or their split has other key frames.
            MissingDependencyError: nuscenes-devkit is not installed.
        """
        if not self.version:
            raise DatasetError(
                f"{self.info_path}: scoring needs the tables beside the info file, and {self.root} "
                "has no version folder to choose; complete the dataset, or name it with --version"
            )
        nusc = open_tables(self.root, self.version)
        expected, own = set(split_sample_tokens(nusc, self.split)), set(self._tokens)
        if expected != own:
            example = min(expected ^ own)
            raise DatasetError(
                f"{self.info_path}: got {counted(len(own), 'key frame')}, "
                f"{len(own - expected)} of them foreign to the {len(expected)} of split "
                f"{self.split} in {self.version} (such as {example}), need the same ones to score; "
                "create the infos of that split again, or read the tables with --split"
            )
        return nusc

    def record(self, index: int) -> FrameRecord:
        """Files, poses and annotations of a key frame; reads no points.

        Raises:
            DatasetError: A field is missing or has another shape.
        """
        with self._naming(index):
            return self._record(index, self._infos[index])

    def names(self, index: int) -> tuple[str, ...]:
        """Name of every annotated box of a key frame, empty in a test set.

        Raises:
            DatasetError: The names are no array of strings.
        """
        info = self._infos[index]
        with self._naming(index):
            return tuple(map(str, self._array(info, "gt_names"))) if "gt_boxes" in info else ()

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Turn surprises about types into an error that names the sample."""
        try:
            yield
        except (AttributeError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.info_path}: sample {self._tokens[index]} is not laid out as det3d's "
                f"create_data does ({type(error).__name__}: {error}); create the infos again"
            ) from error

    def _record(self, index: int, info: Info) -> FrameRecord:
        sweeps = self._field(info, "sweeps")
        if len(sweeps) < self.nsweeps - 1:
            raise DatasetError(
                f"{self.info_path}: sample {self._tokens[index]} lists {len(sweeps)} sweeps, need "
                f"{self.nsweeps - 1} for nsweeps {self.nsweeps}; choose fewer, or create the "
                "infos again"
            )
        return FrameRecord(
            token=self._tokens[index],
            path=self._point_file(info),
            sweeps=tuple(self._sweep(sweep) for sweep in sweeps[: self.nsweeps - 1]),
            ref_to_ego=invert_pose(self._pose(info, "ref_from_car")),
            ego_to_global=invert_pose(self._pose(info, "car_from_global")),
            timestamp=float(self._field(info, "timestamp")),
            annotations=self._annotations(info) if "gt_boxes" in info else None,
        )

    def _sweep(self, sweep: Info) -> SweepRecord:
        moved = self._field(sweep, "transform_matrix") is not None
        return SweepRecord(
            path=self._point_file(sweep),
            to_reference=self._pose(sweep, "transform_matrix") if moved else None,
            time_lag_s=float(self._field(sweep, "time_lag")),
        )

    def _annotations(self, info: Info) -> Annotations:
        boxes = self._numbers(info, "gt_boxes")
        names = self._array(info, "gt_names")
        if boxes.size == 0:
            boxes = boxes.reshape(0, 9)
        if boxes.ndim != 2 or boxes.shape[1] != 9 or names.shape != (len(boxes),):
            raise DatasetError(
                f"{self.info_path}: got gt_boxes {boxes.shape} and gt_names {names.shape}, need "
                "[n, 9] and [n]; create the infos with velocities"
            )
        return Annotations(torch.from_numpy(boxes), tuple(map(str, names.tolist())), None)

    def _pose(self, info: Info, key: str) -> Tensor:
        pose = self._numbers(info, key)
        if pose.shape != (4, 4):
            raise DatasetError(f"{self.info_path}: got {key} {pose.shape}, need a pose [4, 4]")
        return torch.from_numpy(pose)

    def _point_file(self, info: Info) -> Path:
        parts = PurePosixPath(str(self._field(info, "lidar_path")).replace("\\", "/")).parts
        anchors = [i for i, part in enumerate(parts) if part in ("samples", "sweeps")]
        if not anchors or ".." in parts[anchors[-1] :]:
            raise DatasetError(
                f"{self.info_path}: got point file {'/'.join(parts)}, need a path with a folder "
                "samples or sweeps, as in nuScenes"
            )
        return self.root.joinpath(*parts[anchors[-1] :])

    def _numbers(self, info: Info, key: str) -> npt.NDArray[np.float64]:
        """A field as a float64 array of its own."""
        try:
            return self._array(info, key).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{self.info_path}: {key} does not hold numbers") from error

    def _array(self, info: Info, key: str) -> npt.NDArray[Any]:
        value = self._field(info, key)
        return value.array if isinstance(value, PickledArray) else np.array(value)

    def _field(self, info: Info, key: str) -> Any:
        if key not in info:
            raise DatasetError(
                f"{self.info_path}: a key frame or sweep lacks {key}; got "
                f"{', '.join(sorted(map(str, info)))}; need a nuScenes info file of det3d"
            )
        return info[key]
