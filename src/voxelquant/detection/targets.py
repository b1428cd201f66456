"""Training targets: where each task's heatmap peaks, and what to regress there.

Follows CenterPoint's AssignLabel (Yin 2021, arXiv:2006.11275) with its historical conventions: the
radius formula divides by 2 instead of 2a, cell indices are truncated (so a centre up to one cell
below the map's origin still counts as inside), and a skipped box leaves its slot empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.detection.head_spec import BevGrid, HeadSpec
from voxelquant.errors import GeometryError


@dataclass(frozen=True)
class TaskTargets:
    """Targets of one task, for one frame or, with a leading batch axis, for several."""

    hm: Tensor  # [b, classes, H, W] float32, Gaussian peaks
    anno_box: Tensor  # [b, max_objs, 10] float32: dx, dy, z, ln w, ln l, ln h, vx, vy, sin, cos
    ind: Tensor  # [b, max_objs] int64, iy * W + ix
    mask: Tensor  # [b, max_objs] uint8, 1 where a slot holds a box
    cat: Tensor  # [b, max_objs] int64, class within the task

    def to(self, device: torch.device | str) -> "TaskTargets":
        """The same targets on another device."""
        fields = (self.hm, self.anno_box, self.ind, self.mask, self.cat)
        return TaskTargets(*(tensor.to(device, non_blocking=True) for tensor in fields))


@dataclass(frozen=True)
class _Objects:
    """Boxes of one task that have a slot, across the frames of a batch."""

    boxes: Tensor  # [n, 9] det3d
    frame: Tensor  # [n] int64
    slot: Tensor  # [n] int64
    cat: Tensor  # [n] int64, class within the task


def assign_targets(boxes_det3d: Tensor, labels: Tensor, spec: HeadSpec) -> list[TaskTargets]:
    """Targets of one frame, one item per task, without a batch axis.

    Args:
        boxes_det3d: [n, 9] `x, y, z, w, l, h, vx, vy, yaw'`.
        labels: [n] int64 global labels; a label of no task is ignored.
        spec: Classes, grid and assigner.

    Raises:
        GeometryError: Boxes that are not [n, 9], or another number of labels.
    """
    return [
        TaskTargets(task.hm[0], task.anno_box[0], task.ind[0], task.mask[0], task.cat[0])
        for task in assign_targets_batch([boxes_det3d], [labels], spec)
    ]


def assign_targets_batch(
    boxes_det3d: Sequence[Tensor], labels: Sequence[Tensor], spec: HeadSpec
) -> list[TaskTargets]:
    """Targets of a batch, one item per task, computed on the device of the boxes.

    Args:
        boxes_det3d: Per frame [n, 9].
        labels: Per frame [n] int64 global labels; a label of no task is ignored.
        spec: Classes, grid and assigner.

    Raises:
        GeometryError: No frame, boxes that are not [n, 9], or another number of labels.
    """
    if not boxes_det3d or len(boxes_det3d) != len(labels):
        raise GeometryError(
            f"got boxes of {len(boxes_det3d)} frames and labels of {len(labels)}; "
            "need equally many, at least one"
        )
    for boxes, of_boxes in zip(boxes_det3d, labels, strict=True):
        if boxes.ndim != 2 or boxes.shape[1] != 9 or of_boxes.shape != boxes.shape[:1]:
            raise GeometryError(
                f"got boxes {tuple(boxes.shape)} and labels {tuple(of_boxes.shape)}, need [n, 9] "
                "(x, y, z, w, l, h, vx, vy, yaw'; zero velocity where it is unknown) and [n]"
            )
    all_boxes = torch.cat(tuple(boxes_det3d)).float()
    all_labels = torch.cat(tuple(labels)).long()
    counts = torch.tensor([len(boxes) for boxes in boxes_det3d])
    frame = torch.repeat_interleave(counts).to(all_boxes.device)
    targets = []
    for task, offset in zip(spec.tasks, spec.label_offsets, strict=True):
        cat = all_labels - offset
        mine = (cat >= 0) & (cat < len(task.class_names))
        objects = _give_slots(all_boxes[mine], frame[mine], cat[mine], spec.assigner.max_objs)
        targets.append(_assign_task(objects, len(boxes_det3d), len(task.class_names), spec))
    return targets


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """How far (in cells) both corners of a box may move and still overlap it by `overlap`.

    The historical formula of CornerNet (Law 2018, arXiv:1808.01244), kept because every published
    CenterPoint was trained with it: it divides its roots by 2 instead of 2a. It is the smallest of
    three roots, but with that division always the third: S (√o − o) ≤ S/4 bounds it from above
    and S/2 the other two from below, S being length + width. So only the third is computed.

    Args:
        length: Box length in cells.
        width: Box width in cells, same shape.
        overlap: Smallest intersection over union, o.
    """
    total, area = length + width, length * width
    root = (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()
    return (-2 * overlap * total + root) / 2


def draw_gaussians(
    hm: Tensor, cells: tuple[Tensor, Tensor, Tensor, Tensor], radius: Tensor
) -> None:
    """Raise a heatmap, in place, to Gaussian peaks; where peaks meet the higher one stays.

    σ = (2r + 1) / 6 and the window is ±r, so the smallest value drawn is above exp(−9): the
    original's cut at machine epsilon never acts and is left out.

    Args:
        hm: [b, classes, H, W] float32, not negative.
        cells: Frame, class, iy and ix of each peak, [n] int64 each, inside the map.
        radius: [n] int64, in cells.
    """
    if len(radius) == 0:
        return
    frame, cat, iy, ix = (index[:, None, None] for index in cells)
    _, n_classes, height, width = hm.shape
    reach = int(radius.max())
    step = torch.arange(-reach, reach + 1, device=hm.device)
    dy, dx, r = step[:, None], step, radius[:, None, None]
    y, x = iy + dy, ix + dx  # [n, window, 1], [n, 1, window]
    inside = (dy.abs() <= r) & (dx.abs() <= r) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sigma = (2 * r + 1).double() / 6
    peak = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)).float()
    flat = ((frame * n_classes + cat) * height + y) * width + x
    # Outside of the window nothing is raised: a zero lands on cell 0.
    flat, peak = torch.where(inside, flat, 0), torch.where(inside, peak, 0)
    hm.view(-1).scatter_reduce_(0, flat.flatten(), peak.flatten(), reduce="amax")


def _give_slots(boxes: Tensor, frame: Tensor, cat: Tensor, max_objs: int) -> _Objects:
    """Order each frame's boxes class by class; the first `max_objs` get slots 0, 1, ..."""
    order = torch.argsort(cat, stable=True)
    order = order[torch.argsort(frame[order], stable=True)]
    frame = frame[order]
    slot = torch.arange(len(frame), device=frame.device) - torch.searchsorted(frame, frame)
    kept = slot < max_objs
    return _Objects(boxes[order][kept], frame[kept], slot[kept], cat[order][kept])


