"""Checkpoints written for NVIDIA's tools: equal to what was read, and what they say when not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nvidia_files import amax_names, nvidia_weights
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.checkpoint_files import read_torch_file
from voxelquant.detection.config import load_config
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.nvidia_export import (
    IDENTITY_VARIANCE,
    nvidia_state_dict,
    write_nvidia_checkpoint,
)
from voxelquant.detection.nvidia_import import BackboneModel, import_nvidia_checkpoint
from voxelquant.errors import CheckpointError, QuantStateError
from voxelquant.quant import QuantState, Recipe, calibrate, load_recipe, quantize
from voxelquant.quant.recipe import Rule
from voxelquant.quant.state import CARRIED
from voxelquant.sparse import SparseTensor

WIDTHS = (4, 6, 8, 10)
GRID = (25, 24, 24)


def small_network() -> BackboneModel:
    torch.manual_seed(0)
    config = BackboneConfig(in_channels=5, channels=(WIDTHS[0], *WIDTHS))
    network = BackboneModel(SpMiddleResNetFHD(config)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return network


def small_frame(seed: int) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(25 * 24 * 24, generator=generator)[:200]
    coords = torch.stack([0 * keys, keys // 576, keys // 24 % 24, keys % 24], 1)
    return SparseTensor.from_coords(torch.randn((200, 5), generator=generator), coords, GRID, 1)


def state_of(recipe: str | Recipe) -> QuantState:
    qmodel = quantize(small_network(), recipe)
    calibrate(qmodel, [small_frame(seed) for seed in range(3)])
    return QuantState.of(qmodel)


def imported(weights: dict[str, Tensor]) -> QuantState:
    return import_nvidia_checkpoint(weights, "ptq.pth", small_network(), GRID).state


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
        assert found[name].shape == value.shape, name


def test_what_was_imported_is_given_back_as_it_was(tmp_path) -> None:
    weights = nvidia_weights(WIDTHS)
    state = imported(weights)
    state.save(tmp_path / "state.safetensors")
    forms = (
        state,
        QuantState.load(tmp_path / "state.safetensors"),
        QuantState.of(state.apply(small_network())),
    )
    for form in forms:
        found, lost = nvidia_state_dict(form, small_network())
        assert_same(found, weights)
        assert lost == ()


def test_a_layer_that_was_trained_since_is_written_as_it_is_now() -> None:
    weights = nvidia_weights(WIDTHS)
    qmodel = imported(weights).apply(small_network())
    conv = qmodel.get_submodule("backbone.conv3.3.conv2")
    with torch.no_grad():
        conv.weight.mul_(0.5)
    conv.input_quantizer.set_amax(7.5)
    found, _ = nvidia_state_dict(QuantState.of(qmodel), small_network())
    changed = {n for n in weights if not torch.equal(found[n], weights[n])}
    path = "backbone.conv3.2.conv2"
    assert changed == {f"{path}.weight", f"{path}._input_quantizer._amax"}
    assert torch.equal(found[f"{path}._input_quantizer._amax"], torch.tensor(7.5))


@pytest.mark.parametrize("recipe", ["reference", "nvidia"])
def test_a_state_of_ours_is_read_back_with_the_same_weights(recipe) -> None:
    state = state_of(recipe)
    found, lost = nvidia_state_dict(state, small_network())
    table = nvidia_weights(WIDTHS)
    assert list(found) == list(table)
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
        n: (v.shape, v.dtype) for n, v in table.items()
    }
    assert len(amax_names(found)) == 50
    again = imported(found)
    for name in state.tensors:
        if not name.startswith(("activation_amax/", CARRIED)):
            assert torch.equal(again.tensors[name], state.tensors[name]), name
    ours = {name: again.activation_amax(name) for name in again.plan.range_names}
    if recipe == "nvidia":
        assert all(torch.equal(amax, state.activation_amax(name)) for name, amax in ours.items())
        assert len(lost) == 1
    else:
        block = "backbone.conv2.3"
        both = [float(state.activation_amax(n)) for n in (f"{block}.conv2", "backbone.conv2.0")]
        assert both[0] != both[1]
        assert float(ours[f"{block}.add/input"]) == max(both)
        assert float(ours[f"{block}.conv1/input"]) == both[1]
        listed = " and ".join(f"{amax:.4g}" for amax in both)
        assert f"conv2.2.quant_add {listed}" in lost[0]
        assert "quantize the input in place" in lost[1]
        assert len(lost) == 3
    assert "127 was written for conv_input.0, conv1.0.conv1, conv1.0.conv2" in lost[-1]
    assert float(found["backbone.conv_input.0._input_quantizer._amax"]) == 127.0


@pytest.mark.parametrize(("of_branch", "of_skip"), [(2.0, 3.0), (3.0, 2.0)])
def test_a_sum_gets_the_larger_of_its_operands_ranges(of_branch, of_skip) -> None:
    state = state_of("reference")
    given = {"backbone.conv3.3.conv2": of_branch, "backbone.conv3.0": of_skip}
    ranges = {f"activation_amax/{name}": torch.tensor(amax) for name, amax in given.items()}
    changed = replace(state, tensors={**state.tensors, **ranges})
    found, lost = nvidia_state_dict(changed, small_network())
    assert float(found["backbone.conv3.2.quant_add._input_quantizer._amax"]) == 3.0
    assert float(found["backbone.conv3.2.conv1._input_quantizer._amax"]) == of_skip
    assert f"conv3.2.quant_add {of_branch:g} and {of_skip:g}" in lost[0]


def test_the_norm_of_conv_input_changes_nothing_in_their_arithmetic() -> None:
    state = state_of("reference")
    found, _ = nvidia_state_dict(state, small_network())
    norm = {k: found[f"backbone.conv_input.1.{k}"] for k in ("weight", "bias")}
    mean, var = (found[f"backbone.conv_input.1.running_{k}"] for k in ("mean", "var"))
    weight = found["backbone.conv_input.0.weight"]
    assert bool((var == torch.tensor(IDENTITY_VARIANCE)).all())
    for inverse in ((var + 1e-3).rsqrt(), 1.0 / (var + 1e-3).sqrt()):
        factor = norm["weight"] * inverse
        folded = weight * factor.view(-1, 1, 1, 1, 1)
        assert torch.equal(folded, state.tensors["backbone.conv_input.0.weight"].float())
        bias = (0.0 - mean) * factor + norm["bias"]
        assert torch.equal(bias, state.tensors["backbone.conv_input.0.bias"].float())
    layer = nn.BatchNorm1d(len(var), eps=1e-3).eval()
    layer.load_state_dict({k.rpartition(".")[2]: v for k, v in found.items() if "input.1" in k})
    x = torch.randn(1000, len(var))
    assert torch.equal(layer(x), x + norm["bias"])


def mixed(**rule: object) -> Recipe:
    reference = load_recipe("reference")
    return reference.model_copy(update={"rules": (*reference.rules, Rule(**rule))})


def test_what_the_layout_cannot_say_is_refused_by_name() -> None:
    fp16 = state_of(mixed(match="backbone.conv3.4.conv2", precision="fp16"))
    with pytest.raises(CheckpointError, match=r"backbone\.conv3\.4\.conv2: got an fp16 layer"):
        nvidia_state_dict(fp16, small_network())
    fp8 = state_of(mixed(match="backbone.conv4.0", precision="fp8"))
    with pytest.raises(CheckpointError, match=r"got 1 fp8 layers \(backbone\.conv4\.0\), NVIDIA's"):
        nvidia_state_dict(fp8, small_network())
    narrow = state_of(mixed(match="backbone.conv4.0", weight_bits=4))
    with pytest.raises(CheckpointError, match=r"backbone\.conv4\.0: got 4-bit weights"):
        nvidia_state_dict(narrow, small_network())
    other = BackboneModel(
        SpMiddleResNetFHD(BackboneConfig(in_channels=5, channels=(4, 4, 6, 8, 16)))
    )
    with pytest.raises(QuantStateError, match=r"conv4\.0: got a weight"):
        nvidia_state_dict(state_of("reference"), other)


def test_layers_that_their_tools_never_quantize_are_said() -> None:
    _, lost = nvidia_state_dict(state_of("int8"), small_network())
    assert "conv1.0.conv1, conv1.0.conv2, conv1.0.quant_add compute in int8 here" in lost[-1]


def test_a_full_size_file_has_the_names_shapes_and_order_of_theirs(tmp_path) -> None:
    config = load_config("centerpoint_voxel0075")
    network = CenterPoint(config)
    dense = {k: v for k, v in network.state_dict().items() if not k.startswith("backbone.")}
    weights = nvidia_weights(dense=dense)
    grid = network.voxel_grid().sparse_shape
    state = import_nvidia_checkpoint(weights, "theirs.pth", network, grid).state
    assert write_nvidia_checkpoint(state, tmp_path / "ours.pth", config) == ()
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert_same(content["state_dict"], weights)
    assert content["meta"]["config_name"] == "centerpoint_voxel0075"
    assert read_torch_file(tmp_path / "ours.pth").keys() == {"meta", "state_dict"}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch) -> None:
    config = load_config("centerpoint_tiny")
    network = CenterPoint(config)
    dense = {k: v for k, v in network.state_dict().items() if not k.startswith("backbone.")}
    weights = nvidia_weights((16, 32, 64, 64), dense=dense)
    grid = network.voxel_grid().sparse_shape
    state = import_nvidia_checkpoint(weights, "theirs.pth", network, grid).state

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_nvidia_checkpoint(state, tmp_path / "ours.pth", config)
    assert list(tmp_path.iterdir()) == []
    broken = replace(state, tensors={k: v for k, v in state.tensors.items() if "hm.3" not in k})
    with pytest.raises(QuantStateError, match=r"hm\.3\.\w+: got a state without it"):
        write_nvidia_checkpoint(broken, tmp_path / "ours.pth", config)
