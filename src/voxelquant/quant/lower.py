"""Lowering: from a fake-quant model to one of integer, fp8 and fp16 layers."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from voxelquant.errors import ConfigError, GraphError
from voxelquant.quant.feature_sums import QuantFeatureAdd
from voxelquant.quant.fp8_modules import Fp8SparseAdd, Fp8SparseConv3d
from voxelquant.quant.insert import Quantization, detach, quantization_of
from voxelquant.quant.int8_modules import (
    ConvSite,
    Fp16SparseAdd,
    Fp16SparseConv3d,
    Int8SparseAdd,
    Int8SparseConv3d,
    LayerOutput,
    LoweredModule,
    scale_of,
)
from voxelquant.quant.modules import QuantSparseAdd, QuantSparseConvBase
from voxelquant.quant.operand import Operand
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.spconv_modules import QuantSpconvConvolution
from voxelquant.quant.stored_weight import encode_weight, weight_codes
from voxelquant.quant.substitute import substitute_modules
from voxelquant.quant.topology import FusedNode

_log = logging.getLogger(__name__)
BACKENDS = ("auto", "reference")


def lower(qmodel: nn.Module, backend: str = "auto") -> nn.Module:
    """Executed copy of a calibrated fake-quant model, which stays as it is.

    Quantized layers are exchanged for `Int8SparseConv3d`, `Fp8SparseConv3d`, `Fp16SparseConv3d` and
    the sums of the same names, ReLUs that are fused into them for `nn.Identity`; the user's own
    forward keeps running. No quantizer and no float copy of a quantized weight is left.

    Args:
        qmodel: calibrated result of `quantize`, or of `QuantState.apply`.
        backend: `auto` or `reference` (plain torch, every device).

    Returns:
        The engine, in eval mode.

    Raises:
        CalibrationError: a range is missing.
        ConfigError: no such backend.
        GraphError: a layer is spconv's, or computed in the code of a forward.
        QuantStateError: the model is not quantized, or a weight breaks the storage law.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"got backend {backend!r}, need one of {list(BACKENDS)}")
    plan = quantization_of(qmodel).require_plan()
    _refuse_foreign_code(qmodel, plan)
    engine = copy.deepcopy(qmodel)
    quantization = quantization_of(engine)
    lowered: dict[str, nn.Module] = {}
    modules = {path for path, _ in engine.named_modules()}
    for node in plan.graph.nodes:
        module = engine.get_submodule(node.path)
        output = _output_of(node, quantization, plan)
        operands = [_operand_of(node, tensor, quantization, plan) for tensor in node.inputs]
        if isinstance(module, QuantSparseConvBase):
            lowered[node.path] = _lower_conv(module, node, operands[0], output)
        elif isinstance(module, QuantSparseAdd):
            lowered[node.path] = _lower_add(module, node, (operands[0], operands[1]), output)
        # A ReLU in the code of a forward stays: on what is rectified already it changes nothing.
        relu = node.relu_path
        if relu is not None and relu in modules and relu not in plan.graph.shared_relus:
            lowered[relu] = nn.Identity()
    substitute_modules(engine, lowered)
    detach(engine)
    engine.eval()
    _log.info("lowered %d layers to the reference backend", len(plan.graph.nodes))
    return engine


def _refuse_foreign_code(qmodel: nn.Module, plan: PrecisionPlan) -> None:
    for node in plan.graph.nodes:
        module = qmodel.get_submodule(node.path) if node.kind in ("conv", "add") else None
        if isinstance(module, QuantSpconvConvolution):
            what = f"a {module.original_class.__name__} of spconv"
        elif isinstance(module, QuantFeatureAdd):
            what = "a sum in the code of a forward"
        else:
            continue
        raise GraphError(
            f"{node.path}: got {what}, which the integer engine cannot take over; to run this "
            "model in integers, write it with export_libspconv and run the file with FileRunner"
        )


def _output_of(node: FusedNode, quantization: Quantization, plan: PrecisionPlan) -> LayerOutput:
    kinds = {consumer.kind for consumer in plan.graph.consumers(node.name)}
    leaves = node.name in plan.graph.outputs or "to_dense" in kinds
    relu = node.relu_path is not None
    if plan.tensor_precision[node.name] == "fp16":
        return LayerOutput(relu, None, leaves)
    stored = quantization.tensor_quantizers[plan.stored_with(node.name)]
    return LayerOutput(relu, _scale(stored), leaves, stored.spec.fmt)


def _operand_of(
    node: FusedNode, tensor: str, quantization: Quantization, plan: PrecisionPlan
) -> Operand:
    quantizers = [quantization.tensor_quantizers[name] for name in plan.read_with(node, tensor)]
    if not quantizers:
        return Operand(node.path)
    # Only int8 has readers that quantize in place, so all steps of a tensor are of one format.
    fmt = quantizers[-1].spec.fmt
    return Operand(node.path, tuple(_scale(quantizer) for quantizer in quantizers), fmt)


def _lower_conv(
    conv: QuantSparseConvBase, node: FusedNode, operand: Operand, output: LayerOutput
) -> LoweredModule:
    site = ConvSite(node.path, conv.geometry, conv.indice_key, conv.inverse)
    bias = None if conv.bias is None else conv.bias.detach().to(torch.float16)
    if conv.weight_quantizer is None:
        return Fp16SparseConv3d(site, operand, conv.weight.detach().to(torch.float16), bias, output)
    fmt = conv.weight_quantizer.spec.fmt
    amax = conv.weight_quantizer.amax.detach()
    # The codes that a reader of the stored file would find; encode_weight proves them to be ours.
    codes = weight_codes(encode_weight(conv.weight, amax, fmt, node.path), amax, fmt)
    wide_bias = torch.zeros_like(amax) if bias is None else bias.to(torch.float32)
    kind = Fp8SparseConv3d if conv.precision.compute == "fp8" else Int8SparseConv3d
    return kind(site, codes, operand, scale_of(amax, fmt), wide_bias, output)


def _lower_add(
    add: QuantSparseAdd, node: FusedNode, operands: tuple[Operand, Operand], output: LayerOutput
) -> LoweredModule:
    kinds = {"int8": Int8SparseAdd, "fp8": Fp8SparseAdd, "fp16": Fp16SparseAdd}
    return kinds[add.precision.compute](node.path, operands, output)


def _scale(quantizer: TensorQuantizer) -> Tensor:
    return scale_of(quantizer.amax, quantizer.spec.fmt)
