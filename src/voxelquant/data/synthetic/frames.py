"""Key frames with their sweeps and annotations, straight from the world into memory."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.synthetic.annotate import annotate, boxes_in_lidar_frame
from voxelquant.data.synthetic.config import WORLD_VERSION, SceneSpec, WorldConfig
from voxelquant.data.synthetic.layout import Scenes, lay_out
from voxelquant.data.synthetic.localization import reported_ego_to_world
from voxelquant.data.synthetic.returns import Returns, fire
from voxelquant.data.synthetic.sensor import Revolutions, sensor_to_ego, spin
from voxelquant.errors import DatasetError
from voxelquant.plural import counted

_EPOCH_US = 1_600_000_000_000_000
_SCENE_US = 60_000_000  # between the starts of two scenes
_SCENES_AT_ONCE = {"cpu": 4, "cuda": 64}  # these two bound the memory of a launch
_FRAMES_AT_ONCE = {"cpu": 1, "cuda": 64}  # 3.6 GiB on a GPU


def generate_frames(
    seed: int,
    scenes: Sequence[int],
    *,
    key_frames: int = 2,
    device: torch.device | str = "cpu",
    config: WorldConfig | None = None,
) -> list[Frame]:
    """Key frames of the given scenes, scene by scene, each with all its sweeps.

    Args:
        seed: world seed; the same seed and scene give the same frame on every device.
        scenes: scene numbers, >= 0.
        key_frames: key frames a scene, half a second apart, 1 to 41 (20 s).
        device: where the frames are made and stay.
        config: the world; None is nuScenes' LIDAR_TOP with 10 sweeps.

    Raises:
        DatasetError: a negative seed or scene number, or an impossible number of key frames.

    Example:
        >>> frame = generate_frames(seed=7, scenes=[0], key_frames=1)[0]
        >>> frame.points.shape[1], frame.boxes_det3d.shape[1]
        (5, 9)
    """
    config = config or WorldConfig()
    specs = [SceneSpec(seed, scene, key_frames) for scene in scenes]
    return [
        frame for frames in stream_frames(specs, device=device, config=config) for frame in frames
    ]


def stream_frames(
    specs: Sequence[SceneSpec],
    *,
    device: torch.device | str = "cpu",
    config: WorldConfig | None = None,
) -> Iterator[list[Frame]]:
    """The same frames as `generate_frames`, one launch (a few frames) at a time."""
    config, device = config or WorldConfig(), torch.device(device)
    for group in group_scenes(specs, device):
        scenes = lay_out(group, config, device)
        items = [(row, key) for row, spec in enumerate(group) for key in range(spec.key_frames)]
        step = _FRAMES_AT_ONCE.get(device.type, 1)
        for start in range(0, len(items), step):
            yield _make_frames(scenes, group, items[start : start + step], config)


def group_scenes(specs: Sequence[SceneSpec], device: torch.device) -> Iterator[list[SceneSpec]]:
    """Consecutive scenes that can be laid out together: one seed, one length, a bounded number.

    Raises:
        DatasetError: a negative seed or scene number, or an impossible number of key frames.
    """
    group: list[SceneSpec] = []
    for spec in specs:
        _refuse_bad_spec(spec)
        alike = not group or (spec.seed, spec.key_frames) == (group[0].seed, group[0].key_frames)
        if group and (not alike or len(group) == _SCENES_AT_ONCE.get(device.type, 4)):
            yield group
            group = []
        group.append(spec)
    if group:
        yield group


def _refuse_bad_spec(spec: SceneSpec) -> None:
    if spec.seed < 0 or spec.scene < 0:
        raise DatasetError(f"got seed {spec.seed}, scene {spec.scene}: both must be >= 0")
    if not 1 <= spec.key_frames <= 41:
        raise DatasetError(
            f"got {counted(spec.key_frames, 'key frame')} in a scene: use 1 to 41 (20 s)"
        )


def token_of(table: str, spec: SceneSpec, config: WorldConfig, *numbers: int) -> str:
    """Token of a record: 32 hexadecimal digits that follow from what it describes."""
    world = (WORLD_VERSION, config.class_mix)
    text = "/".join(map(str, (table, *world, spec.seed, spec.scene, spec.key_frames, *numbers)))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def timestamp_us(spec: SceneSpec, revolution: int, config: WorldConfig) -> int:
    """Time stamp of a revolution of a scene."""
    return _EPOCH_US + spec.scene * _SCENE_US + revolution * config.lidar.period_us


def scene_to_global(scenes: Scenes) -> Tensor:
    """Pose of each scene's own frame in the global frame, [b, 4, 4] float64."""
    cos, sin = torch.cos(scenes.global_yaw_rad[:, 0]), torch.sin(scenes.global_yaw_rad[:, 0])
    pose = torch.eye(4, dtype=torch.float64, device=cos.device).repeat(len(cos), 1, 1)
    pose[:, 0, 0], pose[:, 0, 1], pose[:, 1, 0], pose[:, 1, 1] = cos, -sin, sin, cos
    pose[:, :2, 3] = scenes.global_xy_m
    return pose


