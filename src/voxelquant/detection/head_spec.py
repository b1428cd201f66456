"""What the CenterPoint head must know: classes, the BEV grid, targets, losses, decoding.

Plain frozen values, so that targets, losses and decoding can be used and tested without a config
file. `HeadSpec` holds every fact once: the original configs repeat the range, the voxel size and
the stride in three places, and whoever builds a `HeadSpec` from them checks that they agree.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from voxelquant.errors import ConfigError


@dataclass(frozen=True)
class TaskSpec:
    """One group of classes that share an output head; they are told apart by its heatmap."""

    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.class_names:
            raise ConfigError("a task got no class names, need at least one; remove the empty task")


@dataclass(frozen=True)
class BevGrid:
    """The bird's-eye-view map of the head: cell (iy, ix) covers a square of the ground.

    Example:
        >>> BevGrid((-54, -54, -5, 54, 54, 3), (0.075, 0.075, 0.2), 8).shape_hw
        (180, 180)
    """

    point_range: tuple[float, float, float, float, float, float]  # x, y, z min then max, metres
    voxel_size: tuple[float, float, float]  # x, y, z, metres
    out_size_factor: int  # voxels per cell, along x and y

    def __post_init__(self) -> None:
        if min(self.voxel_size) <= 0 or self.out_size_factor < 1:
            raise ConfigError(
                f"got voxel_size {self.voxel_size} and out_size_factor {self.out_size_factor}; "
                "need positive metres and an integer of at least 1"
            )
        if any(
            low >= high
            for low, high in zip(self.point_range[:3], self.point_range[3:], strict=True)
        ):
            raise ConfigError(
                f"got point_range {self.point_range}; need every minimum below its maximum "
                "(x, y, z minimum, then x, y, z maximum, in metres)"
            )

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the map; voxels are counted in float32 as the voxelizer."""
        bounds = np.array(self.point_range, dtype=np.float32)
        n_voxels = np.round((bounds[3:] - bounds[:3]) / np.array(self.voxel_size, dtype=np.float32))
        width, height = (int(n) // self.out_size_factor for n in n_voxels[:2])
        return height, width

    @property
    def origin_xy_m(self) -> tuple[float, float]:
        """Where the corner of cell (0, 0) lies on the ground."""
        return self.point_range[0], self.point_range[1]


@dataclass(frozen=True)
class AssignerSpec:
    """How ground-truth boxes become heatmaps and regression targets (`target_assigner`)."""

    gaussian_overlap: float = 0.1
    max_objs: int = 500
    min_radius: int = 2  # cells


@dataclass(frozen=True)
class NmsSpec:
    """Non-maximum suppression of one task's boxes (`test_cfg.nms`)."""

    pre_max_size: int = 1000
    post_max_size: int = 83
    iou_threshold: float = 0.2  # suppressed when the overlap is *above* this


@dataclass(frozen=True)
class DecodeSpec:
    """How raw maps become boxes (`test_cfg`)."""

    post_center_limit_range: tuple[float, float, float, float, float, float]  # inclusive, metres
    score_threshold: float = 0.1  # kept when the score is *above* this
    nms: NmsSpec = NmsSpec()
    circular_nms: bool = False
    min_radius: tuple[float, ...] = ()  # circle NMS only, one per task: *squared* metres


@dataclass(frozen=True)
class LossSpec:
    """Weights of the box regression loss (`bbox_head.weight`, `bbox_head.code_weights`)."""

    weight: float
    code_weights: tuple[float, ...]  # order: reg 2, height 1, dim 3, vel 2 (if any), rot 2


@dataclass(frozen=True)
class HeadSpec:
    """Everything that targets, losses and decoding of a CenterPoint head depend on."""

    tasks: tuple[TaskSpec, ...]
    bev_grid: BevGrid
    assigner: AssignerSpec
    decode: DecodeSpec
    loss: LossSpec
    with_velocity: bool = True

    def __post_init__(self) -> None:
        names = self.class_names
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"got classes {list(names)}; need at least one, each in one task only"
            )
        if len(self.loss.code_weights) != self.n_codes:
            raise ConfigError(
                f"code_weights: got {len(self.loss.code_weights)} values, need {self.n_codes} "
                f"for a head {'with' if self.with_velocity else 'without'} velocity"
            )
        if self.decode.circular_nms and len(self.decode.min_radius) != len(self.tasks):
            raise ConfigError(
                f"circular_nms: got {len(self.decode.min_radius)} values of min_radius, need one "
                f"for each of the {len(self.tasks)} tasks"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes in the order of their global labels."""
        return tuple(name for task in self.tasks for name in task.class_names)

    @property
    def label_offsets(self) -> tuple[int, ...]:
        """Global label of each task's first class."""
        return tuple(accumulate((len(task.class_names) for task in self.tasks[:-1]), initial=0))

    @property
    def n_codes(self) -> int:
        """Length of the regression vector at a cell: 10, or 8 without velocity."""
        return 10 if self.with_velocity else 8

    @property
    def regression_heads(self) -> tuple[tuple[str, int], ...]:
        """Names and channels of the regression maps, in the order of the loss."""
        velocity = (("vel", 2),) if self.with_velocity else ()
        return (("reg", 2), ("height", 1), ("dim", 3), *velocity, ("rot", 2))
