"""Nodes of the dialect from the plan of a quantized model, its state and a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from voxelquant.errors import ExportError
from voxelquant.export import ir
from voxelquant.export.rulebooks import assign_rulebooks
from voxelquant.numerics import INT8
from voxelquant.quant import GRAPH_INPUT, FusedNode, PrecisionPlan, QuantState
from voxelquant.sparse import SparseGraph, SparseNode, require_convolution


@dataclass
class GraphBuilder:
    """Builds the graph node by node, in the order of the plan.

    Attributes:
        qmodel: the quantized model.
        state: its state: weights, ranges, plan.
        traced: graph of a trace, for grids and numbers of voxels.
        output_bound: largest number of voxels that an engine keeps in a layer.
        nodes: nodes so far.
        names: tensor of the plan → tensor of the file.
        shapes: tensor of the plan → shape of the trace.
        values: initializers so far.
    """

    qmodel: nn.Module
    state: QuantState
    traced: SparseGraph
    output_bound: int
    nodes: list[ir.Node] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, NDArray[np.float16]] = field(default_factory=dict)

    @property
    def plan(self) -> PrecisionPlan:
        """Precisions and the graph of kernels."""
        return self.state.plan

    def build(self) -> ir.Graph:
        """The whole graph.

        Raises:
            ExportError: a node that the dialect cannot express, or too many or no voxels.
        """
        self._refuse_fp8()
        shape = self.traced.input_shape
        self.names[GRAPH_INPUT], self.shapes[GRAPH_INPUT] = "0", shape
        keys = {
            node.path: require_convolution(self.qmodel, node.path).indice_key
            for node in self.plan.graph.convs
        }
        rulebooks = assign_rulebooks(self.plan.graph, keys)
        for node in self.plan.graph.nodes:
            if node.kind == "conv":
                self._add_conv(node, rulebooks.get(node.name, ""))
            elif node.kind == "add":
                self._add_sum(node)
            elif node.kind == "to_dense":
                self._add_scatter(node)
            else:
                raise ExportError(
                    f"{node.path}: got a {node.kind} that belongs to no conv or sum alone, need "
                    "ReLUs that are the only reader of what they rectify; the dialect has no other"
                )
        outputs = tuple(
            ir.TensorInfo(self.names[name], self.shapes[name]) for name in self.plan.graph.outputs
        )
        return ir.Graph(tuple(self.nodes), (ir.TensorInfo("0", shape),), outputs, self.values)

    def _refuse_fp8(self) -> None:
        plan = self.plan
        layers = [node.path for node in plan.graph.nodes if plan.precision[node.name] == "fp8"]
        if layers:
            raise ExportError(
                f"got {len(layers)} fp8 layers ({', '.join(layers)}), libspconv computes in int8 "
                "and fp16 alone; quantize with an int8 recipe (int8, reference), or run this model "
                "with the engine of this package"
            )

    def _append(self, node_type: type[ir.Node], inputs: tuple[str, ...], **fields: Any) -> str:
        """Add a node under the next names of its kind; returns the name of its output."""
        short = {"SparseConvolution": "conv", "ScatterDense": "scatter"}
        word = short.get(node_type.op_type, node_type.op_type.lower())
        index = sum(isinstance(node, node_type) for node in self.nodes)
        output = str(len(self.nodes) + 1)
        self.nodes.append(node_type(name=f"{word}{index}", inputs=inputs, output=output, **fields))
        return output

    def _add_conv(self, node: FusedNode, rulebook: str) -> None:
        conv = require_convolution(self.qmodel, node.path)
        traced = self._traced(node)
        assert node.geometry is not None
        self._check_count(node, traced.output_shape[0])
        index = sum(isinstance(n, ir.SparseConvolution) for n in self.nodes)
        weight, bias = f"spconv{index}.weight", f"spconv{index}.bias"
        self.values[weight] = self._float16(f"{node.path}.weight")
        self.values[bias] = np.zeros(conv.out_channels, np.float16)
        if f"{node.path}.bias" in self.state.tensors:
            self.values[bias] = self._float16(f"{node.path}.bias")
        self.names[node.name] = self._append(
            ir.SparseConvolution,
            (self.names[node.inputs[0]], weight, bias),
            module_path=node.path,
            kernel_size=node.geometry.kernel_size,
            stride=node.geometry.stride,
            padding=node.geometry.effective_padding,
            dilation=node.geometry.dilation,
            subm=node.geometry.subm,
            inverse=node.inverse,
            activation="None" if node.relu_path is None else "ReLU",
            rulebook=rulebook,
            output_bound=self.output_bound,
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            input_spatial_shape=traced.in_spatial_shape,
            output_spatial_shape=traced.out_spatial_shape,
            input_shape=self.shapes[node.inputs[0]],
            output_shape=traced.output_shape,
            **self._precisions(node),
            **self._conv_ranges(node),
        )
        self.shapes[node.name] = traced.output_shape

    def _add_sum(self, node: FusedNode) -> None:
        ranges = {}
        if self.plan.precision[node.name] == ir.INT8:
            amaxes = [self._input_amax(node, tensor) for tensor in node.inputs]
            ranges = dict(
                zip(("input0_dynamic_range", "input1_dynamic_range"), amaxes, strict=True)
            )
        inputs = tuple(self.names[tensor] for tensor in node.inputs)
        output = self._append(
            ir.Add, inputs, module_path=node.path, **self._precisions(node), **ranges
        )
        if node.relu_path is not None:
            # A ReLU module that serves several nodes names none of them.
            shared = node.relu_path in self.plan.graph.shared_relus
            output = self._append(ir.Relu, (output,), module_path="" if shared else node.relu_path)
        self.names[node.name] = output
        self.shapes[node.name] = self._traced(node).output_shape

    def _add_scatter(self, node: FusedNode) -> None:
        traced = self._traced(node)
        grid, folds_height = traced.in_spatial_shape, len(traced.output_shape) == 4
        shape: tuple[int, ...] = (1, self.shapes[node.inputs[0]][1], *grid)
        output = self._append(
            ir.ScatterDense,
            (self.names[node.inputs[0]],),
            module_path="" if folds_height else node.path,
            format="zyx",
            input_spatial_shape=grid,
            output_shape=shape,
        )
        if folds_height:
            shape = (1, shape[1] * shape[2], *shape[3:])
            output = self._append(ir.Reshape, (output,), module_path=node.path, dims=shape)
        self.names[node.name], self.shapes[node.name] = output, shape

    def _traced(self, node: FusedNode) -> SparseNode:
        return next(traced for traced in self.traced.nodes if traced.path == node.path)

    def _check_count(self, node: FusedNode, voxels: int) -> None:
        if voxels == 0:
            raise ExportError(
                f"{node.path}: got no output voxel from the example, need a frame with many voxels"
            )
        if voxels > self.output_bound:
            raise ExportError(
                f"{node.path}: got {voxels} output voxels from the example, output_bound is "
                f"{self.output_bound} and an engine drops the rest; raise output_bound"
            )

    def _precisions(self, node: FusedNode) -> dict[str, Any]:
        for tensor in node.inputs:
            if self.plan.precision[node.name] != ir.INT8 and self.plan.read_with(node, tensor):
                raise ExportError(
                    f"{node.path}: got an fp16 layer that reads {tensor} after it was quantized in "
                    "place, which the dialect cannot say; let this layer compute in int8, or use a "
                    "recipe with ranges: tensor"
                )
        return {
            "precision": self.plan.precision[node.name],
            "output_precision": self.plan.tensor_precision[node.name],
        }

    def _conv_ranges(self, node: FusedNode) -> dict[str, Any]:
        if self.plan.precision[node.name] != ir.INT8:
            return {}
        bits = self.state.recipe.weight_bits(node.path)
        if bits != INT8.bits:
            raise ExportError(
                f"{node.path}: got {bits}-bit weights, the dialect has 8 bits only; give this "
                "layer 8-bit weights"
            )
        return {
            "input_dynamic_range": self._input_amax(node, node.inputs[0]),
            "weight_dynamic_ranges": tuple(self.state.weight_amax(node.path).tolist()),
        }

    def _input_amax(self, node: FusedNode, tensor: str) -> float:
        return float(self.state.activation_amax(self.plan.read_with(node, tensor)[-1]))

    def _float16(self, key: str) -> NDArray[np.float16]:
        tensor = self.state.tensors[key]
        assert tensor.dtype == torch.float16
        array: NDArray[np.float16] = tensor.numpy()
        return array