def _make_frames(
    scenes: Scenes,
    specs: Sequence[SceneSpec],
    items: list[tuple[int, int]],
    config: WorldConfig,
) -> list[Frame]:
    """Frames for (row of the scenes, key frame) items, in one launch."""
    rows, keys = torch.tensor(items, device=scenes.keys.device).unbind(1)
    revolutions = _spin_key_frames(scenes, rows, keys, config)
    returns = fire(scenes, revolutions, config.lidar)
    points = accumulate(scenes, revolutions, returns, config)
    newest = torch.arange(0, len(revolutions.rows), config.sweeps, device=rows.device)
    revolutions = revolutions.at(newest)
    truth = annotate(scenes, revolutions, returns.at(newest), config)
    boxes = boxes_in_lidar_frame(scenes, revolutions, truth).float()
    ego_to_global = scene_to_global(scenes)[rows] @ revolutions.ego_to_world
    ref_to_ego = sensor_to_ego(config.lidar).to(rows.device)
    frames = []
    for index, (row, key) in enumerate(items):
        chosen = truth.annotated[index]
        number = config.sweeps - 1 + key * config.key_frame_period
        frames.append(
            Frame(
                token=token_of("sample", specs[row], config, key),
                points=points[index],
                boxes_det3d=boxes[index][chosen],
                labels=scenes.slots.kind[row][chosen],
                num_lidar_pts=truth.points[index][chosen],
                ref_to_ego=ref_to_ego,
                ego_to_global=ego_to_global[index],
                timestamp=timestamp_us(specs[row], number, config) * 1e-6,
            )
        )
    return frames


def _spin_key_frames(
    scenes: Scenes, rows: Tensor, keys: Tensor, config: WorldConfig
) -> Revolutions:
    """Revolutions of key frames [f], [f * sweeps]: the key frame itself, then by age."""
    lead = config.sweeps - 1
    ages = torch.arange(config.sweeps, device=rows.device)
    numbers = (lead + keys * config.key_frame_period)[:, None] - ages
    rows = rows.repeat_interleave(config.sweeps)
    return spin(scenes, rows, numbers.flatten(), config.lidar, lead)


def accumulate(
    scenes: Scenes, revolutions: Revolutions, returns: Returns, config: WorldConfig
) -> list[Tensor]:
    """Points x, y, z, intensity, dt of each frame in its key frame's LiDAR frame, [p, 5] float32.

    As nuScenes loaders do it: the key frame whole, the sweeps without what is close to the sensor.
    """
    sweeps = config.sweeps
    ego_to_world = reported_ego_to_world(scenes, revolutions, config)
    pose = ego_to_world @ sensor_to_ego(config.lidar).to(ego_to_world.device)
    pose = pose.view(-1, sweeps, 4, 4)
    to_reference = (torch.linalg.inv(pose[:, :1]) @ pose).float().view(-1, 4, 4)
    to_reference[::sweeps] = torch.eye(4, device=pose.device)
    x, y, z = returns.xyz
    close = (x.abs() < config.close_m) & (y.abs() < config.close_m)
    close[::sweeps] = False
    moved = [
        to_reference[:, axis, 0, None] * x
        + to_reference[:, axis, 1, None] * y
        + to_reference[:, axis, 2, None] * z
        + to_reference[:, axis, 3, None]
        for axis in range(3)
    ]
    age = torch.arange(sweeps, device=x.device, dtype=torch.float64)
    dt_s = (age * (config.lidar.period_us * 1e-6)).float().repeat(len(pose))[:, None]
    columns = [*moved, returns.intensity, dt_s.expand_as(x)]
    kept = torch.nonzero(~close.view(-1))[:, 0]
    points = torch.stack([column.reshape(-1)[kept] for column in columns], dim=1)
    counts = (~close).view(len(pose), -1).sum(1)
    return list(points.split(counts.tolist()))
