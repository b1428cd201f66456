"""Models built of spconv, quantized in place on a GPU, where spconv's fused kernels run.

Needs `spconv-cu126==2.3.8` (or another CUDA build of spconv 2.3) beside a CUDA build of torch.
Every comparison is with this package's reference or with the exported file on the same GPU;
messages say what was measured.
"""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import voxelquant as vq
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.numerics import sqnr_db
from voxelquant.quant import QuantState, quantization_of
from voxelquant.sparse import SparseTensor

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)
spconv: Any = pytest.importorskip("spconv.pytorch", reason="spconv is not installed here")
ground: Any = importlib.import_module("spconv_ground")
networks: Any = importlib.import_module("spconv_networks")
layers: Any = importlib.import_module("spconv_layers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
    # What spconv and its kernels' compiler warn of is theirs.
    pytest.mark.filterwarnings("ignore:::spconv"),
    pytest.mark.filterwarnings("ignore:::cumm"),
    pytest.mark.filterwarnings("ignore:::pccm"),
]
NAMES = ["det3d", "pcdet", "mmdet", "odd"]
CHANNELS = (16, 16, 32, 64, 128)
SITES = 4000
# Two executions whose quantization noise has become independent are 3 dB apart further than each
# is from the float network: codes on ties differ, and feed every later layer.
DECORRELATED_DB = 4.0