def _assign_task(objects: _Objects, batch_size: int, n_classes: int, spec: HeadSpec) -> TaskTargets:
    height, width = spec.bev_grid.shape_hw
    boxes, slots = objects.boxes, (batch_size, spec.assigner.max_objs)
    centre, size = _in_cells(boxes, spec.bev_grid)  # [n, 2] x and y; [n, 2] w and l
    map_size = centre.new_tensor((width, height))
    # Above −1 is 0 after truncation. A box without height has no logarithm either.
    valid = ((centre > -1) & (centre < map_size)).all(dim=1) & (boxes[:, 3:6] > 0).all(dim=1)
    boxes, centre, size = boxes[valid], centre[valid], size[valid].double()
    frame, slot, cat = objects.frame[valid], objects.slot[valid], objects.cat[valid]
    cell = centre.long()
    radius = gaussian_radius(size[:, 1], size[:, 0], spec.assigner.gaussian_overlap).long()

    hm = boxes.new_zeros((batch_size, n_classes, height, width))
    peaks = (frame, cat, cell[:, 1], cell[:, 0])
    draw_gaussians(hm, peaks, radius.clamp_min(spec.assigner.min_radius))
    anno_box = boxes.new_zeros((*slots, 10))
    yaw = boxes[:, 8:9]
    anno_box[frame, slot] = torch.cat(
        (centre - cell, boxes[:, 2:3], boxes[:, 3:6].log(), boxes[:, 6:8], yaw.sin(), yaw.cos()),
        dim=1,
    )
    ind, cats = (cell.new_zeros(slots) for _ in range(2))
    ind[frame, slot] = cell[:, 1] * width + cell[:, 0]
    cats[frame, slot] = cat
    mask = boxes.new_zeros(slots, dtype=torch.uint8)
    mask[frame, slot] = 1
    return TaskTargets(hm, anno_box, ind, mask, cats)


def _in_cells(boxes: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Centres and sizes in cells, in float32 and in the original's order of divisions.

    The divisors are tensors: by a Python number CUDA would multiply with its reciprocal, and a
    centre near a border could change its cell.
    """
    origin = boxes.new_tensor(grid.origin_xy_m)
    voxel = boxes.new_tensor(grid.voxel_size[:2])
    factor = boxes.new_tensor(grid.out_size_factor)
    # w is divided by the voxel's x and l by its y; they are equal in every known config.
    return (boxes[:, :2] - origin) / voxel / factor, boxes[:, 3:5] / voxel / factor
