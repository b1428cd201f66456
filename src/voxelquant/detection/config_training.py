"""The sections of a detector config that concern training and data."""

from typing import Annotated

from pydantic import Field

from voxelquant.detection.config_section import (
    Count,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Section,
)


class AugmentationConfig(Section):
    """Random transformations of a training frame, applied in the order of the fields."""

    enabled: bool = True
    flip: bool = True
    rotation_range_rad: tuple[float, float] = (0.0, 0.0)
    scale_range: tuple[Positive, Positive] = (1.0, 1.0)
    translation_std_m: NonNegative = 0.0
    shuffle_points: bool = True


class ObjectSamplerConfig(Section):
    """`db_sampler`: pasting ground-truth objects of other frames.

    `info_path` is det3d's database, read where it exists; without it one is built from the
    training frames. `rotation_range_rad` bounds the azimuth that an object is moved to.
    """

    info_path: Name | None = None
    sample_groups: dict[str, Annotated[int, Field(ge=0, le=1000)]]
    min_points: dict[str, Annotated[int, Field(ge=0, le=100_000)]] = Field(default_factory=dict)
    removed_difficulties: tuple[int, ...] = (-1,)
    rotation_range_rad: tuple[float, float] = (0.0, 0.0)
    rate: Fraction = 1.0


class ScheduleConfig(Section):
    """Adam with decoupled decay under a one-cycle schedule."""

    epochs: Count = 20
    lr_max: Positive = 0.001
    moms: tuple[Fraction, Fraction] = (0.95, 0.85)
    div_factor: Positive = 10.0
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.4
    weight_decay: NonNegative = 0.01
    grad_clip_norm: Positive = 35.0


class TrainConfig(Section):
    """What training needs beside the network: batch, sampling, augmentation, schedule."""

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    class_balanced: bool = True
    augmentation: AugmentationConfig = AugmentationConfig()
    object_sampler: ObjectSamplerConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()


class DataConfig(Section):
    """Where frames come from; every path may be left to the command line."""

    nsweeps: Annotated[int, Field(ge=1, le=100)] = 10
    train_interval: Count = 1  # every how many-th key frame is trained on
    root: str | None = None
    version: str | None = None
    train_infos: str | None = None
    val_infos: str | None = None
    test_infos: str | None = None
