"""Objects pasted on a GPU are those pasted on a CPU; skipped where there is no GPU."""

from types import SimpleNamespace

import pytest
import torch

from voxelquant.data.object_sampler import ObjectSampler
from voxelquant.data.objects import ObjectsInMemory
from voxelquant.data.sampling import seeded_generator
from voxelquant.data.synthetic import CLASS_NAMES, generate_frames

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_the_same_objects_are_pasted() -> None:
    frames = generate_frames(41, range(4), key_frames=1, device="cuda")
    settings = SimpleNamespace(
        sample_groups=dict.fromkeys(CLASS_NAMES, 6),
        min_points={},
        removed_difficulties=(-1,),
        rotation_range_rad=(0.0, 0.0),
        rate=1.0,
    )
    here = [frame.to("cpu") for frame in frames]
    on_gpu = ObjectSampler(ObjectsInMemory(frames, CLASS_NAMES), CLASS_NAMES, settings)
    on_cpu = ObjectSampler(ObjectsInMemory(here, CLASS_NAMES), CLASS_NAMES, settings)
    for number, frame in enumerate(frames * 5):
        pasted = on_gpu(frame, seeded_generator(number))
        assert pasted.points.is_cuda
        expected = on_cpu(here[number % 4], seeded_generator(number))
        assert len(expected.points) > len(frame.points)
        for name in ("points", "boxes_det3d", "labels", "num_lidar_pts"):
            assert torch.equal(getattr(pasted, name).cpu(), getattr(expected, name)), name
