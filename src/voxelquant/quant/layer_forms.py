"""Each layer of a network in two forms: as the shared network has it, and changed alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from voxelquant.quant.fold import fold_batchnorm
from voxelquant.quant.insert import attach, insert_layers, quantization_of
from voxelquant.quant.modules import LayerPrecision, QuantSparseAdd, QuantSparseConvBase
from voxelquant.quant.plan import PrecisionPlan
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.recipe import Precision
from voxelquant.quant.replay import ReplayableGraph
from voxelquant.quant.state import QuantState
from voxelquant.quant.state_check import check_model_fits
from voxelquant.quant.topology import FusedNode

Mode = Literal["one", "all-but-one"]


@dataclass(frozen=True)
class LayerForms:
    """A network from which single layers deviate.

    Attributes:
        plan: precisions of the quantized network.
        float: every layer in float: weights folded, every tensor rounded to fp16.
        quantized: every layer as the plan has it.
        shared: the one of both that all variants share.
        changed: of each quantized layer by node name, the form that deviates from `shared`.
    """

    plan: PrecisionPlan
    float: ReplayableGraph
    quantized: ReplayableGraph
    shared: ReplayableGraph
    changed: dict[str, nn.Module]


def with_ranges_of(state: QuantState, model: nn.Module) -> nn.Module:
    """Fake-quant copy of a float model with its own weights and a state's plan and ranges.

    Raises:
        QuantStateError: the model has other layers than the state, or a folded weight is not
            finite in fp16.
    """
    check_model_fits(model, state.plan, state.tensors)
    qmodel = copy.deepcopy(model)
    fold_batchnorm(qmodel, state.plan.graph)
    attach(qmodel, state.recipe)
    insert_layers(qmodel, state.plan)
    state.set_ranges(qmodel)
    return qmodel


def layer_forms(qmodel: nn.Module, mode: Mode = "one") -> LayerForms:
    """Forms of the layers of a calibrated fake-quant model, which they share parameters with.

    In mode `one` a layer alone is quantized: its weight and its input tensor, or both operands of
    a sum, pass their quantizers; every tensor is rounded to fp16, its own input and output too. In
    mode `all-but-one` the layer alone reads its operands in fp16 and keeps its fp16 weight; all
    others, and the types of the tensors between them, are as the plan has them (with `ranges:
    in_place` it still reads what other readers have left behind).

    Neither is a plan that an engine would accept (there a tensor has one type, and a sum in fp16
    drags its neighbours along): the question is what a layer does by itself.
    """
    plan = quantization_of(qmodel).require_plan()
    quantized = ReplayableGraph.of(qmodel, plan.graph)
    in_float = {node.name: _in_float(node, quantized.modules[node.name]) for node in _layers(plan)}
    floats = ReplayableGraph(plan.graph, {**quantized.modules, **in_float}, quantized.relus)
    layers = [node for node in _layers(plan) if plan.precision[node.name] != "fp16"]
    if mode == "one":
        changed = {node.name: _alone(node, quantized.modules[node.name]) for node in layers}
        return LayerForms(plan, floats, quantized, floats, changed)
    changed = {node.name: _left_out(node, quantized.modules[node.name], plan) for node in layers}
    return LayerForms(plan, floats, quantized, quantized, changed)


def _layers(plan: PrecisionPlan) -> list[FusedNode]:
    return [node for node in plan.graph.nodes if node.kind in ("conv", "add")]


def _in_float(node: FusedNode, module: nn.Module) -> nn.Module:
    """The layer with nothing quantized, between fp16 tensors."""
    precision = LayerPrecision("fp16", _fp16_inputs(node), "fp16")
    if isinstance(module, QuantSparseConvBase):
        return type(module)(module, precision, None, None)
    return QuantSparseAdd(precision, None)


def _left_out(node: FusedNode, module: nn.Module, plan: PrecisionPlan) -> nn.Module:
    """The layer with nothing quantized, between the tensors of the plan."""
    precision = LayerPrecision("fp16", _fp16_inputs(node), plan.tensor_precision[node.name])
    if isinstance(module, QuantSparseConvBase):
        return type(module)(module, precision, None, None, _all_of(module.earlier_quantizers))
    assert isinstance(module, QuantSparseAdd)
    earlier = (module.earlier0_quantizers, module.earlier1_quantizers)
    return QuantSparseAdd(precision, None, tuple(_all_of(quantizers) for quantizers in earlier))


def _alone(node: FusedNode, module: nn.Module) -> nn.Module:
    """The layer quantized, between fp16 tensors that nobody else has quantized."""
    assert isinstance(module, (QuantSparseConvBase, QuantSparseAdd))
    precision = LayerPrecision(module.precision.compute, _fp16_inputs(node), "fp16")
    if isinstance(module, QuantSparseConvBase):
        return type(module)(module, precision, module.input_quantizer, module.weight_quantizer)
    assert module.input0_quantizer is not None
    assert module.input1_quantizer is not None
    return QuantSparseAdd(precision, (module.input0_quantizer, module.input1_quantizer))


def _all_of(quantizers: nn.ModuleList) -> tuple[TensorQuantizer, ...]:
    return tuple(q for q in quantizers if isinstance(q, TensorQuantizer))


def _fp16_inputs(node: FusedNode) -> tuple[Precision, ...]:
    fp16: Precision = "fp16"
    return tuple(fp16 for _ in node.inputs)
