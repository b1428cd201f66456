import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from voxelquant.detection.checkpoint import load_weights, save_weights
from voxelquant.detection.checkpoint_layout import LAYOUTS, choose_layout
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.errors import CheckpointError
from voxelquant.sparse import SparseConvBase, SubMConv3d


@pytest.fixture(scope="module")
def trained() -> CenterPoint:
    """A tiny detector with values of its own in every tensor, BatchNorm statistics too."""
    torch.manual_seed(1)
    model = CenterPoint.from_config("centerpoint_tiny")
    for value in model.state_dict().values():
        if value.dtype.is_floating_point:
            value.copy_(torch.rand_like(value) + 0.5)
        else:
            value.fill_(7)
    return model


@pytest.fixture
def fresh() -> CenterPoint:
    return CenterPoint.from_config("centerpoint_tiny")


def _sparse_names(model: nn.Module) -> list[str]:
    return [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, SparseConvBase)]


def _in_layout(model: CenterPoint, permutation: tuple[int, ...]) -> dict[str, Tensor]:
    weights = OrderedDict(model.state_dict())
    for name in _sparse_names(model):
        weights[name] = weights[name].permute(permutation).contiguous()
    return weights


def _assert_equal(model: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


SPCONV_1 = (1, 2, 3, 4, 0)  # [c_out, z, y, x, c_in] -> [z, y, x, c_in, c_out]
NATIVE = (1, 2, 3, 0, 4)  # -> [z, y, x, c_out, c_in]


@pytest.mark.parametrize(
    ("permutation", "layout"),
    [((0, 1, 2, 3, 4), "spconv 2.2"), (SPCONV_1, "spconv 1.x"), (NATIVE, "2.0/2.1 native")],
)
def test_det3d_checkpoints_of_every_spconv(tmp_path, trained, fresh, permutation, layout) -> None:
    content = {
        "meta": {
            "epoch": 20,
            "iter": 1,
            "CLASSES": None,
            "config": "import os",
            "lr": np.float64(1),
        },
        "state_dict": _in_layout(trained, permutation),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []},
    }
    torch.save(content, tmp_path / "epoch_20.pth")
    report = load_weights(fresh, tmp_path / "epoch_20.pth")
    _assert_equal(fresh, trained)
    assert layout in report.layout
    assert report.notes == ()
    assert report.n_tensors == len(trained.state_dict())


def test_no_two_layouts_fit_the_reference_network() -> None:
    with torch.device("meta"):
        model = CenterPoint.from_config("centerpoint_voxel0075")
    shapes = {name: tuple(model.state_dict()[name].shape) for name in _sparse_names(model)}
    assert len(shapes) == 21
    for layout in LAYOUTS:
        stored = {n: torch.empty(layout.stored_shape(s), device="meta") for n, s in shapes.items()}
        assert choose_layout(stored, shapes) == (layout, [])


def test_layout_by_hand_on_one_weight(tmp_path) -> None:
    conv = SubMConv3d(2, 3, 3, bias=False)
    stored = torch.arange(3 * 3 * 3 * 2 * 3, dtype=torch.float32).reshape(3, 3, 3, 2, 3)
    torch.save({"weight": stored}, tmp_path / "one.pth")
    load_weights(conv, tmp_path / "one.pth")
    for out in range(3):
        for z, y, x, c_in in ((0, 1, 2, 0), (2, 0, 1, 1)):
            assert conv.weight[out, z, y, x, c_in].item() == stored[z, y, x, c_in, out].item()


def test_layouts_that_shapes_cannot_tell_apart_are_reported(tmp_path) -> None:
    conv = SubMConv3d(4, 4, 3)
    stored = torch.rand(3, 3, 3, 4, 4)
    torch.save({"weight": stored, "bias": torch.rand(4)}, tmp_path / "square.pth")
    report = load_weights(conv, tmp_path / "square.pth")
    assert "spconv 1.x" in report.layout
    assert any("native" in note and "would fit as well" in note for note in report.notes)
    assert torch.equal(conv.weight.data, stored.permute(4, 0, 1, 2, 3))


def test_layouts_may_not_be_mixed(tmp_path, trained, fresh) -> None:
    weights = _in_layout(trained, SPCONV_1)
    name = "backbone.conv3.0.weight"
    weights[name] = trained.state_dict()[name]
    torch.save(weights, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match=r"backbone.conv3.0.weight: got shape .*spconv 1.x"):
        load_weights(fresh, tmp_path / "mixed.pth")


