"""From an NVIDIA `ptq.pth` or `qat.pth` to a QuantState, its separate ranges kept and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.checkpoint import checked_tensor, some_names
from voxelquant.detection.checkpoint_files import find_state_dict
from voxelquant.detection.checkpoint_layout import det3d_names
from voxelquant.detection.nvidia_layout import (
    BACKBONE,
    INPUT_AMAX,
    LAYERS,
    NvidiaLayer,
    short_name,
)
from voxelquant.detection.nvidia_values import (
    StoredConv,
    carried_values,
    range_of,
    read_conv,
    store_conv,
)
from voxelquant.errors import CheckpointError, QuantStateError
from voxelquant.plural import counted
from voxelquant.quant import PrecisionPlan, QuantState, Recipe, load_recipe, make_plan
from voxelquant.quant.insert import trace_fused_graph
from voxelquant.quant.state import ACTIVATION_AMAX, CARRIED, WEIGHT_AMAX
from voxelquant.sparse import SparseConvBase, SparseTensor, Triple

RECIPE = "nvidia"
_COUNTER = "num_batches_tracked"
DENSE_PARTS = ("neck.", "bbox_head.")


class BackboneModel(nn.Module):
    """The sparse backbone under the name that it has in the detector, without a dense part."""

    def __init__(self, backbone: SpMiddleResNetFHD) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: SparseTensor) -> Tensor:
        """Sparse voxels → bird's-eye-view map."""
        dense: Tensor = self.backbone(x)
        return dense


@dataclass(frozen=True)
class NvidiaImport:
    """A checkpoint as a state, and what its reader should know.

    Attributes:
        state: weights, ranges, and the plan of the `nvidia` recipe.
        notes: ranges that differ between readers of one tensor; what the storage law moved.
    """

    state: QuantState
    notes: tuple[str, ...]


def import_nvidia_checkpoint(
    content: object, path: str | Path, network: nn.Module, sparse_shape: Triple
) -> NvidiaImport:
    """A state from the content of a checkpoint file, strictly.

    Args:
        content: what `read_torch_file` found: `{meta, state_dict, ...}` or a bare state dict.
        path: the file, for messages.
        network: a float `CenterPoint`, or a `BackboneModel`, which leaves neck and head aside.
        sparse_shape: grid (z, y, x) of the sparse tensors.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or unusable.
        QuantStateError: fp16 cannot hold a value; layer and channel named.
    """
    stored = det3d_names(find_state_dict(content, Path(path)))
    backbone = network.get_submodule("backbone")
    assert isinstance(backbone, SpMiddleResNetFHD)
    expected = network.state_dict()
    if not any(name.startswith(DENSE_PARTS) for name in expected):
        stored = {k: v for k, v in stored.items() if not k.startswith(DENSE_PARTS)}
    dense = {name: value for name, value in expected.items() if not name.startswith(BACKBONE)}
    recipe = load_recipe(RECIPE)
    plan = plan_backbone(backbone, sparse_shape, recipe)
    try:
        _check_names(stored, dense)
        tensors = {
            name: checked_tensor(name, stored.get(name), like) for name, like in dense.items()
        }
        convs = _store_convs(stored, network, plan)
        ranges = _activation_ranges(stored, plan)
    except (CheckpointError, QuantStateError) as error:
        raise type(error)(f"{path}: {error}") from None
    tensors |= _state_tensors(convs, ranges)
    for layer in LAYERS:
        tensors |= {CARRIED + k: v for k, v in carried_values(stored, layer).items()}
    notes = (*_range_notes(plan, ranges), *_storage_notes(stored, convs))
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    state = QuantState(tensors, recipe, plan, {"source": str(path), "notes": list(notes)})
    return NvidiaImport(state, notes)


def plan_backbone(
    backbone: SpMiddleResNetFHD, sparse_shape: Triple, recipe: Recipe
) -> PrecisionPlan:
    """Plan of the detector's sparse part; a column of voxels reaches every layer."""
    depth = sparse_shape[0]
    coords = torch.zeros((depth, 4), dtype=torch.int32)
    coords[:, 1] = torch.arange(depth)
    features = torch.zeros((depth, backbone.conv_input[0].in_channels))  # type: ignore[arg-type]
    example = SparseTensor.from_coords(features, coords, sparse_shape, 1)
    return make_plan(trace_fused_graph(BackboneModel(backbone), (example,)), recipe)


