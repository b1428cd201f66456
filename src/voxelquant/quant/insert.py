"""Insertion: a copy of the model with quantized layers, tied by the tensors they read."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from voxelquant.errors import CalibrationError, GraphError, QuantStateError
from voxelquant.quant.feature_sums import QuantFeatureAdd, attach_sums
from voxelquant.quant.fold import fold_batchnorm
from voxelquant.quant.modes import evaluation_mode
from voxelquant.quant.modules import (
    LayerPrecision,
    QuantSparseAdd,
    QuantSparseConv3d,
    QuantSparseConvBase,
    QuantSparseInverseConv3d,
    QuantSubMConv3d,
)
from voxelquant.quant.plan import PrecisionPlan, make_plan, range_owner
from voxelquant.quant.quantizer import TensorQuantizer
from voxelquant.quant.recipe import Recipe, load_recipe
from voxelquant.quant.spconv_modules import quantize_in_place
from voxelquant.quant.substitute import substitute_modules
from voxelquant.quant.topology import FusedGraph, FusedNode, fuse_graph
from voxelquant.sparse import (
    SparseConvBase,
    SparseInverseConv3d,
    SparseTensor,
    SubMConv3d,
    builds_own_tensors,
    trace_sparse_graph,
)

_log = logging.getLogger(__name__)
_ATTRIBUTE = "voxelquant_quantization"


@dataclass
class Quantization:
    """What a quantized model knows of itself.

    Attributes:
        recipe: the policy.
        plan: resolved precisions; None until an example frame was traced.
        tensor_quantizers: tensor name → the one quantizer that all its consumers share; by range
            name of the plan where each consumer has its own.
        carried: tensors that a state carries for writers of another format; see `QuantState`.
    """

    recipe: Recipe
    plan: PrecisionPlan | None = None
    tensor_quantizers: dict[str, TensorQuantizer] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict)

    def require_plan(self) -> PrecisionPlan:
        """The plan.

        Raises:
            CalibrationError: no frame was traced yet.
        """
        if self.plan is None:
            raise CalibrationError(
                "got a quantized model that has not seen a frame, need its graph; run "
                "calibrate(qmodel, frames), or quantize(model, recipe, example=frame)"
            )
        return self.plan


def quantize(
    model: nn.Module, recipe: str | Recipe = "int8", example: Any | None = None
) -> nn.Module:
    """Fake-quant copy of a model built of sparse convolutions; the model itself stays as it is.

    Args:
        model: any module whose forward takes a `SparseTensor` first, or any built on spconv.
        recipe: bundled name, YAML file, or a Recipe.
        example: one model input: a SparseTensor, or the tuple of arguments that begins with one;
            of a model built on spconv, whatever its forward takes, in a tuple if it takes several
            arguments. With it batch norms are folded and quantizers tied at once; without it, by
            the first calibration frame.

    Returns:
        The copy. It runs after `calibrate`.

    Raises:
        ConfigError: the recipe is malformed or does not fit the model.
        GraphError: the model computes something that the sparse graph cannot express.
        QuantStateError: a folded weight is not finite in fp16.
    """
    if is_quantized(model):
        raise GraphError("got a model that is quantized already, need the float model")
    qmodel = copy.deepcopy(model)
    attach(qmodel, load_recipe(recipe))
    if example is not None:
        trace_and_insert(qmodel, as_arguments(example, qmodel))
    return qmodel


def attach(model: nn.Module, recipe: Recipe) -> None:
    """Mark a model as quantized by a recipe; it refuses to run before layers are inserted."""
    setattr(model, _ATTRIBUTE, Quantization(recipe))
    model.register_forward_pre_hook(_refuse_untraced)


def detach(model: nn.Module) -> None:
    """Take the mark off again; the model then runs unconditionally."""
    delattr(model, _ATTRIBUTE)


def is_quantized(model: nn.Module) -> bool:
    """Whether the model came out of `quantize` or `QuantState.apply`."""
    return isinstance(getattr(model, _ATTRIBUTE, None), Quantization)


def quantization_of(model: nn.Module) -> Quantization:
    """Recipe, plan and tensor quantizers of a quantized model.

    Raises:
        QuantStateError: the model is not quantized.
    """
    quantization = getattr(model, _ATTRIBUTE, None)
    if not isinstance(quantization, Quantization):
        raise QuantStateError(
            f"got a {type(model).__name__} that is not quantized, need the result of quantize() or "
            "QuantState.apply()"
        )
    return quantization


def as_arguments(frame: Any, model: nn.Module) -> tuple[Any, ...]:
    """Positional arguments of the model from a frame: a SparseTensor, or a tuple that begins so.

    A model that makes its sparse tensors itself takes what it takes. Dictionaries are copied,
    since some forwards add their results to them.

    Raises:
        CalibrationError: it is neither.
    """
    arguments = frame if isinstance(frame, tuple) else (frame,)
    if builds_own_tensors(model):
        return tuple(dict(x) if type(x) is dict else x for x in arguments)
    if not arguments or not isinstance(arguments[0], SparseTensor):
        got = type(arguments[0]).__name__ if arguments else "an empty tuple"
        raise CalibrationError(
            f"got a frame of {got}, need a SparseTensor, or a tuple of arguments that begins with "
            "one"
        )
    return arguments


def trace_and_insert(qmodel: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Trace a frame through a pending model, fold, plan and put quantized layers in, in place."""
    quantization = quantization_of(qmodel)
    graph = trace_fused_graph(qmodel, arguments)
    plan = make_plan(graph, quantization.recipe)
    fold_batchnorm(qmodel, graph)
    insert_layers(qmodel, plan)
    for note in plan.notes:
        _log.info("%s", note)


