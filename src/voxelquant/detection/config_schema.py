"""Everything that describes a CenterPoint detector and how it is trained, typed and validated.

Field names follow the original configs where a field exists there. Lengths are metres, angles
radians, boxes the project's det3d vector `x, y, z, w, l, h, vx, vy, yaw_det3d`.
"""

import math
from enum import Enum
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from voxelquant.detection.config_section import (
    Box3d,
    Channels,
    Count,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Section,
    Stride,
)
from voxelquant.detection.config_training import DataConfig, TrainConfig
from voxelquant.detection.head_spec import (
    AssignerSpec,
    BevGrid,
    DecodeSpec,
    HeadSpec,
    LossSpec,
    NmsSpec,
    TaskSpec,
)
from voxelquant.detection.virtual_points import N_FEATURES, N_POINT_COLUMNS

_BRANCH_CHANNELS = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
_BACKBONE_STRIDE = 8  # three convolutions of stride 2


class BackboneConfig(Section):
    """SpMiddleResNetFHD: channels of conv_input, conv1, conv2, conv3 and conv4 (extra_conv too)."""

    in_channels: Channels = 5
    channels: tuple[Channels, Channels, Channels, Channels, Channels] = (16, 16, 32, 64, 128)

    @model_validator(mode="after")
    def _check_first_stage(self) -> "BackboneConfig":
        if self.channels[0] != self.channels[1]:
            raise ValueError(
                f"got channels {self.channels}: conv1 is residual blocks only, so its channels "
                "must equal those of conv_input"
            )
        return self


class NeckConfig(Section):
    """RPN: per stage a strided convolution and `layer_nums` more, then upsampling to one size."""

    layer_nums: tuple[Annotated[int, Field(ge=0, le=100)], ...] = (5, 5)
    ds_layer_strides: tuple[Stride, ...] = (1, 2)
    ds_num_filters: tuple[Channels, ...] = (128, 256)
    us_layer_strides: tuple[Positive, ...] = (1, 2)
    us_num_filters: tuple[Channels, ...] = (256, 256)

    @model_validator(mode="after")
    def _check_stages(self) -> "NeckConfig":
        stages = len(self.layer_nums)
        if not stages or len(self.ds_layer_strides) != stages or len(self.ds_num_filters) != stages:
            raise ValueError(
                f"got {stages} layer_nums, {len(self.ds_layer_strides)} ds_layer_strides and "
                f"{len(self.ds_num_filters)} ds_num_filters; need as many of each, at least one"
            )
        upsampled = len(self.us_layer_strides)
        if not 1 <= upsampled <= stages or len(self.us_num_filters) != upsampled:
            raise ValueError(
                f"got {upsampled} us_layer_strides and {len(self.us_num_filters)} us_num_filters; "
                f"need as many of each, 1 to {stages}"
            )
        if len(set(self.upsampled_strides)) != 1:
            raise ValueError(
                f"the upsampled stages have strides {self.upsampled_strides} over the BEV map; "
                "they are concatenated and need one size: mend us_layer_strides"
            )
        return self

    @property
    def upsampled_strides(self) -> tuple[float, ...]:
        """Stride of each upsampled stage over the neck's input map."""
        first = len(self.layer_nums) - len(self.us_layer_strides)
        return tuple(
            math.prod(self.ds_layer_strides[: first + index + 1]) / stride
            for index, stride in enumerate(self.us_layer_strides)
        )

    @property
    def out_channels(self) -> int:
        """Channels of the concatenated output."""
        return sum(self.us_num_filters)


