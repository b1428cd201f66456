"""NVIDIA's quantized checkpoints: what is read, kept, reported and refused."""

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nvidia_files import amax_names, nvidia_weights
from oracles.nvidia_forward import ReferenceBackbone
from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.checkpoint import load_weights
from voxelquant.detection.checkpoint_files import read_torch_file
from voxelquant.detection.config import load_config
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.nvidia_import import (
    BackboneModel,
    NvidiaImport,
    import_nvidia_checkpoint,
    plan_backbone,
)
from voxelquant.errors import CheckpointError, QuantStateError
from voxelquant.numerics import quantize as encode
from voxelquant.numerics import relative_l2, scale_from_amax
from voxelquant.quant import (
    QuantSparseAdd,
    QuantState,
    capture_nodes,
    layer_parity,
    load_recipe,
    lower,
    quantization_of,
    quantize,
)
from voxelquant.quant.modules import read_operand
from voxelquant.sparse import SparseTensor

WIDTHS = (4, 6, 8, 10)
GRID = (25, 24, 24)
OURS = {"conv2": {"2": "3", "3": "4"}, "conv3": {"2": "3", "3": "4"}, "conv4": {"2": "3", "3": "4"}}


def small_network() -> BackboneModel:
    config = BackboneConfig(in_channels=5, channels=(WIDTHS[0], *WIDTHS))
    return BackboneModel(SpMiddleResNetFHD(config)).eval()


def imported(content: object) -> NvidiaImport:
    return import_nvidia_checkpoint(content, "ptq.pth", small_network(), GRID)


def our_path(theirs: str) -> str:
    stage, _, rest = theirs.partition(".")
    index, _, leaf = rest.partition(".")
    shifted = OURS.get(stage, {}).get(index, index)
    parts = [stage, shifted, leaf.replace("quant_add", "add")]
    return "backbone." + ".".join(part for part in parts if part)


def small_frame(seed: int, count: int = 150) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(math.prod(GRID), generator=generator)[:count]
    z, y, x = cells // (GRID[1] * GRID[2]), cells // GRID[2] % GRID[1], cells % GRID[2]
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1)
    features = torch.randn((count, 5), generator=generator)
    return SparseTensor.from_coords(features, coords, GRID, 1)


def run_oracle(weights: dict[str, Tensor], frame: SparseTensor) -> ReferenceBackbone:
    oracle = ReferenceBackbone({name: value.double().numpy() for name, value in weights.items()})
    sites = [tuple(site) for site in frame.coords_bzyx[:, 1:].tolist()]
    oracle(sites, GRID, frame.features.double().numpy())
    assert len(oracle.made) == 21 + 8
    return oracle


@pytest.mark.parametrize("seed", [0, 1])
def test_every_layer_computes_what_the_reference_does(seed) -> None:
    """Given equal inputs: float32 sums apart, nothing; what a sum reads, not even that."""
    weights = nvidia_weights(WIDTHS, seed=seed)
    qmodel = imported(weights).state.apply(small_network()).eval()
    plan, frame = quantization_of(qmodel).require_plan(), small_frame(seed)
    oracle = run_oracle(weights, frame)
    tensors = {"@input": frame}
    for theirs, made in oracle.made.items():
        node, module = plan.graph.node(our_path(theirs)), qmodel.get_submodule(our_path(theirs))
        operands = [tensors[name] for name in made.inputs]
        with torch.no_grad():
            found = module(*operands)
        assert found.spatial_shape == made.grid
        row_of = {tuple(s): row for row, s in enumerate(found.coords_bzyx[:, 1:].tolist())}
        rows = torch.tensor([row_of[site] for site in made.sites])
        values = found.features.clamp(min=0.0) if node.relu_path else found.features
        terms = 27 * module.in_channels if node.kind == "conv" else 2
        bound = made.reach * ((terms + 16) * 2.0**-24)
        if plan.tensor_precision[node.name] == "fp16":
            bound = bound + np.abs(made.values) * 2.0**-10 + 2.0**-24
        assert bool((np.abs(values[rows].numpy() - made.values) <= bound).all()), theirs
        if node.kind == "add":
            read = zip(oracle.summed[theirs], _operands_of(module, operands), strict=True)
            assert all(np.array_equal(wanted, got.numpy()) for wanted, got in read), theirs
        exact = torch.empty(found.features.shape)
        exact[rows] = torch.from_numpy(made.values).float()
        tensors[theirs] = found.replace_features(exact)


