"""From the head's raw maps to boxes.

Every cell whose best class scores above the threshold is a candidate (no peak picking); each task
suppresses its own candidates. Tasks are concatenated in order and not sorted again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.detection.head_spec import BevGrid, HeadSpec
from voxelquant.detection.nms import circle_nms, rotated_nms


@dataclass(frozen=True)
class Detections:
    """Boxes found in one frame."""

    boxes_det3d: Tensor  # [k, 9] x, y, z, w, l, h, vx, vy, yaw'; [k, 7] without velocity
    scores: Tensor  # [k] in (0, 1)
    labels: Tensor  # [k] int64, global

    def __len__(self) -> int:
        return len(self.scores)

    def to(self, device: torch.device | str) -> "Detections":
        """The same detections on another device."""
        return Detections(
            self.boxes_det3d.to(device), self.scores.to(device), self.labels.to(device)
        )


@dataclass(frozen=True)
class LocatedDetections:
    """Boxes of one frame with the head cells that they were read from."""

    detections: Detections
    tasks: Tensor  # [k] int64
    cells_yx: Tensor  # [k, 2] int64: iy, ix


def decode_predictions(preds: Sequence[Mapping[str, Tensor]], spec: HeadSpec) -> list[Detections]:
    """Boxes of every frame of a batch, after suppression.

    Args:
        preds: Per task the raw maps `reg, height, dim, rot, hm` and, with velocity, `vel`;
            [b, channels, H, W] each.
        spec: Classes, grid, thresholds and suppression.

    Returns:
        One item per frame.
    """
    return [located.detections for located in locate_detections(preds, spec)]


def locate_detections(
    preds: Sequence[Mapping[str, Tensor]], spec: HeadSpec
) -> list[LocatedDetections]:
    """`decode_predictions`, and where in the maps each box was read."""
    found: list[list[LocatedDetections]] = [[] for _ in range(len(preds[0]["hm"]))]
    for task, maps in enumerate(preds):
        candidates, cells = find_candidates(maps, spec, label_offset=spec.label_offsets[task])
        for index, located in enumerate(found):
            rows = (cells[:, 0] == index).nonzero().squeeze(1)
            kept = rows[_suppress(_take(candidates, rows), spec, task)]
            tasks = torch.full_like(kept, task)
            located.append(LocatedDetections(_take(candidates, kept), tasks, cells[kept, 1:]))
    return [_concatenate(located) for located in found]


def find_candidates(
    maps: Mapping[str, Tensor], spec: HeadSpec, *, label_offset: int
) -> tuple[Detections, Tensor]:
    """Boxes of one task before suppression, in the order of frame, iy, ix.

    A candidate scores *above* the threshold, and its centre lies within the range, borders
    included.

    Args:
        maps: Raw maps of one task, [b, channels, H, W] each.
        spec: Grid, score threshold and range.
        label_offset: Global label of the task's first class.

    Returns:
        The candidates of all frames, and the cell of each, [k, 3] int64: frame, iy, ix.
    """
    scores, cats = maps["hm"].float().sigmoid().max(dim=1)  # [b, H, W]
    frame, iy, ix = (scores > spec.decode.score_threshold).nonzero(as_tuple=True)
    at_cells = {
        name: maps[name][frame, :, iy, ix].float() for name, _ in spec.regression_heads
    }  # [k, channels]
    boxes = decode_boxes(at_cells, iy, ix, spec.bev_grid)
    limits = boxes.new_tensor(spec.decode.post_center_limit_range)
    within = ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(dim=1)
    labels = cats[frame, iy, ix] + label_offset
    candidates = Detections(boxes, scores[frame, iy, ix], labels)
    return _take(candidates, within), torch.stack((frame, iy, ix), dim=1)[within]


def decode_boxes(at_cells: Mapping[str, Tensor], iy: Tensor, ix: Tensor, grid: BevGrid) -> Tensor:
    """Boxes from the regression vectors of single cells.

    Args:
        at_cells: `reg` dx, dy · `height` z · `dim` ln w, ln l, ln h · `rot` sin yaw', cos yaw' ·
            optionally `vel` vx, vy; [k, channels] each.
        iy: [k] row of each cell.
        ix: [k] column of each cell.
        grid: Where the cells lie.

    Returns:
        [k, 9], or [k, 7] without velocity.
    """
    cell = torch.stack((ix, iy), dim=1) + at_cells["reg"]
    voxel_size, origin = (cell.new_tensor(xy) for xy in (grid.voxel_size[:2], grid.origin_xy_m))
    centre = cell * grid.out_size_factor * voxel_size + origin
    yaw = torch.atan2(at_cells["rot"][:, 0:1], at_cells["rot"][:, 1:2])
    velocity = (at_cells["vel"],) if "vel" in at_cells else ()
    return torch.cat((centre, at_cells["height"], at_cells["dim"].exp(), *velocity, yaw), dim=1)


def _suppress(candidates: Detections, spec: HeadSpec, task: int) -> Tensor:
    """Rows of one frame's candidates that stay, best first, [kept] int64."""
    decode = spec.decode
    if decode.circular_nms:
        return circle_nms(
            candidates.boxes_det3d[:, :2],
            candidates.scores,
            min_radius_m2=decode.min_radius[task],
            post_max_size=decode.nms.post_max_size,
        )
    return rotated_nms(candidates.boxes_det3d, candidates.scores, decode.nms)


def _take(detections: Detections, rows: Tensor) -> Detections:
    return Detections(
        detections.boxes_det3d[rows], detections.scores[rows], detections.labels[rows]
    )


def _concatenate(parts: Sequence[LocatedDetections]) -> LocatedDetections:
    return LocatedDetections(
        Detections(
            torch.cat([part.detections.boxes_det3d for part in parts]),
            torch.cat([part.detections.scores for part in parts]),
            torch.cat([part.detections.labels for part in parts]),
        ),
        torch.cat([part.tasks for part in parts]),
        torch.cat([part.cells_yx for part in parts]),
    )
