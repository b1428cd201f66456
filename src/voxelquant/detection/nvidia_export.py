"""Write a QuantState as a `.pth` that NVIDIA's CUDA-CenterPoint tools read (`ptq.pth`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from voxelquant import __version__
from voxelquant.atomic_file import atomic_path
from voxelquant.detection.config import DetectorConfig, config_to_yaml
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.nvidia_layout import (
    ALWAYS_FP16,
    BACKBONE,
    INPUT_AMAX,
    LAYERS,
    WEIGHT_AMAX,
    NvidiaLayer,
    short_name,
)
from voxelquant.detection.nvidia_values import range_of, read_conv, store_conv
from voxelquant.errors import CheckpointError, QuantStateError
from voxelquant.numerics import INT8
from voxelquant.quant import FusedNode, QuantState
from voxelquant.quant.quantizer import weight_amax
from voxelquant.quant.state_check import check_model_fits
from voxelquant.sparse import SparseConvBase

# conv_input keeps a batch norm in this layout. Ours is folded, so the file gets one that changes
# nothing: in float32, var + 1e-3 is exactly 1, whose root and inverse root are 1.
IDENTITY_VARIANCE = 0.999
# Where a layer computes in fp16 there is no range to write, and none of their tools uses one. A
# step of 1 says by itself that nothing was measured.
UNMEASURED_AMAX = 127.0


def write_nvidia_checkpoint(
    state: QuantState, path: str | Path, config: DetectorConfig
) -> tuple[str, ...]:
    """Write `{meta, state_dict}`; the file appears whole or not at all.

    The config's name and text stand under `meta`, so that a tool which is told neither finds the
    grid. Tensors of a file that the state was imported from are given back as they were, wherever
    they are still what the state holds.

    Args:
        state: a quantized `CenterPoint`.
        path: target.
        config: what the detector was built from.

    Returns:
        What the layout could not say, one sentence each.

    Raises:
        CheckpointError: the layout cannot express the state, or the file cannot be written.
        QuantStateError: the state is not one of this config's detector.
    """
    network = CenterPoint(config)
    weights, notes = nvidia_state_dict(state, network)
    meta = {
        "voxelquant": __version__,
        "config_name": config.name,
        "config": config_to_yaml(config),
    }
    with atomic_path(path, CheckpointError) as temporary:
        torch.save({"meta": meta, "state_dict": weights}, temporary)
    return notes


def nvidia_state_dict(
    state: QuantState, network: nn.Module
) -> tuple[OrderedDict[str, Tensor], tuple[str, ...]]:
    """Tensors in the order of their module tree, and what the layout could not say.

    Raises:
        CheckpointError, QuantStateError: as `write_nvidia_checkpoint`.
    """
    check_model_fits(network, state.plan, state.tensors)
    _check_expressible(state)
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for layer in LAYERS:
        node = state.plan.graph.node(layer.ours)
        tensors = {layer.theirs + INPUT_AMAX: _input_amax(state, layer, node)}
        if layer.kind == "conv":
            tensors |= _conv_tensors(state, layer, node, network)
        weights.update((name, tensors[name]) for name in layer.names)
    dense = (name for name in network.state_dict() if not name.startswith(BACKBONE))
    weights.update((name, _require(state, name)) for name in dense)
    plain = OrderedDict((name, value.detach().clone()) for name, value in weights.items())
    return plain, tuple(_losses(state))


def _check_expressible(state: QuantState) -> None:
    plan = state.plan
    computing = {node.name for node in plan.graph.nodes if node.kind in ("conv", "add")}
    odd = sorted(computing ^ {layer.ours for layer in LAYERS})
    if odd:
        raise CheckpointError(
            f"{odd[0]}: NVIDIA's layout holds the layers of SpMiddleResNetFHD alone; write a "
            "state.safetensors"
        )
    fp8 = [name for name, precision in plan.precision.items() if precision == "fp8"]
    if fp8:
        raise CheckpointError(
            f"got {len(fp8)} fp8 layers ({', '.join(fp8)}), NVIDIA's layout holds int8 and fp16 "
            "alone; quantize with an int8 recipe (reference, nvidia), or write a state.safetensors"
        )
    for layer in LAYERS:
        if plan.precision[layer.ours] != "int8" and layer.ours not in ALWAYS_FP16:
            raise CheckpointError(
                f"{layer.ours}: got an fp16 layer, but NVIDIA's layout has no place to say so and "
                "its tools quantize every layer behind the first block; use a recipe that does "
                "(reference, nvidia)"
            )
    for node in plan.quantized_convs:
        bits = state.recipe.weight_bits(node.path)
        if bits != INT8.bits:
            raise CheckpointError(
                f"{node.path}: got {bits}-bit weights, NVIDIA's tools read 8 bits only; give "
                "this layer 8-bit weights"
            )


def _input_amax(state: QuantState, layer: NvidiaLayer, node: FusedNode) -> Tensor:
    """Their range of what a layer reads; of both operands' ranges the larger."""
    name = layer.theirs + INPUT_AMAX
    kept = state.carried.get(name)
    if state.plan.precision[node.name] != "int8":
        return torch.tensor(UNMEASURED_AMAX) if kept is None else kept
    ranges = [
        state.activation_amax(state.plan.read_with(node, tensor)[-1]) for tensor in node.inputs
    ]
    amax = torch.stack(ranges).amax()
    if kept is not None and torch.equal(range_of({name: kept}, name), amax):
        return kept
    return amax


