"""Calibration shared out among processes, and kept on disk while it goes on."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxelquant import __version__
from voxelquant.data.loader import Frames, LoaderOptions, NamedFrames, frame_loader
from voxelquant.errors import CalibrationError, DatasetError
from voxelquant.plural import counted
from voxelquant.quant import (
    MagnitudeHistogram,
    PrecisionPlan,
    Recipe,
    merge_histograms,
    observe,
    quantization_of,
    quantize,
)
from voxelquant.recipes.artifacts import to_jsonable
from voxelquant.recipes.calibration_file import CalibrationFile, Seen
from voxelquant.recipes.detect import Detector
from voxelquant.recipes.distributed import World
from voxelquant.recipes.progress import Advance
from voxelquant.sparse import SparseTensor

SAVE_EVERY_S = 10.0  # what a process that is killed loses at most, and the batch it was in


@dataclass(frozen=True)
class CalibrationJob:
    """What is to be seen.

    Attributes:
        dataset: frames, of which the first `batches * batch_size` count.
        batches: number of batches.
        batch_size: frames of each.
        num_workers: processes that read ahead, beside each process that calibrates.
    """

    dataset: NamedFrames
    batches: int
    batch_size: int = 1
    num_workers: int = 0


class Calibration:
    """One process's part in observing a detector; batches go to the processes in turn.

    The batches are those of one process, whoever sees them, and histograms merge exactly: so do
    the ranges.

    Args:
        detector: float detector; stays as it is.
        recipe: precisions.
        job: what is to be seen.
        world: the processes.

    Raises:
        CalibrationError: not even one batch of frames.
    """

    def __init__(
        self, detector: Detector, recipe: Recipe, job: CalibrationJob, world: World
    ) -> None:
        require_batches(job.dataset, job.batches, job.batch_size)
        self.detector = detector
        self.recipe = recipe
        self.job = job
        self.world = world
        self.own = range(world.shard.rank, job.batches, world.shard.world_size)
        self.model: nn.Module = quantize(detector.network, recipe)
        self.seen = Seen(0, {})
        self._file: CalibrationFile | None = None

    def begin(self, folder: Path, weights_digest: str, *, lasting: bool = False) -> str:
        """Insert quantizers by this process's first batch, and continue an interrupted run.

        Args:
            folder: where it is kept what was seen.
            weights_digest: identifies the float weights.
            lasting: whether it stays there, for other methods; else until `forget`.

        Returns:
            A line about what was found there; empty if nothing was.

        Raises:
            CalibrationError: what is to last there already is of another request.
        """
        if not self.own:
            return ""
        first = next(self._batches(self.own[:1]))
        self.model = quantize(self.detector.network, self.recipe, example=first)
        request = self._request(first, weights_digest)
        self._file = CalibrationFile(folder, self.world.shard, request, lasting)
        self.seen, line = self._file.load()
        return line

    def run(self, progress: Advance | None = None) -> dict[str, MagnitudeHistogram]:
        """Observe the remaining batches.

        Returns:
            Histograms of the batches of all processes in the main process; empty in the others.

        Raises:
            BadInputError: frames cannot be read, or hold NaN.
        """
        batches = self.world.while_none_failed(
            self._batches(self.own[self.seen.batches :], self.job.num_workers)
        )
        while self.seen.batches < len(self.own):
            self.observe_for_a_while(batches, progress)
        self._require_one_plan()
        return merge_histograms(self.world.gather_to_main(self.seen.histograms))

    def observe_for_a_while(
        self, batches: Iterator[SparseTensor], progress: Advance | None = None
    ) -> None:
        """Observe until the next save is due, at least one batch, and save.

        Args:
            batches: those of this process that it has not seen.
            progress: called with (batches done, batches of this process).
        """
        done, total = self.seen.batches, len(self.own)

        def advance(now: int, _: int) -> None:
            if progress is not None:
                progress(done + now, total)

        counted = _Counted(batches, time.monotonic() + SAVE_EVERY_S)
        histograms = observe(self.model, counted, progress=advance)
        merged = merge_histograms([self.seen.histograms, histograms])
        self.seen = Seen(done + counted.drawn, merged)
        if self._file is not None:
            self._file.save(self.seen)

    def forget(self) -> None:
        """Remove what was kept, unless it is to last; for when the result is written."""
        self.world.barrier()
        if self._file is not None and not self._file.lasting:
            self._file.remove()

    def _batches(self, indices: Sequence[int], num_workers: int = 0) -> Iterator[SparseTensor]:
        return read_batches(
            self.detector,
            self.job.dataset,
            indices,
            LoaderOptions(self.job.batch_size, num_workers),
        )

    def _request(self, first: SparseTensor, weights_digest: str) -> dict[str, Any]:
        """What decides about the histograms; what does not (the method, say) may differ."""
        content = (first.coords_bzyx, first.features)
        frames = b"".join(tensor.cpu().numpy().tobytes() for tensor in content)
        return {
            "weights": weights_digest,
            "recipe": to_jsonable(self.recipe),
            "config": to_jsonable(self.detector.config),
            "data": self.job.dataset.identity,
            "first batch": hashlib.sha256(frames).hexdigest(),
            "number of batches": self.job.batches,
            "batch size": self.job.batch_size,
            "number of processes": self.world.shard.world_size,
            "device": self.detector.device.partition(":")[0],
            "versions": [__version__, torch.__version__],
        }

    def _require_one_plan(self) -> None:
        plans = self.world.gather(quantization_of(self.model).plan)
        for rank, plan in enumerate(plans):
            # None where there are fewer batches than processes; the first process always has one.
            if plan is not None and plans[0] is not None and plan != plans[0]:
                raise CalibrationError(
                    f"{_where_they_part(plans[0], plan)}: got another layer in process {rank} than "
                    "in process 0, need the same graph for every frame; calibrate in one process"
                )


def _where_they_part(first: PrecisionPlan, second: PrecisionPlan) -> str:
    pairs = itertools.zip_longest(first.graph.nodes, second.graph.nodes)
    names = ((one or other).name for one, other in pairs if one != other)
    return next(names, "the graph's outputs")


class _Counted(Iterator[SparseTensor]):
    """Batches until a point in time, at least one; knows how many were drawn."""

    def __init__(self, batches: Iterator[SparseTensor], until: float) -> None:
        self._batches = batches
        self._until = until
        self.drawn = 0

    def __next__(self) -> SparseTensor:
        if self.drawn and time.monotonic() >= self._until:
            raise StopIteration
        batch = next(self._batches)
        self.drawn += 1
        return batch


def read_batches(
    detector: Detector, dataset: Frames, indices: Sequence[int], options: LoaderOptions
) -> Iterator[SparseTensor]:
    """Network inputs of some batches of a dataset, without augmentation.

    Raises:
        DatasetError: a frame cannot be read.
    """
    size = options.batch_size
    rows = [row for index in indices for row in range(index * size, (index + 1) * size)]
    for batch in frame_loader(dataset, rows, options):
        try:
            x = detector.read(batch.points)
        except DatasetError as error:
            raise DatasetError(f"calibration samples {', '.join(batch.tokens)}: {error}") from None
        yield x


def require_batches(dataset: Frames, batches: int, batch_size: int) -> None:
    """Refuse a calibration on nothing.

    Raises:
        CalibrationError: not even one batch of frames.
    """
    if batches < 1:
        raise CalibrationError(
            f"got {counted(len(dataset), 'frame')} for batches of {batch_size}, need at least "
            "one batch"
        )