class HeadConfig(Section):
    """CenterHead: `common_heads` maps a branch to (output channels, number of convolutions)."""

    share_conv_channel: Channels = 64
    head_conv: Channels = 64  # hidden channels of every branch
    common_heads: dict[str, tuple[Channels, Annotated[int, Field(ge=1, le=10)]]]
    num_hm_conv: Annotated[int, Field(ge=1, le=10)] = 2
    init_bias: float = -2.19

    @model_validator(mode="after")
    def _check_branches(self) -> "HeadConfig":
        expected = {k: v for k, v in _BRANCH_CHANNELS.items() if k != "vel" or k in self.branches}
        got = {name: channels for name, (channels, _) in self.common_heads.items()}
        if got != expected:
            raise ValueError(
                f"got common_heads with channels {got}, need {expected} (vel is optional)"
            )
        return self

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the regression branches in the order of the module dict."""
        return tuple(self.common_heads)


class LossConfig(Section):
    """`weight` of the box regression loss, and of each code: reg, height, dim, vel, rot."""

    weight: NonNegative = 0.25
    code_weights: tuple[NonNegative, ...] = (1, 1, 1, 1, 1, 1, 0.2, 0.2, 1, 1)


class AssignerConfig(Section):
    """How ground-truth boxes become heatmaps; `min_radius` in cells of the BEV map."""

    gaussian_overlap: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_objs: Count = 500
    min_radius: Annotated[int, Field(ge=0, le=1000)] = 2


class NmsConfig(Section):
    """Rotated non-maximum suppression, per task."""

    nms_pre_max_size: Count = 1000
    nms_post_max_size: Count = 83
    nms_iou_threshold: Fraction = 0.2


class DecodeConfig(Section):
    """`test_cfg`: from raw maps to boxes; `min_radius` per task is in *squared* metres."""

    score_threshold: Fraction = 0.1
    post_center_limit_range: Box3d
    nms: NmsConfig = NmsConfig()
    circular_nms: bool = False
    min_radius: tuple[NonNegative, ...] = ()


class Reader(str, Enum):
    """How points become the backbone's input.

    MEAN: the mean of a voxel's first points, limited in points and voxels. DYNAMIC: the mean of all
    its points, without limits. DYNAMIC_VIRTUAL: that of a cloud of LiDAR, painted and virtual
    points (`voxelquant.detection.virtual_points`).
    """

    MEAN = "mean"
    DYNAMIC = "dynamic"
    DYNAMIC_VIRTUAL = "dynamic_virtual"


class DetectorConfig(Section):
    """A CenterPoint VoxelNet detector: geometry, network, targets, decoding, training, data."""

    name: Name
    dataset: Literal["nuscenes", "waymo"] = "nuscenes"
    tasks: Annotated[tuple[tuple[Name, ...], ...], Field(min_length=1)]
    point_range: Box3d
    voxel_size: tuple[Positive, Positive, Positive]
    reader: Reader = Reader.MEAN
    # The mean reader needs these two, the dynamic ones have no limits.
    max_points_per_voxel: Annotated[int, Field(ge=1, le=1000)] | None = None
    max_voxels: tuple[Count, Count] | None = None  # training, inference
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = NeckConfig()
    head: HeadConfig
    loss: LossConfig = LossConfig()
    assigner: AssignerConfig = AssignerConfig()
    test_cfg: DecodeConfig
    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()

    @model_validator(mode="after")
    def _check_reader(self) -> "DetectorConfig":
        limits = {"max_points_per_voxel": self.max_points_per_voxel, "max_voxels": self.max_voxels}
        for name, limit in limits.items():
            if (limit is None) is (self.reader is Reader.MEAN):
                needs = f"needs {name}" if limit is None else f"has no limits; remove {name}"
                raise ValueError(f"the reader {self.reader.value} {needs}")
        if self.reader is Reader.DYNAMIC_VIRTUAL and self.backbone.in_channels != N_FEATURES:
            raise ValueError(
                f"got {self.backbone.in_channels} backbone.in_channels, need {N_FEATURES}: what "
                "the reader dynamic_virtual makes of a voxel"
            )
        return self

    @model_validator(mode="after")
    def _check_geometry(self) -> "DetectorConfig":
        factor = _BACKBONE_STRIDE * math.prod(self.neck.ds_layer_strides)
        for axis, cells in zip("xy", self.grid_xyz, strict=False):
            if cells < 1 or cells > 16_384 or cells % factor:
                raise ValueError(
                    f"got {cells} voxels along {axis}, need a multiple of {factor} up to 16384 "
                    "(backbone and neck strides): mend point_range or voxel_size"
                )
        stride = _BACKBONE_STRIDE * self.neck.upsampled_strides[-1]
        if stride < 1 or stride != int(stride):
            raise ValueError(
                f"got a BEV cell of {stride} voxels, need a whole number of at least 1"
            )
        if not 1 <= self.grid_xyz[2] <= 512 or self.bev_depth < 1:
            raise ValueError(
                f"got {self.grid_xyz[2]} voxels along z, which leaves {self.bev_depth} cells after "
                "the backbone; need 1 to 512 voxels and at least one cell left"
            )
        _ = self.head_spec  # its own checks: ranges, class names, code weights, circle radii
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes in the order of their global labels."""
        return tuple(name for task in self.tasks for name in task)

    @property
    def grid_xyz(self) -> tuple[int, int, int]:
        """Number of voxels along x, y, z, rounded in float32 as the reference does."""
        low, high = np.array(self.point_range, dtype=np.float32).reshape(2, 3)
        cells = np.round((high - low) / np.array(self.voxel_size, dtype=np.float32))
        x, y, z = (int(count) for count in cells)
        return x, y, z

    @property
    def bev_depth(self) -> int:
        """Cells along z that are left after the backbone and folded into BEV channels."""
        depth = self.grid_xyz[2] + 1
        for padding in (1, 1, 0, 0):  # conv2, conv3, conv4, extra_conv: kernel 3, stride 2
            depth = (depth + 2 * padding - 3) // 2 + 1
        return depth

    @property
    def bev_channels(self) -> int:
        """Channels of the BEV map that the backbone hands to the neck."""
        return self.backbone.channels[-1] * self.bev_depth

    @property
    def n_point_columns(self) -> int:
        """Columns of a point that the reader takes."""
        virtual = self.reader is Reader.DYNAMIC_VIRTUAL
        return N_POINT_COLUMNS if virtual else self.backbone.in_channels

    @property
    def out_size_factor(self) -> int:
        """Voxels per cell of the head's maps (`get_downsample_factor`)."""
        return int(_BACKBONE_STRIDE * self.neck.upsampled_strides[-1])

    @property
    def with_velocity(self) -> bool:
        """Whether the head regresses a velocity."""
        return "vel" in self.head.common_heads

    @property
    def head_spec(self) -> HeadSpec:
        """The facts that targets, losses and decoding depend on."""
        test, nms = self.test_cfg, self.test_cfg.nms
        return HeadSpec(
            tasks=tuple(TaskSpec(names) for names in self.tasks),
            bev_grid=BevGrid(self.point_range, self.voxel_size, self.out_size_factor),
            assigner=AssignerSpec(**self.assigner.model_dump()),
            decode=DecodeSpec(
                post_center_limit_range=test.post_center_limit_range,
                score_threshold=test.score_threshold,
                nms=NmsSpec(nms.nms_pre_max_size, nms.nms_post_max_size, nms.nms_iou_threshold),
                circular_nms=test.circular_nms,
                min_radius=test.min_radius,
            ),
            loss=LossSpec(self.loss.weight, self.loss.code_weights),
            with_velocity=self.with_velocity,
        )
