import pytest
import torch

from nuscenes_world import CLASS_NAMES, KEY_FRAMES, VERSION, TinyNuScenes
from voxelquant.data.augment import Augmentation
from voxelquant.data.collate import collate_frames
from voxelquant.data.frame import Frame
from voxelquant.data.loader import LoaderOptions, evaluation_loader, training_loader
from voxelquant.data.nuscenes import NuScenesDataset
from voxelquant.data.sampling import EpochSampler, Shard, class_balanced_order
from voxelquant.errors import DatasetError

AUGMENTATION = Augmentation(
    rotation_range_rad=(-0.8, 0.8), scale_range=(0.9, 1.1), translation_std_m=0.5
)
# Python 3.12 warns that a process with threads forks; workers run no code of those threads.
WORKERS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def dataset(tiny: TinyNuScenes) -> NuScenesDataset:
    return NuScenesDataset(tiny.root, VERSION, "both", CLASS_NAMES, nsweeps=3)


def assert_equal(got: list[Frame], expected: list[Frame]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        for name, value in vars(one).items():
            reference = getattr(other, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, reference), name
            else:
                assert value == reference


def frames_of(loader: object) -> list[Frame]:
    return [frame for batch in loader for frame in batch.frames]  # type: ignore[attr-defined]


def test_batch(dataset: NuScenesDataset) -> None:
    frames = [dataset[0], dataset[4]]
    batch = collate_frames(frames).to("cpu")
    assert len(batch) == 2
    assert batch.tokens == ["scene-a-s0", "scene-b-s1"]
    assert [p.shape[1] for p in batch.points] == [5, 5]
    for boxes, labels in zip(batch.boxes_det3d, batch.labels, strict=True):
        assert boxes.shape == (len(labels), 9)
    bare = Frame("t", *[torch.zeros(0)] * 1, None, None, None, torch.eye(4), torch.eye(4), 0.0)
    with pytest.raises(DatasetError, match="sample t has no annotations"):
        _ = collate_frames([bare]).labels


@WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_reads_every_frame_once(dataset: NuScenesDataset, num_workers: int) -> None:
    options = LoaderOptions(batch_size=2, num_workers=num_workers)
    frames = frames_of(evaluation_loader(dataset, options=options))
    assert_equal(frames, list(dataset))
    shards = [
        evaluation_loader(dataset, shard=Shard(rank, 4), options=LoaderOptions(batch_size=2))
        for rank in range(4)
    ]
    assert [len(shard) for shard in shards] == [1, 1, 1, 1]
    tokens = [frame.token for shard in shards for frame in frames_of(shard)]
    assert sorted(tokens) == sorted(dataset.sample_tokens)


@WORKERS
def test_training_does_not_depend_on_workers(dataset: NuScenesDataset) -> None:
    order = class_balanced_order([dataset.classes_in(i) for i in range(len(dataset))], 10, seed=0)
    epochs = []
    for num_workers in (0, 2):
        sampler = EpochSampler(order, seed=3)
        loader = training_loader(
            dataset,
            sampler,
            transforms=[AUGMENTATION],
            options=LoaderOptions(batch_size=4, num_workers=num_workers),
        )
        frames = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            frames += frames_of(loader)
        assert len(frames) == 2 * len(order)
        epochs.append(frames)
    assert_equal(*epochs)
    by_token: dict[str, list[Frame]] = {}
    for frame in epochs[0]:
        by_token.setdefault(frame.token, []).append(frame)
    repeated = by_token["scene-b-s1"]
    assert len(repeated) > 2
    assert not torch.equal(repeated[0].points, repeated[1].points)  # each draw has its own seed


def test_transforms_run_in_order(dataset: NuScenesDataset) -> None:
    seen: list[tuple[str, float]] = []

    def note(name: str) -> object:
        def transform(frame: Frame, generator: torch.Generator) -> Frame:
            seen.append((name, float(torch.rand((), generator=generator))))
            return frame

        return transform

    sampler = EpochSampler([0], seed=0)
    list(training_loader(dataset, sampler, transforms=[note("a"), note("b")]))  # type: ignore[list-item]
    assert [name for name, _ in seen] == ["a", "b"]
    assert seen[0][1] != seen[1][1]


@WORKERS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_one_clear_line(broken: TinyNuScenes, num_workers: int) -> None:
    dataset = NuScenesDataset(broken.root, VERSION, "both", CLASS_NAMES, nsweeps=1)
    (broken.root / "samples/LIDAR_TOP/scene-a-05.pcd.bin").write_bytes(b"cut off")
    loader = evaluation_loader(dataset, options=LoaderOptions(num_workers=num_workers))
    with pytest.raises(DatasetError) as caught:
        list(loader)
    assert str(caught.value).endswith("the file is truncated, fetch it again")
    assert "\n" not in str(caught.value)
    assert len(dataset) == 2 * KEY_FRAMES
