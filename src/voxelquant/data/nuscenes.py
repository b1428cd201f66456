"""nuScenes key frames from its tables.

Sweeps, transforms and annotations follow CenterPoint's info files (det3d `create_data`), with one
deliberate difference: sweeps stand in a fixed order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelquant.data.records import Annotations, FrameDataset, FrameRecord, SweepRecord
from voxelquant.data.tables import open_tables, split_sample_tokens
from voxelquant.errors import DatasetError, GeometryError
from voxelquant.geometry import (
    invert_pose,
    pose_matrix,
    rotation_matrix,
    theta_to_yaw_det3d,
    transform_points,
)

Row = dict[str, Any]  # a record of a nuScenes table


class NuScenesDataset(FrameDataset):
    """Key frames of one split of a nuScenes-format dataset, each with its sweeps.

    Args:
        root: Dataset folder.
        version: Version folder in it, such as `v1.0-mini`.
        split: A split of nuScenes, or one of `splits.json` in the version folder.
        class_names: Detection classes in the order of their labels; other boxes are dropped.
        nsweeps: Revolutions merged into a frame, the key frame included.
        drop_empty_boxes: Drop annotations without any LiDAR or radar point.
        interval: Every how many-th key frame is taken, the first one included.

    Raises:
        DatasetError: Missing or damaged files, an unknown split or class.
        MissingDependencyError: nuscenes-devkit is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        version: str,
        split: str,
        class_names: Sequence[str],
        nsweeps: int = 10,
        *,
        drop_empty_boxes: bool = True,
        interval: int = 1,
    ) -> None:
        super().__init__(class_names)
        if nsweeps < 1:
            raise DatasetError(f"got nsweeps {nsweeps}, need at least 1: the key frame itself")
        self.root = Path(root)
        self.version = version
        self.split = split
        self.nsweeps = nsweeps
        self.drop_empty_boxes = drop_empty_boxes
        self._nusc = open_tables(root, version)  # also what evaluation reads: opened only once
        self._tokens = split_sample_tokens(self.nusc, split)[::interval]
        self._detection_name = _detection_names(self.nusc, self.class_names)

    def __str__(self) -> str:
        return f"split {self.split} of {self.root / self.version}"

    @property
    def nusc(self) -> Any:
        """The open tables."""
        return self._nusc

    @property
    def sample_tokens(self) -> tuple[str, ...]:
        """Token of every key frame of the split, in the order of the sample table."""
        return self._tokens

    @property
    def annotation_path(self) -> Path:
        """The table of boxes."""
        return self.root / self.version / "sample_annotation.json"

    def record(self, index: int) -> FrameRecord:
        """Files, poses and annotations of a key frame; reads no points.

        Raises:
            DatasetError: A table refers to a record or field that is missing.
        """
        token = self._tokens[index]
        with self._naming(token):
            return self._record(self.nusc.get("sample", token))

    def names(self, index: int) -> tuple[str, ...]:
        """Detection class of every annotation of a key frame, `ignore` for other categories.

        Raises:
            DatasetError: A table refers to a record or field that is missing.
        """
        token = self._tokens[index]
        with self._naming(token):
            return self._names(self._annotation_rows(self.nusc.get("sample", token)))

    @contextmanager
    def _naming(self, token: str) -> Iterator[None]:
        """Turn a dangling reference or an unusable value into an error that names the sample."""
        try:
            yield
        except KeyError as error:
            raise DatasetError(
                f"{self.nusc.table_root}: sample {token} refers to {error}, which the tables "
                "lack; fetch the metadata again"
            ) from error
        except (GeometryError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.nusc.table_root}: sample {token} has an unusable pose or annotation "
                f"({error}); fetch the metadata again"
            ) from error

    def _record(self, sample: Row) -> FrameRecord:
        key_frame = self.nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        ref_to_ego, ego_to_global = self._poses(key_frame)
        ref_from_global = invert_pose(ref_to_ego) @ invert_pose(ego_to_global)
        # A test set comes without annotations.
        annotated = len(self.nusc.sample_annotation) > 0
        return FrameRecord(
            token=sample["token"],
            path=self.root / key_frame["filename"],
            sweeps=self._sweeps(key_frame, ref_from_global),
            ref_to_ego=ref_to_ego,
            ego_to_global=ego_to_global,
            timestamp=1e-6 * key_frame["timestamp"],
            annotations=self._annotations(sample, ref_from_global) if annotated else None,
        )

    def _sweeps(self, key_frame: Row, ref_from_global: Tensor) -> tuple[SweepRecord, ...]:
        """The revolutions before the key frame, youngest first, padded at the scene's start."""
        sweeps: list[SweepRecord] = []
        current = key_frame
        while len(sweeps) < self.nsweeps - 1:
            if current["prev"]:
                current = self.nusc.get("sample_data", current["prev"])
                ref_to_ego, ego_to_global = self._poses(current)
                sweeps.append(
                    SweepRecord(
                        path=self.root / current["filename"],
                        to_reference=ref_from_global @ ego_to_global @ ref_to_ego,
                        time_lag_s=1e-6 * key_frame["timestamp"] - 1e-6 * current["timestamp"],
                    )
                )
            elif sweeps:
                sweeps.append(sweeps[-1])
            else:
                sweeps.append(SweepRecord(self.root / key_frame["filename"], None, 0.0))
        return tuple(sweeps)

    def _poses(self, sample_data: Row) -> tuple[Tensor, Tensor]:
        sensor = self.nusc.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        ego = self.nusc.get("ego_pose", sample_data["ego_pose_token"])
        return (
            pose_matrix(sensor["translation"], sensor["rotation"]),
            pose_matrix(ego["translation"], ego["rotation"]),
        )

    def _annotation_rows(self, sample: Row) -> list[Row]:
        rows = [self.nusc.get("sample_annotation", token) for token in sample["anns"]]
        if self.drop_empty_boxes:
            rows = [row for row in rows if row["num_lidar_pts"] + row["num_radar_pts"] > 0]
        return rows

    def _names(self, rows: list[Row]) -> tuple[str, ...]:
        return tuple(self._detection_name[row["category_name"]] for row in rows)

    def _annotations(self, sample: Row, ref_from_global: Tensor) -> Annotations:
        rows = self._annotation_rows(sample)
        return Annotations(
            boxes_det3d=self._boxes(rows, ref_from_global),
            names=self._names(rows),
            num_lidar_pts=torch.tensor([row["num_lidar_pts"] for row in rows], dtype=torch.int64),
        )

    def _boxes(self, rows: list[Row], ref_from_global: Tensor) -> Tensor:
        """Annotations as det3d boxes in the key frame's LiDAR frame, [n, 9] float64."""
        if not rows:
            return torch.zeros((0, 9), dtype=torch.float64)
        centers = torch.tensor([row["translation"] for row in rows], dtype=torch.float64)
        velocities = torch.stack(
            [torch.from_numpy(self.nusc.box_velocity(row["token"])) for row in rows]
        )
        rotation = ref_from_global[:3, :3]
        # The length axis is the box's own x axis: the first column of its rotation.
        length_axes = torch.stack([rotation_matrix(row["rotation"])[:, 0] for row in rows])
        heading = length_axes @ rotation.T
        theta = torch.atan2(heading[:, 1], heading[:, 0])
        return torch.cat(
            (
                transform_points(centers, ref_from_global),
                torch.tensor([row["size"] for row in rows], dtype=torch.float64),  # w, l, h
                (velocities @ rotation.T)[:, :2],
                theta_to_yaw_det3d(theta)[:, None],
            ),
            dim=1,
        )


def _detection_names(nusc: Any, class_names: Sequence[str]) -> dict[str, str]:
    """Detection class of every category in the tables; `ignore` for those that have none."""
    from nuscenes.eval.detection.constants import DETECTION_NAMES
    from nuscenes.eval.detection.utils import category_to_detection_name

    unknown = [name for name in class_names if name not in DETECTION_NAMES]
    if unknown:
        raise DatasetError(
            f"got class {unknown[0]}, which nuScenes does not have; need some of "
            f"{', '.join(DETECTION_NAMES)}"
        )
    categories = (row["name"] for row in nusc.category)
    return {name: category_to_detection_name(name) or "ignore" for name in categories}