def _conv_tensors(
    state: QuantState, layer: NvidiaLayer, node: FusedNode, network: nn.Module
) -> Mapping[str, Tensor]:
    kept = state.carried
    if set(layer.names) <= kept.keys() and _still_true(state, layer, node, network):
        return kept
    weight = state.tensors[f"{layer.ours}.weight"].to(torch.float32)
    bias = state.tensors.get(f"{layer.ours}.bias", torch.zeros(weight.shape[0])).to(torch.float32)
    quantized = state.plan.precision[node.name] == "int8"
    amax = state.weight_amax(layer.ours) if quantized else weight_amax(weight, INT8)
    tensors = {
        f"{layer.theirs}.weight": weight,
        layer.theirs + WEIGHT_AMAX: amax.view(-1, 1, 1, 1, 1),
    }
    if layer.norm is None:
        return tensors | {f"{layer.theirs}.bias": bias}
    return tensors | _identity_norm(layer.norm, bias)


def _identity_norm(path: str, bias: Tensor) -> dict[str, Tensor]:
    """State of a batch norm that adds a bias and changes nothing else."""
    return {
        f"{path}.weight": torch.ones_like(bias),
        f"{path}.bias": bias,
        f"{path}.running_mean": torch.zeros_like(bias),
        f"{path}.running_var": torch.full_like(bias, IDENTITY_VARIANCE),
        f"{path}.num_batches_tracked": torch.tensor(0),
    }


def _still_true(state: QuantState, layer: NvidiaLayer, node: FusedNode, network: nn.Module) -> bool:
    """Whether the state's convolution is what the carried tensors are stored as."""
    conv, norm = network.get_submodule(layer.ours), network.get_submodule(str(node.batchnorm_path))
    assert isinstance(conv, SparseConvBase)
    assert isinstance(norm, nn.BatchNorm1d)
    quantized = state.plan.precision[node.name] == "int8"
    stored = store_conv(read_conv(state.carried, layer, conv, norm), layer.ours, int8=quantized)
    same = torch.equal(stored.weight, state.tensors[f"{layer.ours}.weight"])
    same &= torch.equal(stored.bias, state.tensors[f"{layer.ours}.bias"])
    if stored.amax is not None:
        same &= torch.equal(stored.amax, state.weight_amax(layer.ours))
    return same


def _require(state: QuantState, name: str) -> Tensor:
    if name not in state.tensors:
        raise QuantStateError(f"{name}: got a state without it, need one of this config's detector")
    return state.tensors[name]


def _losses(state: QuantState) -> list[str]:
    """What their tools compute otherwise than ours from the file, in words."""
    plan = state.plan
    found = []
    widened = []
    for node in plan.graph.nodes:
        if node.kind == "add" and plan.precision[node.name] == "int8":
            ranges = [
                float(state.activation_amax(plan.read_with(node, t)[-1])) for t in node.inputs
            ]
            if ranges[0] != ranges[1]:
                listed = " and ".join(f"{amax:.4g}" for amax in ranges)
                widened.append(f"{short_name(node.name)} {listed}")
    if widened:
        found.append(
            "a sum has one range for both operands there, the larger was written for "
            f"{len(widened)} sums: {', '.join(widened)}"
        )
    if plan.ranges == "tensor":
        found.append(
            "their convolutions quantize the input in place, so the skip of a block passes two "
            "quantizers there and one here"
        )
    unmeasured = [
        short_name(layer.ours)
        for layer in LAYERS
        if plan.precision[layer.ours] != "int8" and layer.theirs + INPUT_AMAX not in state.carried
    ]
    if unmeasured:
        found.append(
            f"inputs of fp16 layers have no range here, {UNMEASURED_AMAX:g} was written for "
            f"{', '.join(unmeasured)}; their tools switch these quantizers off"
        )
    quantized = [n for n in ALWAYS_FP16 if plan.precision[n] == "int8"]
    if quantized:
        found.append(
            f"{', '.join(short_name(n) for n in quantized)} compute in int8 here, their tools "
            "switch its quantizers off"
        )
    return found
