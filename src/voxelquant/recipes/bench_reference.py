"""The reference backend in the form of a plan, for machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.quant.int8_modules import LoweredModule
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_networks import StageKind
from voxelquant.sparse import SparseTensor, SparseToDense
from voxelquant.sparse.backends.reference import chunk_rows
from voxelquant.sparse.tensor import ActiveSites


@dataclass(frozen=True)
class ReferenceStage:
    """A layer with the input that it last had, or all kernel maps."""

    name: str
    kind: StageKind
    run: Callable[[], None]


class ReferencePlan:
    """A lowered network on the reference backend; nothing is planned, sizes are free.

    Args:
        engine: lowered network, sparse voxels to dense map.
        frame: gives grid and batch.
    """

    def __init__(self, engine: nn.Module, frame: BenchFrame) -> None:
        self.engine = engine
        self.frame = frame

    def __call__(self, features: Tensor, coords_bzyx: Tensor) -> Tensor:
        """Dense map `[b, c * z, y, x]` float16."""
        self.frame = BenchFrame(
            self.frame.name, features, coords_bzyx, self.frame.spatial_shape, self.frame.batch_size
        )
        with torch.no_grad():
            return self.engine(self.frame.sparse()).half()

    def replay(self) -> None:
        """The last frame again, its maps included."""
        with torch.no_grad():
            self.engine(self.frame.sparse())

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Weights; everything else comes and goes."""
        tensors = [*self.engine.parameters(), *self.engine.buffers()]
        return {"weights": sum(t.numel() * t.element_size() for t in tensors)}

    @property
    def stages(self) -> tuple[ReferenceStage, ...]:
        """All kernel maps, then every layer on the input that it has in the last frame."""
        calls = self._record_calls()
        maps = ReferenceStage("maps", "maps", lambda: _build_maps(calls))
        layers = []
        for module, inputs, _ in calls:
            dense = isinstance(module, SparseToDense)
            name = "densify" if dense else module.path

            def run(module: nn.Module = module, inputs: tuple[Any, ...] = inputs) -> None:
                with torch.no_grad():
                    module(*inputs)

            layers.append(ReferenceStage(name, "densify" if dense else "conv", run))
        return (maps, *layers)

    def _record_calls(self) -> list[tuple[Any, tuple[Any, ...], Any]]:
        """Layers with their inputs and output, in execution order."""
        calls: list[tuple[Any, tuple[Any, ...], Any]] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls.append((module, inputs, output))

        handles = [
            module.register_forward_hook(keep)
            for module in self.engine.modules()
            if isinstance(module, LoweredModule | SparseToDense)
        ]
        try:
            self.replay()
        finally:
            for handle in handles:
                handle.remove()
        return calls


def _build_maps(calls: list[tuple[Any, tuple[Any, ...], Any]]) -> None:
    """Every kernel map of some layers anew, in the form that the convolutions read."""
    fresh: dict[int, ActiveSites] = {}
    for module, inputs, output in calls:
        if getattr(module, "graph_kind", None) != "conv":
            continue
        x: SparseTensor = inputs[0]
        sites = fresh.setdefault(
            id(x.sites), ActiveSites(x.coords_bzyx, x.spatial_shape, x.batch_size)
        )
        kernel_map, out_sites = sites.kernel_map(module.site.geometry)
        fresh[id(output.sites)] = out_sites
        if not x.features.is_cuda:
            c_in, c_out = x.features.shape[1], output.features.shape[1]
            kernel_map.output_chunks(chunk_rows(c_in, c_out))


def plan_reference(engine: nn.Module, frame: BenchFrame, max_voxels: int) -> ReferencePlan:
    """The reference backend; it needs no bound."""
    return ReferencePlan(engine, frame)
