"""What `voxelquant bench` is asked for, and the frames that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError
from voxelquant.recipes.bench_frames import (
    BenchFrame,
    batch_of,
    read_voxel_counts,
    read_voxel_frame,
    resize_frame,
    voxelize_frame,
)
from voxelquant.recipes.bench_measure import Effort
from voxelquant.recipes.bench_networks import RECIPES
from voxelquant.recipes.bench_plans import BenchFrames
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud, read_frame_file

PARTS = ("throughput", "stages", "scaling", "cloud")
BATCH_SIZE = 8
# Of the made frame; the first as many as the benchmark frame has.
GPU_VOXELS, CPU_VOXELS = 79_745, 20_000
GPU_EFFORT, CPU_EFFORT = Effort(20, 200), Effort(1, 5)
SMALLEST_GROWTH = 10_000
# Without counts of a dataset: what nuScenes' validation frames span, in round numbers.
ROUND_GROWTH = (10_000, 40_000, 80_000, 110_000, 135_000)
# A made frame is not grown beyond: its mirrored copies overlap ever more.
_MOST_GROWTH = 2


@dataclass(frozen=True)
class BenchRequest:
    """What the command line asks for.

    Attributes:
        work_dir: where `result.json` goes.
        config: of the detector whose backbone is measured.
        against: `spconv`, or None.
        frame: `.npz` with `features` and `coords_bzyx`; None: a frame of the synthetic world.
        cloud: points to voxelize; None: those of the synthetic world.
        counts: CSV with a column `num_voxels`; None: round numbers.
        voxels: to cut the frame to, or grow it to; None: as it is, a made one as the device suits.
        precisions: which of `fp16`, `int8`, `fp8`.
        parts: which of `PARTS`; None: all on a GPU, `stages` on a CPU.
        max_voxels: bound of a plan for one frame.
        repeats: timed calls; None: as the device suits.
        device: `cuda`, `cuda:N` or `cpu`.
        seed: of the weights.
        commit: of this code; by default what git says of the checkout.
    """

    work_dir: Path
    config: str = "centerpoint_voxel0075"
    against: str | None = None
    frame: Path | None = None
    cloud: Path | None = None
    counts: Path | None = None
    voxels: int | None = None
    precisions: tuple[str, ...] = tuple(RECIPES)
    parts: tuple[str, ...] | None = None
    max_voxels: int = 160_000
    repeats: int | None = None
    device: str = "cuda"
    seed: int = 0
    commit: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU engine is asked for."""
        return self.device != "cpu"

    @property
    def chosen_parts(self) -> tuple[str, ...]:
        """Parts asked for, or those that suit the device."""
        if self.parts is not None:
            return self.parts
        return PARTS if self.on_gpu else ("stages",)

    @property
    def effort(self) -> Effort:
        """Calls asked for, or those that suit the device."""
        default = GPU_EFFORT if self.on_gpu else CPU_EFFORT
        return default if self.repeats is None else replace(default, repeats=self.repeats)

    def public_settings(self) -> dict[str, object]:
        """The request without folders: names of files are enough to find them again."""
        files = {
            name: None if path is None else path.name
            for name, path in (
                ("frame", self.frame),
                ("cloud", self.cloud),
                ("counts", self.counts),
            )
        }
        return {
            "config": self.config,
            "against": self.against,
            "voxels": self.voxels,
            "precisions": self.precisions,
            "parts": self.chosen_parts,
            "max_voxels": self.max_voxels,
            "repeats": self.effort.repeats,
            "device": self.device,
            **files,
        }


def choose_frames(request: BenchRequest, detector: CenterPoint, device: str) -> BenchFrames:
    """Everything that is measured on, on the device.

    Raises:
        BadInputError: a file is unusable, or a frame cannot be made as large as wanted.
    """
    parts = request.chosen_parts
    cloud = _voxelized_cloud(request, detector)
    whole = _whole_frame(request, detector, cloud)
    single = _single_frame(request, whole)
    batch = batch_of(single, BATCH_SIZE).to(device) if "throughput" in parts else None
    growth = {}
    if "scaling" in parts:
        for name, count in _growth_counts(request, len(whole)).items():
            growth[name] = resize_frame(whole, count).to(device)
    keep_cloud = cloud.to(device) if "cloud" in parts else None
    frames = BenchFrames(single.to(device), batch, growth, keep_cloud)
    for name, frame in frames.of_one.items():
        if request.on_gpu and len(frame) > request.max_voxels:
            raise BadInputError(
                f"{name}: got {len(frame)} voxels for plans of at most {request.max_voxels}; "
                f"ask for --max-voxels {len(frame)}"
            )
    return frames


def _voxelized_cloud(request: BenchRequest, detector: CenterPoint) -> BenchFrame:
    if request.cloud is not None:
        points = read_frame_file(request.cloud, detector.config.n_point_columns)
        return voxelize_frame(detector, points, request.cloud.name)
    points = choose_cloud(detector.config, FrameChoice())
    return voxelize_frame(detector, points, "synthetic cloud")


def _whole_frame(request: BenchRequest, detector: CenterPoint, cloud: BenchFrame) -> BenchFrame:
    if request.frame is not None:
        channels = detector.config.backbone.in_channels
        return read_voxel_frame(request.frame, channels, cloud.spatial_shape)
    if request.cloud is not None:
        points = choose_cloud(detector.config, FrameChoice())
        return voxelize_frame(detector, points, "synthetic frame")
    return replace(cloud, name="synthetic frame")


def _single_frame(request: BenchRequest, whole: BenchFrame) -> BenchFrame:
    if request.voxels is not None:
        return resize_frame(whole, request.voxels)
    if request.frame is not None:
        return whole
    wanted = GPU_VOXELS if request.on_gpu else CPU_VOXELS
    return resize_frame(whole, min(wanted, _MOST_GROWTH * len(whole)))


def _growth_counts(request: BenchRequest, voxels: int) -> dict[str, int]:
    if request.counts is not None:
        return {"10 k": SMALLEST_GROWTH, **read_voxel_counts(request.counts)}
    reachable = [count for count in ROUND_GROWTH if count <= _MOST_GROWTH * voxels]
    return {f"{count:,}": count for count in reachable or [max(1, voxels // 2), voxels]}