class OwnDetector(nn.Module):
    """The det3d network, its backbone of this package's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SpMiddleResNetFHD(BackboneConfig(channels=CHANNELS))
        self.neck = networks.Det3dDetector(CHANNELS).neck

    def forward(self, x: SparseTensor) -> Tensor:
        return self.neck(self.backbone(x))


def build(name: str) -> nn.Module:
    return networks.build_network(name, "cuda", *([CHANNELS] if name == "det3d" else []))


def frame_of(name: str, seed: int, batch: int = 1) -> Any:
    return networks.NETWORKS[name].frame(seed, device="cuda", batch=batch, sites=SITES)


def own_frame(seed: int, batch: int = 1) -> SparseTensor:
    features, coords = ground.make_voxels(seed, device="cuda", batch=batch, sites=SITES)
    return SparseTensor.from_coords(features, coords, ground.GRID, batch)


def run(model: nn.Module, frame: Any) -> Tensor:
    """Output of a model; dense, since spconv promises no order of rows."""
    arguments = frame if isinstance(frame, tuple) else (frame,)
    out = model(*(dict(x) if isinstance(x, dict) else x for x in arguments))
    return out.dense() if hasattr(out, "dense") else out


@pytest.fixture(scope="module")
def quantized() -> dict[str, nn.Module]:
    models = {}
    for name in NAMES:
        models[name] = vq.quantize(build(name))
        vq.calibrate(models[name], [frame_of(name, seed) for seed in range(3)])
    return models


def test_the_float_network_is_that_of_the_own_backbone() -> None:
    """The footing of all other tests: if this fails, spconv computes something else here."""
    theirs, ours = build("det3d"), OwnDetector().eval().cuda()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected, found = ours(own_frame(5)), run(theirs, frame_of("det3d", 5))
    near = sqnr_db(expected, found)
    assert near > 80.0, f"float networks differ: {near:.1f} dB (is TF32 on?)"


def test_ranges_and_outputs_are_those_of_the_own_backbone(quantized: Any) -> None:
    theirs = quantized["det3d"]
    model = OwnDetector().eval().cuda()
    model.load_state_dict(build("det3d").state_dict())
    ours = vq.quantize(model)
    vq.calibrate(ours, [own_frame(seed) for seed in range(3)])
    state, other = QuantState.of(theirs), QuantState.of(ours)
    assert state.tensors.keys() == other.tensors.keys()
    for key, value in other.tensors.items():
        # MSE chooses among bin edges: near a tie of two candidates, one of 4096 bins apart.
        relative = 2e-3 if "activation_amax" in key else 0.0
        worst = float((state.tensors[key].float() - value.float()).abs().max())
        assert worst <= relative * float(value.abs().max()), f"{key}: {worst} apart"
    ours = state.apply(model)
    for seed in (0, 7):
        with torch.no_grad():
            expected, found = ours(own_frame(seed)), run(theirs, frame_of("det3d", seed))
            near = sqnr_db(expected, found)
            far = sqnr_db(run(build("det3d"), frame_of("det3d", seed)), found)
        assert near > far - DECORRELATED_DB, f"own modules: {near:.1f} dB, float: {far:.1f} dB"
        assert 20.0 < far < 60.0, f"fake-quant against float: {far:.1f} dB"


@pytest.mark.parametrize("name", NAMES)
def test_states_and_files_of_every_style(quantized: Any, name: str, tmp_path: Any) -> None:
    qmodel = quantized[name]
    QuantState.of(qmodel).save(tmp_path / "ptq.safetensors")
    again = QuantState.load(tmp_path / "ptq.safetensors").apply(build(name))
    frame = frame_of(name, 6)
    with torch.no_grad():
        near = sqnr_db(run(qmodel, frame), run(again, frame))
    # The same kernels on the same numbers; only the order of rows is free.
    assert near > 80.0, f"{name}: model against its saved state: {near:.1f} dB"

    vq.export_libspconv(qmodel, tmp_path / "scn.onnx", example=frame)
    features, coords = ground.make_voxels(6, device="cuda", sites=SITES)
    runner = vq.FileRunner(tmp_path / "scn.onnx", device="cuda")
    (output,) = runner(features, coords, ground.GRID).outputs.values()
    values = output.values
    if output.coords_bzyx is not None:
        values = SparseTensor.from_coords(values, output.coords_bzyx, ground.GRID, 1).dense()
    with torch.no_grad():
        fake = sparse_output(name, qmodel, frame, (features, coords))
        plain = sparse_output(name, build(name), frame, (features, coords))
    near, far = sqnr_db(values, fake), sqnr_db(plain, fake)
    assert near > far - DECORRELATED_DB, f"{name}: file: {near:.1f} dB, float: {far:.1f} dB"
    if name == "det3d":  # the file is the same network on this package's integer engine, bit by bit
        engine = vq.lower(QuantState.of(qmodel).apply(OwnDetector().eval().cuda()))
        with torch.no_grad():
            expected = engine.backbone(own_frame(6))
        assert torch.equal(values, expected), f"file against engine: {sqnr_db(expected, values)} dB"


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_computes_what_the_reference_does(quantized: Any, name: str) -> None:
    """Outputs in eval and training, gradients of input and weight, given equal inputs."""
    frame = frame_of(name, 6, batch=2)
    arguments = frame if isinstance(frame, tuple) else (frame,)
    errors = layers.layer_errors(copy.deepcopy(quantized[name]), *arguments)
    assert errors
    wrong = {path: error for path, error in errors.items() if not error.worst < 1e-4}
    assert not wrong, f"{name}: relative L2 errors {wrong}"


def sparse_output(name: str, qmodel: Any, frame: Any, voxels: tuple[Tensor, Tensor]) -> Tensor:
    if name == "det3d":
        return qmodel.backbone(*voxels, 1)[0]
    if name == "pcdet":
        return qmodel.map_to_bev_module(qmodel.backbone_3d(dict(frame)))["spatial_features"]
    return run(qmodel, frame)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("autocast", [False, True])
def test_training_reaches_every_weight(quantized: Any, name: str, autocast: bool) -> None:
    qmodel = copy.deepcopy(quantized[name]).train()
    for module in qmodel.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    frame = frame_of(name, 1, batch=2)
    with torch.no_grad():
        target = run(build(name), frame) / 2.0
    paths = [node.path for node in quantization_of(qmodel).plan.graph.convs]
    optimizer = torch.optim.Adam(qmodel.parameters(), lr=1e-4)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16, enabled=autocast):
            out = run(qmodel, frame)
        loss = (out.float() - target).square().mean()
        loss.backward()
        for path in paths:
            gradient = qmodel.get_submodule(path).weight.grad
            assert gradient is not None, f"{path}: no gradient"
            assert torch.isfinite(gradient).all(), f"{path}: gradient not finite"
            assert gradient.abs().sum() > 0, f"{path}: gradient is zero"
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], f"{name}: loss did not fall: {losses}"