def _operands_of(add: QuantSparseAdd, operands: list[SparseTensor]) -> list[Tensor]:
    a, b = (operand.features for operand in operands)
    first = (add.precision.inputs[0], add.earlier0_quantizers, add.input0_quantizer)
    second = (add.precision.inputs[1], add.earlier1_quantizers, add.input1_quantizer)
    return [read_operand(a, *first), read_operand(b, *second)]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_forward_is_the_reference_s(seed) -> None:
    weights = nvidia_weights(WIDTHS, seed=seed)
    frame = small_frame(seed)
    wanted = run_oracle(weights, frame).made["extra_conv.0"]
    qmodel = imported(weights).state.apply(small_network()).eval()
    records = capture_nodes(qmodel, quantization_of(qmodel).require_plan(), frame)
    found = records["backbone.extra_conv.0"].output
    row_of = {tuple(s): row for row, s in enumerate(found.coords_bzyx[:, 1:].tolist())}
    rows = torch.tensor([row_of[site] for site in wanted.sites])
    # A code that flips at a tie feeds all later layers: it may move a few values by a step.
    assert relative_l2(torch.from_numpy(wanted.values).float(), found.features[rows]) < 1e-3


def test_engine_and_fake_quant_part_only_at_ties() -> None:
    qmodel = imported(nvidia_weights(WIDTHS)).state.apply(small_network()).eval()
    for layer in layer_parity(qmodel, lower(qmodel), small_frame(3)):
        assert layer.unexplained == 0, layer


def test_codes_and_ranges_are_those_of_the_file() -> None:
    weights = nvidia_weights(WIDTHS)
    state = imported(weights).state
    assert state.recipe.name == "nvidia"
    int8 = [name for name, value in state.plan.precision.items() if value == "int8"]
    assert len(int8) == 18 + 7
    assert len(state.plan.range_names) == 18 + 7
    for name in amax_names(weights):
        path, kind = name.removeprefix("backbone.").split("._")[:2]
        ours = our_path(path)
        if ours not in int8:
            continue
        if kind == "input_quantizer":
            assert torch.equal(state.activation_amax(f"{ours}/input"), weights[name])
            continue
        amax = state.weight_amax(ours)
        assert torch.equal(amax, weights[name].flatten())
        scale = scale_from_amax(amax).view(-1, 1, 1, 1, 1)
        stored = state.tensors[f"{ours}.weight"]
        assert stored.dtype == torch.float16
        assert torch.equal(encode(stored, scale), encode(weights[f"backbone.{path}.weight"], scale))
        assert torch.equal(state.tensors[f"{ours}.bias"].float(), weights[f"backbone.{path}.bias"])
    assert len(amax_names(state.carried)) == 50
    assert all(torch.equal(state.carried[name], weights[name]) for name in state.carried)


def test_ranges_that_differ_are_reported_by_reader() -> None:
    weights = nvidia_weights(WIDTHS)
    weights["backbone.conv2.2.conv1._input_quantizer._amax"] = torch.tensor(3.21)
    weights["backbone.conv2.2.quant_add._input_quantizer._amax"] = torch.tensor(4.02)
    same = weights["backbone.conv3.3.conv1._input_quantizer._amax"]
    weights["backbone.conv3.3.quant_add._input_quantizer._amax"] = same.clone()
    notes = imported(weights).notes
    assert notes[0] == "several ranges of 6 tensors, kept as they are (in place):"
    line = "the output of conv2.0 is read by conv2.2.conv1 with 3.21, conv2.2.quant_add with 4.02"
    assert line in notes
    assert "the output of conv1.0 is read by conv1.1.conv1" in notes[1]
    assert not any("conv3.3.conv1" in note for note in notes)
    assert "0 of 146 biases were rounded" in notes[-1]
    assert "conv_input.0, conv1.0.conv1, conv1.0.conv2" in notes[-1]


