"""Run a detector over frames: points in, boxes out, whatever the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from voxelquant.data.frame import Frame
from voxelquant.data.loader import LoaderOptions, evaluation_loader
from voxelquant.data.records import FrameDataset
from voxelquant.data.sampling import Shard, strided_indices
from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.decode import Detections, decode_predictions
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, DatasetError
from voxelquant.plural import counted
from voxelquant.quant.lower import lower
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.state_file import is_state_file
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import Advance
from voxelquant.recipes.quant_states import load_quant_state
from voxelquant.sparse import SparseTensor


class Engine(str, Enum):
    """What executes the sparse backbone."""

    FLOAT = "float"
    FAKE = "fake"  # simulated: float arithmetic on quantized values
    INT8 = "int8"  # executed: integer arithmetic
    FP8 = "fp8"  # executed: products of 8-bit floats; integers in layers that the state has so


@dataclass(frozen=True)
class Detector:
    """A network that runs: the float, fake-quant or lowered form of a CenterPoint.

    `notes` is what is to be said of the file that its weights came from.
    """

    network: CenterPoint
    config: DetectorConfig
    device: str
    notes: tuple[str, ...] = ()

    def read(self, clouds: Sequence[Tensor]) -> SparseTensor:
        """Network input of a batch of clouds `[p, 5]`."""
        return self.network.read_clouds([cloud.to(self.device) for cloud in clouds])

    @torch.no_grad()
    def detect(self, clouds: Sequence[Tensor]) -> list[Detections]:
        """Boxes of each cloud, on the CPU."""
        predictions = self.network(self.read(clouds))
        found = decode_predictions(predictions, self.config.head_spec)
        return [detections.to("cpu") for detections in found]


def open_detector(
    config: DetectorConfig, weights: str | Path, engine: Engine, device: str = "cpu"
) -> Detector:
    """Build the network, load its weights, and bring it into the form that the engine runs.

    Raises:
        CheckpointError: the weights are unusable, or of another model.
        QuantStateError: an engine for quantized weights, and no quantized state that fits.
        BadInputError: the float engine, and a quantized state; or an engine that executes another
            precision than the state's.
    """
    network = CenterPoint(config)
    if engine is Engine.FLOAT:
        if is_state_file(Path(weights)):
            raise BadInputError(
                f"{weights}: got a quantized state, need float weights; give the weights that it "
                "was made from (only `eval` takes a state here, with --engine fake, int8 or fp8)"
            )
        load_weights(network, weights)
        return Detector(network.eval().to(device), config, device)
    loaded = load_quant_state(weights, config)
    if engine is not Engine.FAKE:
        _require_engine(engine, loaded.state.plan, weights)
    model = loaded.state.apply(network).eval().to(device)
    assert isinstance(model, CenterPoint)
    fake = Detector(model, config, device, loaded.notes)
    return fake if engine is Engine.FAKE else lowered(fake)


def lowered(fake: Detector) -> Detector:
    """The executed form of a fake-quant detector, which stays as it is."""
    model = lower(fake.network).eval()
    assert isinstance(model, CenterPoint)
    return replace(fake, network=model)


def _require_engine(engine: Engine, plan: PrecisionPlan, weights: str | Path) -> None:
    """Refuse to report one precision for what runs in another."""
    fp8 = sum(precision == "fp8" for precision in plan.precision.values())
    needed = Engine.FP8 if fp8 else Engine.INT8
    if engine is not needed:
        raise BadInputError(
            f"{weights}: got a state with {counted(fp8, 'fp8 layer')} for engine {engine.value}, "
            f"need --engine {needed.value} to execute it, or --engine fake to simulate it"
        )


@contextmanager
def naming(*frames: Frame) -> Iterator[None]:
    """Say which frame it was that could not be read, or which it was among."""
    try:
        yield
    except DatasetError as error:
        tokens = ", ".join(frame.token for frame in frames)
        raise DatasetError(f"sample{'s' * (len(frames) > 1)} {tokens}: {error}") from None


def detect_frames(
    detector: Detector,
    dataset: FrameDataset,
    progress: Advance | None = None,
    *,
    world: World | None = None,
    options: LoaderOptions | None = None,
) -> tuple[dict[str, Detections], float]:
    """Detections of every frame of this process by token, and the seconds without loading.

    Args:
        detector: what finds them.
        dataset: frames of all processes.
        progress: called with (frames done, frames of this process).
        world: the processes that share the frames; None is this one alone.
        options: frames at once, and processes that read ahead.
    """
    world = world or World(Shard(), detector.device)
    loader = evaluation_loader(dataset, shard=world.shard, options=options)
    own = len(strided_indices(len(dataset), world.shard))
    found: dict[str, Detections] = {}
    seconds = 0.0
    for batch in world.while_none_failed(loader):
        started = time.perf_counter()
        with naming(*batch.frames):
            found |= zip(batch.tokens, detector.detect(batch.points), strict=True)
        seconds += time.perf_counter() - started
        if progress is not None:
            progress(len(found), own)
    return found, seconds
