"""A detector in all its forms from one calibration frame, for the tests of the whole chain."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from voxelquant.detection.config import DetectorConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.export.from_graph import Exported, export_libspconv
from voxelquant.quant import QuantState, calibrate, lower, quantize
from voxelquant.recipes.detect import Detector
from voxelquant.recipes.parity import Forms
from voxelquant.sparse import SparseTensor


@dataclass(frozen=True)
class Chain:
    """What one float detector becomes."""

    forms: Forms
    state: QuantState
    exported: Exported


def centerpoint_like_trained(config: DetectorConfig, x: SparseTensor) -> CenterPoint:
    """Random weights; the batch norms of the sparse part hold the statistics of one frame."""
    torch.manual_seed(0)
    network = CenterPoint(config)
    for module in network.backbone.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None  # a plain average, of one forward
    with torch.no_grad():
        network.backbone.train()(x)
    return network.eval()


@pytest.fixture(scope="session")
def run_chain() -> Callable[[DetectorConfig, SparseTensor, Path], Chain]:
    """Fold, insert by the published policy, calibrate, save, load, lower, export."""

    def run(config: DetectorConfig, x: SparseTensor, folder: Path) -> Chain:
        network = centerpoint_like_trained(config, x)
        qmodel = quantize(network, "reference")
        calibrate(qmodel, [x])
        QuantState.of(qmodel).save(folder / "ptq.safetensors")
        state = QuantState.load(folder / "ptq.safetensors")
        fake = state.apply(network)
        exported = export_libspconv(fake, folder / "scn.onnx", example=x)
        fake_form, engine, float_form = (
            Detector(model, config, "cpu") for model in (fake, lower(fake), network)
        )
        return Chain(Forms(fake_form, engine, float_form), state, exported)

    return run