def _check_names(stored: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> None:
    wanted = {*dense, *(name for layer in LAYERS for name in layer.names)}
    missing = [n for n in sorted(wanted - stored.keys()) if not n.endswith(_COUNTER)]
    unexpected = sorted(stored.keys() - wanted)
    if missing or unexpected:
        raise CheckpointError(
            f"an NVIDIA quantized checkpoint of another form: {some_names(missing, 'missing')}, "
            f"{some_names(unexpected, 'unexpected')}; check the config, and that batch norms were "
            "fused and ranges calibrated before it was saved"
        )


def _store_convs(
    stored: Mapping[str, Tensor], network: nn.Module, plan: PrecisionPlan
) -> dict[str, StoredConv]:
    found = {}
    for layer in LAYERS:
        if layer.kind == "conv":
            int8 = plan.precision[layer.ours] == "int8"
            values = read_conv(stored, layer, *_modules_of(network, layer, plan))
            found[layer.ours] = store_conv(values, layer.ours, int8=int8)
    return found


def _modules_of(
    network: nn.Module, layer: NvidiaLayer, plan: PrecisionPlan
) -> tuple[SparseConvBase, nn.BatchNorm1d]:
    conv = network.get_submodule(layer.ours)
    norm = network.get_submodule(str(plan.graph.node(layer.ours).batchnorm_path))
    assert isinstance(conv, SparseConvBase)
    assert isinstance(norm, nn.BatchNorm1d)
    return conv, norm


def _activation_ranges(stored: Mapping[str, Tensor], plan: PrecisionPlan) -> dict[str, Tensor]:
    """Every input range is checked; those of int8 layers are found again by the plan's names."""
    found = {}
    for layer in LAYERS:
        amax = range_of(stored, layer.theirs + INPUT_AMAX)
        if plan.precision[layer.ours] == "int8":
            node = plan.graph.node(layer.ours)
            found[plan.read_with(node, node.inputs[0])[-1]] = amax
    return found


def _state_tensors(
    convs: Mapping[str, StoredConv], ranges: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    tensors = {ACTIVATION_AMAX + name: amax for name, amax in ranges.items()}
    for ours, conv in convs.items():
        tensors |= {f"{ours}.weight": conv.weight, f"{ours}.bias": conv.bias}
        if conv.amax is not None:
            tensors[WEIGHT_AMAX + ours] = conv.amax
    return tensors


def _range_notes(plan: PrecisionPlan, ranges: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that its readers quantize with different ranges."""
    notes = []
    for tensor in plan.quantized_tensors:
        names = {
            short_name(reader.name): plan.read_with(reader, tensor)[-1]
            for reader in plan.graph.consumers(tensor)
            if plan.precision[reader.name] == "int8"
        }
        values = {name: float(ranges[key]) for name, key in names.items()}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{reader} with {amax:.4g}" for reader, amax in values.items())
            maker = short_name(tensor).removesuffix(".quant_add")
            notes.append(f"the output of {maker} is read by {said}")
    if notes:
        tensors = counted(len(notes), "tensor")
        notes.insert(0, f"several ranges of {tensors}, kept as they are (in place):")
    return notes


def _storage_notes(stored: Mapping[str, Tensor], convs: Mapping[str, StoredConv]) -> list[str]:
    raised = {short_name(ours): conv.raised for ours, conv in convs.items() if conv.raised}
    moved = 0
    biases = 0
    for layer in LAYERS:
        if layer.kind == "conv" and layer.norm is None:
            bias = stored[f"{layer.theirs}.bias"]
            biases += bias.numel()
            moved += int((convs[layer.ours].bias.to(bias.dtype) != bias).sum())
    fp16 = [short_name(ours) for ours, conv in convs.items() if conv.amax is None]
    notes = [
        f"stored in fp16 as the engines read them: {moved} of {biases} biases were rounded, and "
        f"the weights of {', '.join(fp16)}; the int8 codes are those of the file's weights"
    ]
    if raised:
        listed = ", ".join(f"{name} {count}" for name, count in raised.items())
        notes.append(
            f"weight ranges below what fp16 can hold the codes of were raised, channels: {listed}"
        )
    return notes
