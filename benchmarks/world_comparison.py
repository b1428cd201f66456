"""All that a result of world.py holds of the synthetic frames and of nuScenes."""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world_boxes import (
    DISTANCE_STEP_M,
    FEW_BOXES,
    POINT_EDGES,
    QUANTILES,
    SPEED_STEP_MPS,
    Boxes,
    count_attributes,
    describe_boxes,
    intensity_in_boxes,
    measure_boxes,
)
from world_measures import (
    MEASURES,
    FrameFigures,
    beams_of,
    intensity_over_range,
    measure_cloud,
    measure_key_frame,
    without_own_returns,
)
from world_nuscenes import (
    measure_real_frames,
    published_statistics,
    read_voxel_counts,
    real_boxes,
    real_intensity_over_range,
)
from world_summary import (
    describe_brightness,
    describe_voxel_counts,
    summarize_intensity,
    summarize_real,
    summarize_world,
)

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic import (
    CLASS_NAMES,
    LidarConfig,
    SceneSpec,
    WorldConfig,
    write_dataset,
)
from voxelquant.data.synthetic.taxonomy import KINDS, N_CLASSES


@dataclass
class Gathered:
    """What is kept of the frames while they are made."""

    lidar: LidarConfig
    figures: list[FrameFigures] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)
    intensity_over_range: Tensor | float = 0.0
    intensity_in_boxes: Tensor | float = 0.0

    def add(self, frame: Frame) -> None:
        """Measure one more frame."""
        assert frame.boxes_det3d is not None
        assert frame.labels is not None
        points = without_own_returns(frame.points)
        key = points[points[:, 4] == 0]
        beams = beams_of(key, self.lidar.elevations_rad())
        self.figures.append(measure_cloud(points).update(measure_key_frame(key, beams)))
        self.boxes.append(measure_boxes(frame.boxes_det3d, frame.labels, key))
        self.intensity_over_range += intensity_over_range(key)
        self.intensity_in_boxes += intensity_in_boxes(frame.boxes_det3d, frame.labels, key)


def compare_world(
    frames: Iterable[Frame], seed: int, config: WorldConfig, real: Path | None
) -> dict[str, Any]:
    """All figures of the frames, beside those of nuScenes where there is a folder of it."""
    gathered = Gathered(config.lidar)
    for frame in frames:
        gathered.add(frame)
    figures = gathered.figures
    measured: dict[str, Any] = {
        "frames": len(figures),
        "measures": describe_measures(),
        "firings": config.lidar.columns,
        "synthetic": {
            **summarize_world(figures, config.lidar.columns),
            "intensity_over_range": summarize_intensity(gathered.intensity_over_range),
            "boxes": describe_boxes(Boxes.join(gathered.boxes), len(figures)),
            "intensity_in_boxes": brightness_of_classes(gathered.intensity_in_boxes),
            "attributes": attributes_of(seed, len(figures), config),
        },
    }
    if real is not None:
        measured["nuscenes"] = describe_nuscenes(real)
        voxels = torch.tensor([frame.scalars["voxels"] for frame in figures]).double()
        measured["voxel_counts"] = describe_voxel_counts(voxels, read_voxel_counts(real))
    return measured


def brightness_of_classes(counts: Tensor) -> dict[str, Any]:
    """Of counts [classes, 256]: quantiles of the intensity in boxes of each class."""
    return {
        name: describe_brightness(row, QUANTILES)
        for name, row in zip(CLASS_NAMES, counts, strict=True)
    }


def describe_measures() -> dict[str, Any]:
    """What the histograms count and where their bins are."""
    histograms = {name: asdict(measure) for name, measure in MEASURES.items()}
    boxes = {
        "distance_step_m": DISTANCE_STEP_M,
        "point_edges": POINT_EDGES,
        "speed_step_mps": SPEED_STEP_MPS,
        "quantiles": QUANTILES,
        "few_boxes": FEW_BOXES,
        "ranges_m": {kind.name: kind.range_m for kind in KINDS[:N_CLASSES]},
    }
    return {"histograms": histograms, "boxes": boxes}


def describe_nuscenes(folder: Path) -> dict[str, Any]:
    """All figures of real frames, and the published ones."""
    boxes, brightness = real_boxes(folder)
    return {
        "frames": summarize_real(measure_real_frames(folder)),
        "intensity_over_range": summarize_intensity(real_intensity_over_range(folder)),
        "boxes": boxes,
        "intensity_in_boxes": brightness_of_classes(brightness),
        "published": published_statistics(),
    }


def attributes_of(seed: int, scenes: int, config: WorldConfig) -> dict[str, int]:
    """Annotations of each attribute in the same scenes, by their tables; one sweep is enough."""
    specs = [SceneSpec(seed, scene, key_frames=1) for scene in range(scenes)]
    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(
            Path(folder) / "world", {"val": specs}, config=replace(config, sweeps=1)
        )
        return count_attributes(root)
