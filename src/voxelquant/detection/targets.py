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
from voxelquant.numerics import constant_on


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
    """Boxes of a batch that may have a place in its targets, class by class."""

    boxes: Tensor  # [n, 9] det3d
    label: Tensor  # [n] int64, global
    frame: Tensor  # [n] int64
    task: Tensor  # [n] int64
    slot: Tensor  # [n] int64 within frame and task; max_objs, one too many, for a box without


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
    boxes_det3d: Sequence[Tensor],
    labels: Sequence[Tensor],
    spec: HeadSpec,
    *,
    device: torch.device | None = None,
) -> list[TaskTargets]:
    """Targets of a batch, one item per task.

    What is computed of each box is computed on the device of the boxes: for some dozen of them a
    host takes less time than their launches. Heatmaps are drawn on the device of the targets.

    Args:
        boxes_det3d: Per frame [n, 9].
        labels: Per frame [n] int64 global labels; a label of no task is ignored.
        spec: Classes, grid and assigner.
        device: Of the targets; default: that of the boxes.

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
    counts = torch.tensor([len(boxes) for boxes in boxes_det3d])
    all_boxes = torch.cat(tuple(boxes_det3d)).float()
    all_labels = torch.cat(tuple(labels)).long()
    frame = torch.repeat_interleave(counts).to(all_boxes.device, non_blocking=True)
    objects = _give_slots(all_boxes, all_labels, frame, spec)
    return _assign_all_tasks(objects, len(counts), spec, device or all_boxes.device)


def pack_targets(targets: Sequence[TaskTargets]) -> tuple[Tensor, ...]:
    """Batched targets of all tasks in five tensors, in the order of the fields.

    Heatmaps [b, classes of all tasks, H, W]; of all else a task is a row, [b, t, max_objs, ...].
    """
    rows = zip(*((task.anno_box, task.ind, task.mask, task.cat) for task in targets), strict=True)
    hm = torch.cat([task.hm for task in targets], dim=1)
    return hm, *(torch.stack(row, dim=1) for row in rows)


def unpack_targets(packed: Sequence[Tensor], spec: HeadSpec) -> list[TaskTargets]:
    """The targets of each task, views of what `pack_targets` returns."""
    hm, *columns = packed
    heatmaps = hm.split([len(task.class_names) for task in spec.tasks], dim=1)
    return [
        TaskTargets(of_task, *(column[:, task] for column in columns))
        for task, of_task in enumerate(heatmaps)
    ]


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
        cells: Frame, class, iy and ix of each peak, [n] int64 each, inside the map; like the radius
            on the device of the map or with the host.
        radius: [n] int64, in cells; below 0 nothing is drawn.
    """
    if len(radius) == 0:
        return
    _, n_classes, height, width = hm.shape
    reach = max(0, int(radius.max()))  # the one wait for a GPU, if radii are there
    peaks = torch.stack((*cells, radius)).to(hm.device, non_blocking=True)
    frame, cat, iy, ix, r = peaks[:, :, None, None].unbind()
    step = torch.arange(-reach, reach + 1, device=hm.device)
    dy, dx = step[:, None], step
    y, x = iy + dy, ix + dx  # [n, window, 1], [n, 1, window]
    inside = (dy.abs() <= r) & (dx.abs() <= r) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    sigma = (2 * r + 1).double() / 6
    peak = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)).float()
    flat = ((frame * n_classes + cat) * height + y) * width + x
    # Outside of the window nothing is raised: a zero lands on cell 0.
    flat, peak = torch.where(inside, flat, 0), torch.where(inside, peak, 0)
    hm.view(-1).scatter_reduce_(0, flat.flatten(), peak.flatten(), reduce="amax")


def _give_slots(boxes: Tensor, labels: Tensor, frame: Tensor, spec: HeadSpec) -> _Objects:
    """Order boxes by task, frame and class; the first `max_objs` of a frame get slots 0, 1, ..."""
    n_classes, n_tasks = len(spec.class_names), len(spec.tasks)
    tasks = tuple(task for task, of in enumerate(spec.tasks) for _ in of.class_names)
    label = labels.clamp(0, n_classes - 1)
    task = constant_on(boxes.device, tasks, torch.int64)[label]
    known = label == labels
    group = torch.where(known, frame * n_tasks + task, -1)
    order = torch.argsort(group * n_classes + label, stable=True)
    boxes, label, frame, task, group = (
        column[order] for column in (boxes, label, frame, task, group)
    )
    slot = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    spare = spec.assigner.max_objs
    return _Objects(boxes, label, frame, task, torch.where(group < 0, spare, slot.clamp_max(spare)))


def _assign_all_tasks(
    objects: _Objects, batch_size: int, spec: HeadSpec, device: torch.device
) -> list[TaskTargets]:
    """Targets of all tasks at once: no box is taken out, so that no size waits for a GPU."""
    height, width = spec.bev_grid.shape_hw
    boxes, n_tasks, spare = objects.boxes, len(spec.tasks), spec.assigner.max_objs
    centre, size = _in_cells(boxes, spec.bev_grid)  # [n, 2] x and y; [n, 2] w and l
    map_size = constant_on(centre.device, (width, height))
    # Above −1 is 0 after truncation. A box without height has no logarithm either.
    valid = ((centre > -1) & (centre < map_size)).all(dim=1) & (boxes[:, 3:6] > 0).all(dim=1)
    valid &= objects.slot < spare
    cell = torch.where(valid[:, None], centre, 0).long()
    wide, long = torch.where(valid[:, None], size, 1).double().unbind(dim=1)
    radius = gaussian_radius(long, wide, spec.assigner.gaussian_overlap).long()
    radius = torch.where(valid, radius.clamp_min(spec.assigner.min_radius), -1)

    hm = boxes.new_zeros((batch_size, len(spec.class_names), height, width), device=device)
    draw_gaussians(hm, (objects.frame, objects.label, cell[:, 1], cell[:, 0]), radius)
    yaw = boxes[:, 8:9]
    anno_box = torch.cat(
        (centre - cell, boxes[:, 2:3], boxes[:, 3:6].log(), boxes[:, 6:8], yaw.sin(), yaw.cos()),
        dim=1,
    )
    # A slot too many takes what has no place, and is cut off.
    slots = (batch_size, n_tasks, spare + 1)
    place = (objects.frame, objects.task, torch.where(valid, objects.slot, spare))
    offsets = constant_on(boxes.device, spec.label_offsets, torch.int64)
    columns = {
        "anno_box": anno_box,
        "ind": cell[:, 1] * width + cell[:, 0],
        "mask": valid.to(torch.uint8),
        "cat": objects.label - offsets[objects.task],
    }
    filled = {
        name: column.new_zeros((*slots, *column.shape[1:])).index_put_(place, column)
        for name, column in columns.items()
    }
    moved = (column.to(device, non_blocking=True)[:, :, :spare] for column in filled.values())
    return unpack_targets((hm, *moved), spec)


def _in_cells(boxes: Tensor, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """Centres and sizes in cells, in float32 and in the original's order of divisions.

    The divisors are tensors: by a Python number CUDA would multiply with its reciprocal, and a
    centre near a border could change its cell.
    """
    origin = constant_on(boxes.device, grid.origin_xy_m)
    voxel = constant_on(boxes.device, grid.voxel_size[:2])
    factor = constant_on(boxes.device, (grid.out_size_factor,))
    # w is divided by the voxel's x and l by its y; they are equal in every known config.
    return (boxes[:, :2] - origin) / voxel / factor, boxes[:, 3:5] / voxel / factor
