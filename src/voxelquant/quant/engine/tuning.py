"""Which tile is fastest: measured once on a frame, kept on disk for a chip and versions."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from voxelquant.atomic_file import atomic_path
from voxelquant.quant.engine.tiles import ConvShape, candidates
from voxelquant.sparse.backends.triton import epilogue, implicit_gemm, row_groups
from voxelquant.sparse.backends.triton.planned_conv import ConvTile

_log = logging.getLogger(__name__)
_REPEATS, _LAUNCHES = 7, 5  # replays of a graph, and launches in it

Tiles = dict[ConvShape, ConvTile]
Launcher = Callable[[ConvTile], Callable[[], None]]


def cache_file(device: torch.device) -> Path:
    """Where the tiles of a device are kept: `$VOXELQUANT_CACHE`, or the user's cache folder.

    The name holds the chip, the versions of torch and Triton, and a digest of the kernel's source.
    """
    folder = os.environ.get("VOXELQUANT_CACHE")
    root = Path(folder) if folder else Path.home() / ".cache" / "voxelquant"
    source = "".join(map(inspect.getsource, (implicit_gemm, row_groups, epilogue)))
    chip = torch.cuda.get_device_name(device)
    key = f"{chip} torch {torch.__version__} triton {triton.__version__}"
    safe = "".join(c if c.isalnum() or c in ".-+" else "_" for c in key)
    return root / f"tiles_{safe}_{hashlib.sha256(source.encode()).hexdigest()[:12]}.json"


def load_tiles(path: Path) -> Tiles:
    """Tiles of earlier tunings; a file that cannot be read counts as none, with a warning."""
    try:
        rows = json.loads(path.read_text())
        return {ConvShape(**shape): ConvTile(**tile) for shape, tile in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as reason:
        _log.warning("tiles are measured anew, %s cannot be read: %s", path, reason)
        return {}


def store_tiles(path: Path, tiles: Tiles) -> None:
    """Keep tiles, together with what the file has won in the meantime."""
    merged = {**load_tiles(path), **tiles}
    rows = [[dataclasses.asdict(shape), dataclasses.asdict(t)] for shape, t in merged.items()]
    with atomic_path(path) as sibling:
        sibling.write_text(json.dumps(rows, indent=1))


def fastest_tiles(
    wanted: Mapping[ConvShape, tuple[Launcher, int]], processors: int, *, bulk: bool
) -> Tiles:
    """Measure the candidates of every convolution and take the fastest.

    Args:
        wanted: for each shape what makes a launch of a tile, on buffers that hold a frame, and the
            rows that the frame has there.
        processors: multiprocessors of the device.
        bulk: whether it has an engine for bulk copies.
    """
    runs = [
        (shape, tile, launcher(tile))
        for shape, (launcher, rows) in wanted.items()
        for tile in candidates(shape, rows, processors, bulk=bulk)
    ]
    _compile_all([run for _, _, run in runs])
    best: dict[ConvShape, tuple[float, ConvTile]] = {}
    for shape, tile, run in runs:
        try:
            time_ms = _measure(run)
        except OutOfResources:  # more shared memory than the chip has: no candidate
            continue
        if shape not in best or time_ms < best[shape][0]:
            best[shape] = (time_ms, tile)
    for shape, (time_ms, tile) in best.items():
        _log.info("%s: %.1f us with %s", shape, time_ms * 1e3, tile)
    return {shape: tile for shape, (_, tile) in best.items()}


def _compile_all(runs: list[Callable[[], None]]) -> None:
    """Compile in threads, as many as there are cores; launches then find their kernels made.

    Where Triton is too old for that, each launch compiles its own.
    """
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:
        return
    kernel: Any = implicit_gemm.conv_kernel
    launch = kernel.run
    kernel.run = lambda *args, grid, warmup, **named: launch(*args, grid=grid, warmup=True, **named)
    try:
        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            mode(threads, ignore_errors=True),
        ):
            for run in runs:
                run()
    finally:
        kernel.run = launch


def _measure(run: Callable[[], None]) -> float:
    """Milliseconds of one launch, without the host's share: in a graph of several."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            run()
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / _LAUNCHES)
    return statistics.median(times)