def as_one_element(weights: dict[str, Tensor]) -> object:
    for name in amax_names(weights):
        weights[name] = weights[name].reshape(-1) if "_input" in name else weights[name]
    return {"meta": {}, "state_dict": weights}


def of_a_trainer(weights: dict[str, Tensor]) -> object:
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": []}
    return {"meta": {"epoch": 3, "iter": 40}, "state_dict": prefixed, "optimizer": optimizer}


def without_counters(weights: dict[str, Tensor]) -> object:
    return {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("form", [as_one_element, of_a_trainer, without_counters])
def test_every_form_of_the_file_gives_one_state(tmp_path, form: Callable[..., object]) -> None:
    wanted = imported(nvidia_weights(WIDTHS)).state
    torch.save(form(nvidia_weights(WIDTHS)), tmp_path / "ptq.pth")
    found = imported(read_torch_file(tmp_path / "ptq.pth")).state
    assert found.plan == wanted.plan
    used = [name for name in wanted.tensors if not name.startswith("carried/")]
    assert all(torch.equal(found.tensors[name], wanted.tensors[name]) for name in used)


AMAX = "backbone.conv2.0._input_quantizer._amax"
WEIGHT_AMAX = "backbone.conv3.2.conv1._weight_quantizer._amax"
ODD = {
    "no input range": (AMAX, None, f"1 missing ({AMAX})"),
    "no weight range": (WEIGHT_AMAX, None, f"1 missing ({WEIGHT_AMAX})"),
    "no bias": ("backbone.extra_conv.0.bias", None, "1 missing (backbone.extra_conv.0.bias)"),
    "no norm": ("backbone.conv_input.1.running_var", None, "conv_input.1.running_var"),
    "an unfused norm": ("backbone.conv2.1.running_var", torch.ones(6), "1 unexpected"),
    "a range of NaN": (AMAX, torch.tensor(math.nan), f"{AMAX}: got a range of nan"),
    "a range of 0": (AMAX, torch.tensor(0.0), f"{AMAX}: got a range of 0"),
    "a range below 0": (WEIGHT_AMAX, -torch.ones(8, 1, 1, 1, 1), f"{WEIGHT_AMAX}: got a range"),
    "several ranges": (AMAX, torch.ones(2), f"{AMAX}: got torch.float32 [2], need 1"),
    "too few channels": (WEIGHT_AMAX, torch.ones(7, 1, 1, 1, 1), "need 8 floating point values"),
    "an integer range": (AMAX, torch.tensor(3), f"{AMAX}: got torch.int64"),
    "another width": ("backbone.conv4.0.bias", torch.ones(9), "conv4.0.bias: got shape [9]"),
    "another layout": (
        "backbone.conv4.0.weight",
        torch.ones(3, 3, 3, 8, 10),
        "conv4.0.weight: got shape [3, 3, 3, 8, 10]",
    ),
    "NaN weights": (
        "backbone.conv4.0.weight",
        torch.full((10, 3, 3, 3, 8), math.nan),
        "conv4.0.weight: 2160 of 2160 values are NaN",
    ),
    "a channel without range": (
        WEIGHT_AMAX,
        torch.ones(8, 1, 1, 1, 1).index_fill(0, torch.tensor([5]), 0.0),
        "got a range of 0 for output channel 5, whose weights are not 0",
    ),
}


@pytest.mark.parametrize("case", list(ODD))
def test_what_is_missing_or_odd_is_named(case) -> None:
    name, value, message = ODD[case]
    weights = nvidia_weights(WIDTHS)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    with pytest.raises(CheckpointError) as caught:
        imported({"state_dict": weights})
    assert str(caught.value).startswith("ptq.pth: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dead_channels_are_kept_with_the_smallest_range_that_can_be_stored() -> None:
    weights = nvidia_weights(WIDTHS)
    weight, amax = weights["backbone.conv3.2.conv1.weight"], weights[WEIGHT_AMAX]
    weight[2], amax[2] = 0.0, 0.0
    weight[3] *= 1e-9
    amax[3] *= 1e-9
    found = imported(weights)
    kept = found.state.weight_amax("backbone.conv3.3.conv1")
    others = [0, 1, 4, 5, 6, 7]
    assert torch.equal(kept[others], amax.flatten()[others])
    assert float(kept[3]) == 127 * 2.0**-23
    assert not found.state.tensors["backbone.conv3.3.conv1.weight"][2:4].any()
    assert found.notes[-1].endswith("were raised, channels: conv3.2.conv1 2")


def test_weights_that_fp16_cannot_hold_are_named() -> None:
    weights = nvidia_weights(WIDTHS)
    weights["backbone.conv2.0.bias"][1] = 1e6
    with pytest.raises(QuantStateError, match=r"ptq\.pth: backbone\.conv2\.0: got a bias .* 1 "):
        imported(weights)


def test_a_state_file_and_a_model_carry_the_file_s_tensors(tmp_path) -> None:
    state = imported(nvidia_weights(WIDTHS)).state
    state.save(tmp_path / "state.safetensors")
    again = QuantState.of(QuantState.load(tmp_path / "state.safetensors").apply(small_network()))
    assert again.plan == state.plan
    assert again.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(again.tensors[name], state.tensors[name]) for name in state.tensors)


def test_a_full_size_checkpoint_becomes_a_detector() -> None:
    config = load_config("centerpoint_voxel0075")
    network = CenterPoint(config)
    dense = {k: v for k, v in network.state_dict().items() if not k.startswith("backbone.")}
    weights = nvidia_weights(dense=dense)
    assert len(amax_names(weights)) == 50
    grid = network.voxel_grid().sparse_shape
    found = import_nvidia_checkpoint({"state_dict": weights}, "ptq.pth", network, grid)
    qmodel = found.state.apply(network)
    for name in ("neck.blocks.0.1.weight", "bbox_head.tasks.5.hm.3.bias"):
        assert torch.equal(qmodel.state_dict()[name], weights[name])
    del weights["bbox_head.tasks.0.hm.3.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \(bbox_head\.tasks\.0\.hm\.3\.bias\)"):
        import_nvidia_checkpoint(weights, "ptq.pth", network, grid)


def test_the_plan_is_that_of_the_whole_detector() -> None:
    network = CenterPoint.from_config("centerpoint_tiny").eval()
    grid = network.voxel_grid().sparse_shape
    coords = torch.tensor([[0, z, 4, 4] for z in range(grid[0])])
    example = SparseTensor.from_coords(torch.ones(grid[0], 5), coords, grid, 1)
    whole = quantization_of(quantize(network, "nvidia", example=example)).require_plan()
    assert plan_backbone(network.backbone, grid, load_recipe("nvidia")) == whole


def test_as_float_weights_it_is_named_for_what_it_is(tmp_path) -> None:
    torch.save({"meta": {}, "state_dict": nvidia_weights(WIDTHS)}, tmp_path / "ptq.pth")
    with pytest.raises(
        CheckpointError, match=r"an NVIDIA ptq.pth/qat.pth: .*--engine fake or int8"
    ):
        load_weights(small_network(), tmp_path / "ptq.pth")


class _Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("harm",)


def test_code_in_it_is_refused_and_never_run(tmp_path, capsys) -> None:
    content = {"state_dict": nvidia_weights(WIDTHS), "meta": _Harm()}
    torch.save(content, tmp_path / "ptq.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="print"):
        read_torch_file(tmp_path / "ptq.pth")
    assert capsys.readouterr().out == ""