def trace_fused_graph(model: nn.Module, arguments: tuple[Any, ...]) -> FusedGraph:
    """Graph of kernels and tensors of one forward."""
    quantization = getattr(model, _ATTRIBUTE, None)
    # Tracing has to pass the hook that refuses forwards before insertion.
    setattr(model, _ATTRIBUTE, None)
    try:
        with evaluation_mode(model), _count_calls(model) as calls:
            graph = trace_sparse_graph(model, *arguments)
    finally:
        setattr(model, _ATTRIBUTE, quantization)
    return fuse_graph(graph, calls)


def insert_layers(model: nn.Module, plan: PrecisionPlan) -> None:
    """Exchange the layers of a folded model for quantized ones, uncalibrated, in place."""
    quantization = quantization_of(model)
    recipe = quantization.recipe
    device = next(model.parameters()).device
    quantizers = {
        name: TensorQuantizer(recipe.activation_spec(range_owner(name), read), name).to(device)
        for name, read in plan.range_precisions.items()
    }
    replacements: dict[str, nn.Module] = {}
    sums_in_forwards: dict[str, QuantFeatureAdd] = {}
    modules = dict(model.named_modules())
    for node in plan.graph.nodes:
        if node.kind == "conv":
            _quantize_conv(modules[node.path], node, plan, quantizers, recipe, replacements)
        elif node.kind == "add":
            layer = _quantized_add(node, plan, quantizers, in_a_forward=node.path not in modules)
            if isinstance(layer, QuantFeatureAdd):
                sums_in_forwards[node.path] = layer
            else:
                replacements[node.path] = layer
    substitute_modules(model, replacements)
    attach_sums(model, sums_in_forwards)
    quantization.plan = plan
    quantization.tensor_quantizers = quantizers


def layer_precision(plan: PrecisionPlan, node: FusedNode) -> LayerPrecision:
    """Precisions of one node."""
    inputs = tuple(plan.tensor_precision[name] for name in node.inputs)
    return LayerPrecision(plan.precision[node.name], inputs, plan.tensor_precision[node.name])


def _quantize_conv(
    conv: nn.Module,
    node: FusedNode,
    plan: PrecisionPlan,
    quantizers: dict[str, TensorQuantizer],
    recipe: Recipe,
    replacements: dict[str, nn.Module],
) -> None:
    """Put a quantized convolution among the replacements, or make one of spconv in place."""
    precision = layer_precision(plan, node)
    own, earlier = _operand_quantizers(node, node.inputs[0], plan, quantizers)
    weight_quantizer = None
    if own is not None:
        spec, weight = recipe.weight_spec(node.path, precision.compute), next(conv.parameters())
        weight_quantizer = TensorQuantizer(spec, f"{node.path}.weight", weight.shape[0])
        weight_quantizer.to(weight.device)
    if isinstance(conv, SparseConvBase):
        kind = _class_of_quantized(conv)
        replacements[node.path] = kind(conv, precision, own, weight_quantizer, earlier)
    else:
        quantize_in_place(conv, precision, own, weight_quantizer, earlier)


def _class_of_quantized(conv: SparseConvBase) -> type[QuantSparseConvBase]:
    if isinstance(conv, SubMConv3d):
        return QuantSubMConv3d
    return QuantSparseInverseConv3d if isinstance(conv, SparseInverseConv3d) else QuantSparseConv3d


def _quantized_add(
    node: FusedNode,
    plan: PrecisionPlan,
    quantizers: dict[str, TensorQuantizer],
    *,
    in_a_forward: bool,
) -> QuantSparseAdd:
    (a, before_a), (b, before_b) = (
        _operand_quantizers(node, tensor, plan, quantizers) for tensor in node.inputs
    )
    own = None if a is None or b is None else (a, b)
    kind = QuantFeatureAdd if in_a_forward else QuantSparseAdd
    return kind(layer_precision(plan, node), own, (before_a, before_b))


def _operand_quantizers(
    node: FusedNode, tensor: str, plan: PrecisionPlan, quantizers: dict[str, TensorQuantizer]
) -> tuple[TensorQuantizer | None, tuple[TensorQuantizer, ...]]:
    """A node's own quantizer of one operand (None in fp16), and those of readers before it."""
    chain = tuple(quantizers[name] for name in plan.read_with(node, tensor))
    return (None, chain) if plan.precision[node.name] == "fp16" else (chain[-1], chain[:-1])


def _refuse_untraced(model: nn.Module, arguments: Any) -> None:
    quantization = getattr(model, _ATTRIBUTE, None)
    if isinstance(quantization, Quantization):
        quantization.require_plan()


@contextmanager
def _count_calls(model: nn.Module) -> Iterator[Counter[str]]:
    """Count all calls of ReLUs and batch norms, those outside of the sparse graph too."""
    calls: Counter[str] = Counter()
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.ReLU, nn.BatchNorm1d)):

            def hook(m: nn.Module, args: Any, out: Any, path: str = path) -> None:
                calls[path] += 1

            handles.append(module.register_forward_hook(hook))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
