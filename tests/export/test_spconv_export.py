"""Files of models built of `spconv.pytorch`: what the own backbone writes, and what runs."""

import dataclasses
import importlib
from typing import Any

import pytest
import torch

import voxelquant as vq
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.errors import ExportError
from voxelquant.numerics import sqnr_db
from voxelquant.quant import QuantState, quantization_of
from voxelquant.sparse import SparseTensor

spconv: Any = pytest.importorskip("spconv.pytorch", reason="spconv is not installed here")
ground: Any = importlib.import_module("spconv_ground")
networks: Any = importlib.import_module("spconv_networks")

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
NAMES = ["det3d", "pcdet", "mmdet", "odd"]


@pytest.fixture(autouse=True)
def mended() -> Any:
    with ground.spconv_mended_on_cpu():
        yield


class OwnDetector(torch.nn.Module):
    """The det3d network, its backbone of this package's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SpMiddleResNetFHD(BackboneConfig(channels=(8, 8, 16, 24, 32)))
        self.neck = networks.Det3dDetector().neck

    def forward(self, x: SparseTensor) -> torch.Tensor:
        return self.neck(self.backbone(x))


def calibrated(name: str) -> Any:
    qmodel = vq.quantize(networks.build_network(name))
    vq.calibrate(qmodel, [networks.NETWORKS[name].frame(seed) for seed in range(3)])
    return qmodel


def last_sparse_output(name: str, qmodel: Any, seed: int) -> torch.Tensor:
    """What leaves the sparse part of the fake-quant model; dense, as rows have no common order."""
    features, coords = ground.make_voxels(seed)
    if name == "det3d":
        return qmodel.backbone(features, coords, 1)[0]
    if name == "pcdet":
        frame = dict(networks.PcdetDetector.frame(seed))
        return qmodel.map_to_bev_module(qmodel.backbone_3d(frame))["spatial_features"]
    if name == "mmdet":
        return qmodel(features, coords, 1)
    return qmodel(networks.OddNet.frame(seed)).dense()


@pytest.mark.parametrize("name", NAMES)
def test_the_file_computes_what_the_fake_quant_model_does(name: str, tmp_path: Any) -> None:
    qmodel, frame = calibrated(name), networks.NETWORKS[name].frame(1)
    written = vq.export_libspconv(qmodel, tmp_path / "scn.onnx", example=frame)
    assert {d.severity for d in written.warnings} <= {"warning"}
    kinds = [type(node).__name__ for node in written.graph.nodes]
    plan = quantization_of(qmodel).plan
    assert kinds.count("Add") == sum(n.kind == "add" for n in plan.graph.nodes)
    features, coords = ground.make_voxels(5)
    (output,) = vq.FileRunner(tmp_path / "scn.onnx")(features, coords, ground.GRID).outputs.values()
    with torch.no_grad():
        fake = last_sparse_output(name, qmodel, 5)
        plain = last_sparse_output(name, networks.build_network(name), 5)
    values = output.values
    if output.coords_bzyx is not None:
        values = SparseTensor.from_coords(values, output.coords_bzyx, ground.GRID, 1).dense()
    assert values.shape == fake.shape
    # Both start from the points: the few codes on ties that differ feed every later layer, until
    # the noise of the two is independent and 3 dB more than that of each.
    assert sqnr_db(values, fake) > sqnr_db(plain, fake) - 4.0


def test_the_file_is_that_of_the_own_backbone(tmp_path: Any) -> None:
    theirs, example = calibrated("det3d"), networks.Det3dDetector.frame(1)

    ours = QuantState.of(theirs).apply(OwnDetector().eval())
    features, coords = ground.make_voxels(1)
    own_example = SparseTensor.from_coords(features, coords, ground.GRID, 1)
    mine = vq.export_libspconv(theirs, tmp_path / "theirs.onnx", example=example).graph
    other = vq.export_libspconv(ours, tmp_path / "ours.onnx", example=own_example).graph
    assert (mine.inputs, mine.outputs) == (other.inputs, other.outputs)
    assert len(mine.nodes) == len(other.nodes) == 39
    names: dict[str, str] = {}
    for one, two in zip(mine.nodes, other.nodes, strict=True):
        fields, expected = dataclasses.asdict(one), dataclasses.asdict(two)
        if "rulebook" in fields:  # spconv's own keys name the same groups of convolutions
            key = fields.pop("rulebook")
            assert names.setdefault(key, expected.pop("rulebook")) == names[key]
        fields.pop("module_path"), expected.pop("module_path")  # one ReLU module there, two here
        assert fields == expected
    assert set(names) == {"", "res0", "res1", "res2", "res3"}
    assert len(set(names.values())) == len(names)
    for key, value in other.initializers.items():
        assert (mine.initializers[key] == value).all(), key


def test_the_file_equals_the_integer_engine_of_the_own_backbone(tmp_path: Any) -> None:
    qmodel = calibrated("det3d")
    vq.export_libspconv(qmodel, tmp_path / "scn.onnx", example=networks.Det3dDetector.frame(1))
    engine = vq.lower(QuantState.of(qmodel).apply(OwnDetector().eval()))
    features, coords = ground.make_voxels(5)
    run = vq.FileRunner(tmp_path / "scn.onnx")(features, coords, ground.GRID)
    (output,) = run.outputs.values()
    with torch.no_grad():
        expected = engine.backbone(SparseTensor.from_coords(features, coords, ground.GRID, 1))
    assert torch.equal(output.values, expected)


def test_a_float_model_is_written_in_fp16(tmp_path: Any) -> None:
    model = networks.build_network("mmdet")
    example = networks.MmdetEncoder.frame(1)
    graph = vq.export_libspconv(model, tmp_path / "scn.onnx", example=example).graph
    assert {conv.precision for conv in graph.convs} == {"fp16"}


def test_bad_examples_are_refused(tmp_path: Any) -> None:
    qmodel = calibrated("mmdet")
    with pytest.raises(ExportError, match="got an example of 2 samples"):
        vq.export_libspconv(
            qmodel, tmp_path / "scn.onnx", example=networks.MmdetEncoder.frame(1, batch=2)
        )
    uncalibrated = vq.quantize(
        networks.build_network("mmdet"), example=networks.MmdetEncoder.frame(1)
    )
    with pytest.raises(ExportError, match="need a calibrated one"):
        vq.export_libspconv(
            uncalibrated, tmp_path / "scn.onnx", example=networks.MmdetEncoder.frame(1)
        )
    assert not list(tmp_path.iterdir())
