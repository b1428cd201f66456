"""The networks that are measured: one seeded backbone, lowered in each precision.

Time does not depend on the values of weights, accuracy does: fresh weights with batch norms that do
something serve here, and the result says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError
from voxelquant.quant import bundled_recipes, calibrate, lower, quantization_of, quantize
from voxelquant.recipes.bench_frames import BenchFrame

# The measured precision and the recipe that stands for it; the order of tables.
RECIPES = {"fp16": "fp16", "int8": "reference", "fp8": "fp8"}
StageKind = Literal["copy", "maps", "conv", "pointwise", "densify"]


class Stage(Protocol):
    """A part of a plan that can be launched alone."""

    @property
    def name(self) -> str:
        """Which one."""

    @property
    def kind(self) -> StageKind:
        """What it does."""

    @property
    def run(self) -> Callable[[], None]:
        """Launch it on what the plan's buffers hold."""


class Plan(Protocol):
    """A network made ready for one device and an upper bound of voxels."""

    def __call__(self, features: Tensor, coords_bzyx: Tensor) -> Tensor:
        """Dense map `[b, c * z, y, x]` float16 of voxels on the device."""

    def replay(self) -> None:
        """The same on what lies in the input buffers."""

    @property
    def memory_bytes(self) -> dict[str, int]:
        """What was allocated, by purpose."""

    @property
    def stages(self) -> Sequence[Stage]:
        """Its parts, in order."""


# plan(engine, frame, max_voxels): `frame` gives grid, channels, batch and device.
Planner = Callable[[nn.Module, BenchFrame, int], Plan]


@dataclass(frozen=True)
class Networks:
    """One backbone in one precision.

    Attributes:
        fake: the calibrated fake-quant model.
        reference: lowered to the reference backend, the truth of a gate.
    """

    fake: nn.Module
    reference: nn.Module

    def expected(self, frame: BenchFrame) -> Tensor:
        """Dense map `[b, c * z, y, x]` float16 that a plan has to give."""
        with torch.no_grad():
            dense: Tensor = self.reference(frame.sparse())
        return dense.half()


def plan_on_gpu(engine: nn.Module, frame: BenchFrame, max_voxels: int) -> Plan:
    """The plan of the GPU engine; with it Triton is first imported.

    Raises:
        BadInputError: the network or the chip is beyond the engine.
    """
    # Imported here, since it imports Triton.
    from voxelquant.quant import plan_network

    plan: Plan = plan_network(
        engine,
        spatial_shape=frame.spatial_shape,
        in_channels=frame.features.shape[1],
        batch_size=frame.batch_size,
        max_voxels=max_voxels,
        device=str(frame.features.device),
        tune_on=(frame.features, frame.coords_bzyx),
    )
    return plan


def make_backbone(config: DetectorConfig, seed: int, device: str) -> nn.Module:
    """Sparse backbone with fresh weights, and batch norms like those of a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = CenterPoint(config).backbone
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.3, 1.0)
    return backbone.to(device).eval()


def unavailable_recipe(precision: str) -> str | None:
    """Why a precision cannot be measured with this version, or None."""
    recipe = RECIPES[precision]
    return None if recipe in bundled_recipes() else f"no recipe {recipe!r} in this version"


def lower_network(backbone: nn.Module, precision: str, frame: BenchFrame) -> Networks:
    """The backbone in one precision, its ranges taken from the frame itself.

    Raises:
        BadInputError: the frame or the weights cannot be quantized.
    """
    with torch.no_grad():
        fake = quantize(backbone, RECIPES[precision], example=frame.sparse())
        calibrate(fake, [frame.sparse()])
        return Networks(fake, lower(fake, backend="reference"))


def on_lattice(backbone: nn.Module, frame: BenchFrame) -> tuple[nn.Module, BenchFrame]:
    """Network and frame on which every fp16 layer of recipe `reference` is exact in any order.

    Features are small whole numbers, and the weights of those layers -1, 0 or 1 times a power of
    two: all partial sums are then multiples of 2⁻¹⁰ far below 2¹⁴, which float32 holds. Int8 layers
    keep their weights. The integer law promises equal bits given equal input codes; with exact fp16
    layers before them, from end to end.
    """
    fake = quantize(backbone, RECIPES["int8"], example=frame.sparse())
    plan = quantization_of(fake).require_plan()
    changed = copy.deepcopy(backbone)
    generator = torch.Generator().manual_seed(0)
    for node in plan.graph.convs:
        if plan.precision[node.name] != "fp16":
            continue
        conv: Any = changed.get_submodule(node.path)
        step = 2.0**-4 if node.path.startswith("conv_input") else 2.0**-3
        signs = torch.randint(-1, 2, conv.weight.shape, generator=generator)
        conv.weight.data.copy_(signs * step)
        shifts = torch.randint(-4, 5, (conv.out_channels,), generator=generator) / 4
        if conv.bias is not None:
            conv.bias.data.zero_()
        norm: Any = changed.get_submodule(str(node.batchnorm_path))
        norm.weight.data.fill_(1.0)
        norm.bias.data.copy_(shifts)
        norm.running_mean.zero_()
        # ε is taken off, so that folding multiplies by 1 up to what rounding to fp16 removes.
        norm.running_var.fill_(1.0 - norm.eps)
    whole = torch.randint(-8, 9, tuple(frame.features.shape), generator=generator).float()
    features = whole.to(frame.features.device)
    lattice = BenchFrame(
        f"{frame.name}, features on a lattice", features, frame.coords_bzyx, frame.spatial_shape
    )
    return changed, lattice


def require_gpu_engine() -> None:
    """Refuse a machine on which the GPU engine cannot run.

    Raises:
        BadInputError: no GPU, or no Triton.
    """
    if not torch.cuda.is_available():
        raise BadInputError(
            "got a machine without a GPU that torch sees, need an NVIDIA GPU for the engine that "
            "is measured; `--device cpu` times the reference backend instead"
        )
    try:
        import_module("triton")
    except ImportError as error:
        raise BadInputError(
            f"got no Triton ({error}), need it for the GPU engine; install the CUDA build of torch"
        ) from error
