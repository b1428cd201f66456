"""Parity of two executions: every node of the fake-quant model against the lowered engine.

Layer by layer means *given equal inputs*: each fake-quant layer is run on the tensors that the
engine's layer received, so that one flipped code does not feed the next comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from voxelquant.numerics import (
    FP8_E4M3,
    INT8,
    dequantize,
    format_of_codes,
    quantize,
    sqnr_db,
)
from voxelquant.quant.insert import quantization_of
from voxelquant.quant.modes import evaluation_mode
from voxelquant.quant.modules import QuantSparseConvBase
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.sparse_part import ending_after_sparse_part
from voxelquant.quant.topology import FusedNode
from voxelquant.sparse import SparseTensor, sparse_conv

# Unit roundoff of float32: one operation errs by at most this share of its result.
_ROUNDOFF = 2.0**-24
_COMPARED = ("conv", "add")


@dataclass(frozen=True)
class NodeRecord:
    """What one node read and made in one forward, its batch norm and fused ReLU included."""

    inputs: tuple[SparseTensor, ...]
    output: SparseTensor


@dataclass(frozen=True)
class LayerParity:
    """How far two executions of one layer part, given equal inputs.

    Attributes:
        name: node name.
        precision: compute precision.
        output_precision: `int8` or `fp8`: codes are compared; `fp16`: values are.
        elements: number of outputs.
        differing: number of outputs that differ.
        largest: largest difference, in codes (counted along the format's own) or in values.
        unexplained: differing outputs that rounding cannot explain: further apart than one code,
            or with a value before rounding farther from a tie than the derived bound.
        sqnr_db: of the fake-quant output against the engine's.
    """

    name: str
    precision: str
    output_precision: str
    elements: int
    differing: int
    largest: float
    unexplained: int
    sqnr_db: float


@dataclass
class _Capture:
    plan: PrecisionPlan
    records: dict[str, NodeRecord] = field(default_factory=dict)
    owner_of: dict[int, str] = field(default_factory=dict)  # id(features) → node that made them
    alive: list[Tensor] = field(default_factory=list)  # ids stay unique while tensors live

    def record(self, node: FusedNode, operands: Any, output: SparseTensor) -> None:
        inputs = tuple(x for x in operands if isinstance(x, SparseTensor))
        self.records[node.name] = NodeRecord(inputs, output)
        self._own(output.features, node.name)

    def record_absorbed(self, features: Tensor, result: Tensor) -> None:
        """A batch norm or ReLU ran: where it belongs to a node, its result is that node's."""
        name = self.owner_of.get(id(features))
        if name is not None:
            made = self.records[name]
            self.records[name] = NodeRecord(made.inputs, made.output.replace_features(result))
            self._own(result, name)

    def _own(self, features: Tensor, name: str) -> None:
        self.owner_of[id(features)] = name
        self.alive.append(features)


def capture_nodes(model: nn.Module, plan: PrecisionPlan, *arguments: Any) -> dict[str, NodeRecord]:
    """Inputs and output of every convolution and sum in one forward, by node name.

    The forward ends with the sparse part.

    Args:
        model: the float, fake-quant or lowered form of one network.
        plan: its plan.
        arguments: model input.
    """
    capture = _Capture(plan)
    handles = []
    compared = [node for node in plan.graph.nodes if node.kind in _COMPARED]
    for node in compared:

        def hook(m: nn.Module, args: Any, out: Any, node: FusedNode = node) -> None:
            capture.record(node, args, out)

        handles.append(model.get_submodule(node.path).register_forward_hook(hook))
    absorbed = [p for node in plan.graph.nodes for p in (node.batchnorm_path, node.relu_path)]
    modules = {path for path, _ in model.named_modules()}
    for path in modules.intersection(absorbed):

        def absorbed_hook(m: nn.Module, args: Any, out: Any) -> None:
            capture.record_absorbed(args[0], out)

        handles.append(model.get_submodule(path).register_forward_hook(absorbed_hook))

    def all_recorded() -> bool:
        return len(capture.records) == len(compared)

    ending = ending_after_sparse_part(model, plan, all_recorded)
    try:
        with torch.no_grad(), evaluation_mode(model), ending:
            model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return capture.records


def real_values(x: SparseTensor) -> Tensor:
    """Features as float32 values, codes multiplied by their step."""
    if x.scale is None:
        return x.features.to(torch.float32)
    return dequantize(x.features, torch.tensor(x.scale, device=x.features.device))


def layer_parity(qmodel: nn.Module, engine: nn.Module, *arguments: Any) -> list[LayerParity]:
    """Compare every layer of a fake-quant model with the engine lowered from it.

    Args:
        qmodel: calibrated fake-quant model.
        engine: its lowered form.
        arguments: model input.

    Returns:
        One entry for each convolution and sum, in execution order.
    """
    plan = quantization_of(qmodel).require_plan()
    records = capture_nodes(engine, plan, *arguments)
    nodes = [node for node in plan.graph.nodes if node.kind in _COMPARED]
    with torch.no_grad():
        return [_compare_node(qmodel, node, plan, records[node.name]) for node in nodes]


def _compare_node(
    qmodel: nn.Module, node: FusedNode, plan: PrecisionPlan, record: NodeRecord
) -> LayerParity:
    module = qmodel.get_submodule(node.path)
    operands = [SparseTensor(real_values(x), x.sites, coupled=x.coupled) for x in record.inputs]
    fake: Tensor = module(*operands).features  # [m, c] float32
    if node.relu_path is not None:
        fake = torch.relu(fake)
    made = record.output
    step = None if made.scale is None else torch.tensor(made.scale, device=fake.device)
    fmt = format_of_codes(made.features) or INT8
    values = fake if step is None else quantize(fake, step, fmt)
    wanted = real_values(made) if step is None else made.features
    difference = (_positions(values) - _positions(wanted)).abs()  # in codes, or in real values
    differs = difference > 0
    unexplained = differs
    # Sums and fp16 layers do the same operations in both executions: they may not part at all.
    if isinstance(module, QuantSparseConvBase) and module.input_quantizer and bool(differs.any()):
        bound = _rounding_bound(module, operands[0])
        if step is None:
            unexplained = difference > bound + _float16_spacing(wanted)
        else:
            ties = (values.double() + wanted.double()) / 2  # where the codes are neighbours
            unexplained = differs & ~((difference <= 1) & _near_tie(fake, step, ties, bound))
    return LayerParity(
        node.name,
        plan.precision[node.name],
        plan.tensor_precision[node.name],
        fake.numel(),
        int(differs.sum()),
        float(difference.max()) if fake.numel() else 0.0,
        int(unexplained.sum()),
        sqnr_db(wanted, values),
    )


def _rounding_bound(conv: QuantSparseConvBase, x: SparseTensor) -> Tensor:
    """Largest distance between the float32 result of an 8-bit convolution and the engine's.

    Both start from the same codes. The fake-quant convolution rounds two factors, a product and a
    sum for each of `K = k * c_in` terms (Higham 2002, section 3.1), the integer one four times in
    all; a few more units cover this bound's own rounding. On a GPU products are split and sums
    truncated: `sparse/backends/triton/conv.py` derives its `3 * K + 12` units. Of an fp8 engine the
    law asks for float32 sums in whatever order, another `K` roundings.

    Returns:
        `[m, c_out]`.
    """
    assert conv.weight_quantizer is not None
    kernel_map, _, _ = conv.resolve_map(x)
    magnitudes = conv.read_input(x.features).abs()
    weights = conv.weight_quantizer(conv.weight).abs()
    reach = sparse_conv(magnitudes, weights, kernel_map)  # Σ |x| |w|
    if conv.bias is not None:
        reach = reach + conv.bias.abs()
    terms = conv.geometry.taps * conv.in_channels
    fake_quant_units = 3 * terms + 12 if reach.is_cuda else terms
    engine_units = terms if conv.precision.compute == "fp8" else 0
    return reach * ((fake_quant_units + engine_units + 16) * _ROUNDOFF)


def _positions(x: Tensor) -> Tensor:
    """Codes as places in the order of all codes, so that neighbours are 1 apart; values as such."""
    if format_of_codes(x) != FP8_E4M3:
        return x.float()
    bits = x.view(torch.uint8).int()  # sign and magnitude; both zeros have place 0
    return torch.where(bits > 127, 128 - bits, bits).float()


def _near_tie(y: Tensor, step: Tensor, ties: Tensor, bound: Tensor) -> Tensor:
    """Whether `y ÷ step` lies so near to a tie that the bound and the division can flip it."""
    ratio = y.double() / step.double()
    distance = (ratio - ties).abs()
    return distance <= bound.double() / step.double() + 2.0 * _ROUNDOFF * ratio.abs()


def _float16_spacing(values: Tensor) -> Tensor:
    exponent = torch.frexp(values).exponent - 1
    return torch.ldexp(torch.ones_like(values), (exponent - 10).clamp(min=-24))