def test_prefix_old_names_and_missing_counters(tmp_path, trained, fresh) -> None:
    old = {}
    starts = {"conv_input": 0, "conv1": 3, "conv2": 5, "conv3": 10, "conv4": 15, "extra_conv": 20}
    for name, value in _in_layout(trained, SPCONV_1).items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            container, index, tail = rest.split(".", 2)
            name = f"backbone.middle_conv.{starts[container] + int(index)}.{tail}"
        if not name.endswith("num_batches_tracked"):
            old[f"module.{name}"] = value
    assert "module.backbone.middle_conv.18.conv2.bias" in old
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    report = load_weights(fresh, tmp_path / "old.pth")
    for name, value in fresh.state_dict().items():
        expected = trained.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert value.item() == 0
        else:
            assert torch.equal(value, expected), name
    assert "middle_conv" in report.notes[0]


def test_safetensors_round_trip(tmp_path, trained, fresh) -> None:
    path = tmp_path / "tiny.safetensors"
    save_weights(trained, path, metadata={"config": "centerpoint_tiny", "seed": "3"})
    report = load_weights(fresh, path)
    _assert_equal(fresh, trained)
    assert report.metadata == {"config": "centerpoint_tiny", "seed": "3"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_half_keeps_batchnorm_exact(tmp_path, trained, fresh) -> None:
    path = tmp_path / "half.safetensors"
    save_weights(trained, path, half=True)
    assert path.stat().st_size <= 8_000_000
    stored = safetensors.torch.load_file(path)
    assert stored["backbone.conv2.0.weight"].dtype == torch.float16
    assert stored["backbone.conv2.1.running_var"].dtype == torch.float32
    assert stored["neck.blocks.0.2.weight"].dtype == torch.float32
    load_weights(fresh, path)
    for name, value in fresh.state_dict().items():
        expected = trained.state_dict()[name]
        assert value.dtype == expected.dtype
        rounded = expected.half().float() if stored[name].dtype == torch.float16 else expected
        assert torch.equal(value, rounded), name


def test_failed_save_leaves_nothing(tmp_path, trained, monkeypatch) -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 1e6)
    with pytest.raises(CheckpointError, match="weight: 4 of 4 values are NaN or infinite"):
        save_weights(model, tmp_path / "overflow.safetensors", half=True)
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        save_weights(model, tmp_path / "model.pth")

    def broken(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(CheckpointError, match="disk full"):
        save_weights(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


class _Malicious:
    """Pickles into a call: the unpickler must name the function and not make the call."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("modern", [True, False])
def test_code_in_a_checkpoint_is_named_and_never_run(tmp_path, fresh, modern) -> None:
    mark = tmp_path / "executed"
    content = {"state_dict": {}, "meta": _Malicious(os.mkdir, str(mark))}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"bad.pth: refused, it holds `(posix|nt).mkdir`"):
        load_weights(fresh, tmp_path / "bad.pth")
    for protocol, message in ((2, r"refused, it holds `(posix|nt).mkdir`"), (4, "Unsupported")):
        raw = pickle.dumps(_Malicious(os.mkdir, str(mark)), protocol=protocol)
        (tmp_path / "plain.pth").write_bytes(raw)
        with pytest.raises(CheckpointError, match=message):
            load_weights(fresh, tmp_path / "plain.pth")
    assert not mark.exists()


def test_other_classes_are_refused_by_name(tmp_path, fresh) -> None:
    torch.save({"state_dict": {}, "model": fresh}, tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"holds `voxelquant.detection.detector.CenterPoint`"):
        load_weights(fresh, tmp_path / "module.pth")


def _truncate(path: Path, keep: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(tmp_path, trained, fresh, keep, kind) -> None:
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    if kind == "safetensors":
        save_weights(trained, path)
    else:
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    _truncate(path, keep)
    with pytest.raises(CheckpointError, match=r"fetch it again") as caught:
        load_weights(fresh, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_compression_bomb_is_refused(tmp_path, fresh, monkeypatch) -> None:
    monkeypatch.setattr("voxelquant.detection.checkpoint_files._MAX_BYTES", 10_000_000)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="unpacks to 20000000 bytes"):
        load_weights(fresh, path)


def test_what_a_file_under_a_wrong_name_is(tmp_path, trained, fresh) -> None:
    save_weights(trained, tmp_path / "right.safetensors")
    torch.save(trained.state_dict(), tmp_path / "right.pth")
    contents = {name: (tmp_path / f"right.{name}").read_bytes() for name in ("safetensors", "pth")}
    index = b'{"weight_map": {"a": "b.safetensors"}}'
    for name, content, message in (
        ("text.pth", b"not a checkpoint at all\n", "got text, need weights"),
        ("text.safetensors", b"not a checkpoint at all\n", "got text, need weights"),
        ("some.json", b'{"lr": 3}', "got JSON, need weights"),
        ("deep.json", b"[" * 100_000, "got text, need weights"),
        ("weights.json", index, "got an index of shards, need a name that ends in .safeten"),
        ("st.pth", contents["safetensors"], "got a safetensors file, need a name that ends in"),
        ("t.safetensors", contents["pth"], "got a torch file, need a name that ends in .pth"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_weights(fresh, tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_files_that_are_no_weights(tmp_path, fresh) -> None:
    with pytest.raises(CheckpointError, match=r"absent.pth: cannot be read \(No such file"):
        load_weights(fresh, tmp_path / "absent.pth")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        load_weights(fresh, tmp_path / "pointer.pth")
    for content, message in (
        ([1, 2], "got a list"),
        ({}, "got a dict"),
        ({"state_dict": {"a": 1}}, "'a' of type int"),
        ({"epoch": 3}, "'epoch' of type int"),
    ):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=message):
            load_weights(fresh, tmp_path / "other.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, trained, fresh, value) -> None:
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    weights["backbone.conv3.3.bn1.running_var"][5] = value
    before = fresh.backbone.conv_input[0].weight.clone()
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"conv3.3.bn1.running_var: 1 of 64 values are NaN"):
        load_weights(fresh, tmp_path / "nan.pth")
    assert torch.equal(fresh.backbone.conv_input[0].weight, before)


@pytest.mark.parametrize(
    ("name", "looks_like"),
    [
        ("bbox_head.tasks.0.feature_adapt_cls.conv_offset.weight", "a CenterPoint with DCN heads"),
        ("reader.pfn_layers.0.linear.weight", "a PointPillars model"),
        ("roi_head.shared_fc_layer.0.weight", "a two-stage CenterPoint"),
        ("backbone_3d.conv_input.0.weight", "an OpenPCDet model"),
        ("pts_middle_encoder.conv_input.0.weight", "an mmdetection3d model"),
        ("encoders.lidar.backbone.conv_input.0.weight", "a BEVFusion model"),
    ],
)
def test_foreign_checkpoints_are_recognised(tmp_path, trained, fresh, name, looks_like) -> None:
    key = "model_state" if "OpenPCDet" in looks_like else "state_dict"
    weights = {**trained.state_dict(), name: torch.zeros(1)}
    del weights["neck.blocks.0.1.weight"]
    torch.save({key: weights}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=looks_like) as caught:
        load_weights(fresh, tmp_path / "foreign.pth")
    message = str(caught.value)
    assert "1 missing (neck.blocks.0.1.weight)" in message
    assert f"1 unexpected ({name})" in message
    assert "\n" not in message


def test_other_config_is_named_by_its_first_tensor(tmp_path, trained) -> None:
    torch.save(trained.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"missing \(neck.blocks.0.13.weight"):
        load_weights(CenterPoint(load_config("centerpoint_voxel01")), tmp_path / "tiny.pth")
    wider = load_config("centerpoint_tiny")
    wide_head = wider.model_copy(
        update={"head": wider.head.model_copy(update={"share_conv_channel": 48})}
    )
    with pytest.raises(CheckpointError, match=r"shared_conv.0.weight: got shape \[32, 128, 3, 3\]"):
        load_weights(CenterPoint(wide_head), tmp_path / "tiny.pth")


def test_integer_weights_are_refused(tmp_path) -> None:
    torch.save({"weight": torch.ones(2, 2, dtype=torch.int8)}, tmp_path / "codes.pth")
    with pytest.raises(CheckpointError, match=r"weight: got torch\.int8, need torch\.float32"):
        load_weights(nn.Linear(2, 2, bias=False), tmp_path / "codes.pth")


def test_doubles_beyond_single_precision_are_refused(tmp_path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((2, 2), 1e300, dtype=torch.float64)}, buffer)
    (tmp_path / "double.pth").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="weight: 4 of 4 values"):
        load_weights(nn.Linear(2, 2, bias=False), tmp_path / "double.pth")
