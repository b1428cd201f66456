"""Where do float, fake-quant, engine and exported file part? Layer by layer.

The project's central test. Three questions are kept apart: how far the engine is from the
float model when both run freely from the points (SQNR, relative L2); how often a fake-quant layer
gives another code than the engine's layer when both read the *same* codes; and whether the file,
executed from its bytes, equals the engine bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import BadInputError, ExportError
from voxelquant.export.runner import FileRunner, NodeOutput
from voxelquant.numerics import relative_l2, sqnr_db
from voxelquant.plural import counted
from voxelquant.quant.compare import NodeRecord, capture_nodes, layer_parity, real_values
from voxelquant.quant.insert import quantization_of
from voxelquant.recipes.detect import Detector, Engine, lowered, open_detector
from voxelquant.recipes.device import choose_device
from voxelquant.recipes.export import check_exported, require_no_errors
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud
from voxelquant.recipes.progress import StageReporter
from voxelquant.report.model import LayerParity
from voxelquant.sparse import SparseTensor


@dataclass(frozen=True)
class Forms:
    """One detector in its three forms; `float` is absent when only a quantized state is at hand."""

    fake: Detector
    engine: Detector
    float: Detector | None = None


@dataclass(frozen=True)
class ParityRequest:
    """What the command line asks for."""

    config: str
    weights: Path
    float_weights: Path | None = None
    onnx: Path | None = None
    choice: FrameChoice = field(default_factory=FrameChoice)
    device: str = "auto"


@dataclass(frozen=True)
class ParityResult:
    """Every layer, and what follows from all of them.

    Attributes:
        layers: one entry for each convolution and sum, in execution order.
        unexplained: fake-quant codes that rounding cannot explain, over all layers; the law: none.
        flip_rate: share of fake-quant codes that differ from the engine's, given equal inputs.
        first_difference: first layer at which the file leaves the engine; None if nowhere.
        output_equal: whether the file's graph output equals the engine's bit for bit.
    """

    layers: tuple[LayerParity, ...]
    unexplained: int
    flip_rate: float
    first_difference: str | None
    output_equal: bool | None

    @property
    def holds(self) -> bool:
        """Whether everything is as the law wants it."""
        file_equal = self.output_equal is not False and self.first_difference is None
        return self.unexplained == 0 and file_equal


def run_parity(request: ParityRequest, reporter: StageReporter) -> ParityResult:
    """Open every form that the request names and compare them.

    Raises:
        BadInputError: config, weights, file or frame cannot be used.
    """
    config = load_config(request.config)
    device = choose_device(request.device)
    onnx = None
    if request.onnx is not None:
        require_no_errors(request.onnx, check_exported(request.onnx))
        onnx = request.onnx
    fake = open_detector(config, request.weights, Engine.FAKE, device)
    forms = Forms(
        fake=fake,
        engine=lowered(fake),
        float=None
        if request.float_weights is None
        else open_detector(config, request.float_weights, Engine.FLOAT, device),
    )
    reporter.say_all(forms.fake.notes)
    x = forms.engine.read([choose_cloud(config, request.choice)])
    voxels = counted(len(x.sites), "voxel")
    with reporter.stage("parity", f"comparing on {request.choice}, {voxels}"):
        return measure_parity(forms, x, onnx)


def measure_parity(forms: Forms, x: SparseTensor, onnx: Path | bytes | None = None) -> ParityResult:
    """Compare the forms, and an exported file if there is one, on one frame.

    Raises:
        BadInputError: the frame has no voxel inside the range.
        ExportError: the file cannot be executed on this frame.
    """
    if len(x.sites) == 0:
        raise BadInputError("got a frame without a voxel inside the point range, need at least one")
    fake, engine = forms.fake.network, forms.engine.network
    plan = quantization_of(fake).require_plan()
    engine_nodes = capture_nodes(engine, plan, x)
    given_equal_inputs = {entry.name: entry for entry in layer_parity(fake, engine, x)}
    float_nodes: dict[str, NodeRecord] = {}
    if forms.float is not None:
        float_nodes = capture_nodes(forms.float.network, plan, x)
    file_nodes, output_equal = _run_file(onnx, engine, x)
    layers = []
    for name, record in engine_nodes.items():
        entry = given_equal_inputs[name]
        codes = entry.elements if entry.output_precision != "fp16" else 0
        reference = float_nodes.get(name)
        values = real_values(record.output)
        layers.append(
            LayerParity(
                path=name,
                kind=plan.graph.node(name).kind,
                precision=f"{entry.precision} → {entry.output_precision}",
                sqnr_db=sqnr_db(reference.output.features, values) if reference else None,
                relative_l2=relative_l2(reference.output.features, values) if reference else None,
                codes=codes,
                differing_codes=entry.differing if codes else 0,
                largest_code_difference=int(entry.largest) if codes else 0,
                file_equals_engine=_equal(record, file_nodes.get(name)),
            )
        )
    return _summarise(layers, sum(e.unexplained for e in given_equal_inputs.values()), output_equal)


def _run_file(
    onnx: Path | bytes | None, engine: CenterPoint, x: SparseTensor
) -> tuple[dict[str, NodeOutput], bool | None]:
    if onnx is None:
        return {}, None
    run = FileRunner(onnx, x.features.device)(x.features, x.coords_bzyx, x.spatial_shape)
    with torch.no_grad():
        expected = engine.backbone(x)
    modules = {path for path, _ in engine.named_modules()}
    foreign = sorted(run.by_module.keys() - modules)
    if foreign or len(run.outputs) != 1:
        odd = f"node of module {foreign[0]}" if foreign else f"{len(run.outputs)} outputs"
        raise ExportError(
            f"got a file with {odd}, which this model does not have; give the file that was "
            "exported from these weights"
        )
    (output,) = run.outputs.values()
    return run.by_module, torch.equal(output.values, expected.float())


def _equal(record: NodeRecord, out: NodeOutput | None) -> bool | None:
    """None where the file does not say which node stands for the layer."""
    if out is None or out.coords_bzyx is None:
        return None
    mine = record.output
    same_sites = torch.equal(mine.coords_bzyx, out.coords_bzyx)
    return same_sites and torch.equal(mine.features.to(out.features.dtype), out.features)


def _summarise(
    layers: list[LayerParity], unexplained: int, output_equal: bool | None
) -> ParityResult:
    codes = sum(layer.codes for layer in layers)
    return ParityResult(
        layers=tuple(layers),
        unexplained=unexplained,
        flip_rate=sum(layer.differing_codes for layer in layers) / max(1, codes),
        first_difference=next((e.path for e in layers if e.file_equals_engine is False), None),
        output_equal=output_equal,
    )
