"""One process's part of a calibration, without the others."""

from dataclasses import dataclass, replace

import pytest
import torch

from voxelquant.data.frame import Frame
from voxelquant.data.sampling import Shard
from voxelquant.detection.config import load_config
from voxelquant.errors import CalibrationError
from voxelquant.quant import MagnitudeHistogram, merge_histograms
from voxelquant.quant.recipe import load_recipe
from voxelquant.recipes.calibration import Calibration, CalibrationJob
from voxelquant.recipes.demo import tiny_weights
from voxelquant.recipes.detect import Detector, Engine, open_detector
from voxelquant.recipes.distributed import World

Histograms = dict[str, MagnitudeHistogram]


def frame(seed: int) -> Frame:
    points = torch.rand(400, 5, generator=torch.Generator().manual_seed(seed))
    points = points * torch.tensor([30.0, 30.0, 2.0, 200.0, 0.4])
    pose = torch.eye(4, dtype=torch.float64)
    return Frame(f"sample-{seed}", points, None, None, None, pose, pose, 0.0)


FRAMES = [frame(seed) for seed in range(5)]


@dataclass(frozen=True)
class Alone(World):
    """A process that hears nothing from the others, and whose graph is said to differ or not."""

    differs: bool = False

    def gather(self, value):
        plan = value
        if self.differs:
            tensors = dict.fromkeys(value.tensor_precision, "int8")
            nodes = (*value.graph.nodes[:3], *value.graph.nodes[4:])
            graph = replace(value.graph, nodes=nodes)
            plan = replace(value, graph=graph, tensor_precision=tensors)
        return [value, plan]

    def gather_to_main(self, value):
        return [value]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return open_detector(load_config("centerpoint_tiny"), tiny_weights(), Engine.FLOAT)


def observe(detector: Detector, world: World, recipe: str = "int8") -> Histograms:
    job = CalibrationJob(FRAMES, batches=5)  # type: ignore[arg-type]
    return Calibration(detector, load_recipe(recipe), job, world).run()


@pytest.mark.parametrize("recipe", ["int8", "nvidia"])
def test_every_batch_is_seen_by_one_process(detector: Detector, recipe: str) -> None:
    whole = observe(detector, World(Shard(), "cpu"), recipe)
    parts = [observe(detector, Alone(Shard(rank, 3), "cpu"), recipe) for rank in range(3)]
    merged = merge_histograms(parts)
    assert merged.keys() == whole.keys()
    for name, histogram in whole.items():
        assert torch.equal(merged[name].counts, histogram.counts)
        assert merged[name].zeros == histogram.zeros
        assert merged[name].largest == histogram.largest


def test_graphs_that_differ_between_processes_are_refused(detector: Detector) -> None:
    message = r"^backbone\.conv1\.0\..*: got another layer in process 1 than in process 0"
    with pytest.raises(CalibrationError, match=message):
        observe(detector, Alone(Shard(0, 2), "cpu", differs=True))
