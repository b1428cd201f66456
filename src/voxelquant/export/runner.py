"""Execute an exported file, from its bytes alone: what any engine must compute from it.

NVIDIA's engine is closed. This runner is its readable counterpart: int8 and fp16 nodes by the law
of numbers, on the same sparse functions as the integer engine, so that the two are equal bit for
bit on one device. It knows nothing of the model or of the quantizers that the file came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from voxelquant.errors import ExportError, GeometryError
from voxelquant.export.defects import Defect
from voxelquant.export.flow import conv_channels
from voxelquant.export.ir import (
    INT8,
    Add,
    Graph,
    Node,
    Relu,
    Reshape,
    ScatterDense,
    SparseConvolution,
    Transpose,
)
from voxelquant.export.layers import AddLayer, ConvLayer, FileScales, Value
from voxelquant.export.libspconv_reader import read_content
from voxelquant.export.validate import require_valid
from voxelquant.numerics import dequantize
from voxelquant.sparse import CoupledConv, SparseTensor, Triple


@dataclass(frozen=True)
class NodeOutput:
    """What one node produced.

    Attributes:
        node: node name.
        module_path: module of the exported model, empty where the file does not say.
        features: `[m, c]` int8 codes or float16 values, or a dense float16 tensor.
        scale: step of the codes, `real ≈ scale * code`; None for float16.
        coords_bzyx: `[m, 4]` int32; None for a dense tensor.
    """

    node: str
    module_path: str
    features: Tensor
    scale: float | None
    coords_bzyx: Tensor | None

    @property
    def values(self) -> Tensor:
        """Real values, float32."""
        if self.scale is None:
            return self.features.to(torch.float32)
        return dequantize(self.features, torch.tensor(self.scale, device=self.features.device))


@dataclass(frozen=True)
class FileRun:
    """One execution.

    Attributes:
        nodes: output of every node by node name, in execution order. An Add and the Relu folded
            into it have one output.
        outputs: the graph outputs by tensor name.
    """

    nodes: dict[str, NodeOutput]
    outputs: dict[str, NodeOutput]

    @property
    def by_module(self) -> dict[str, NodeOutput]:
        """Output of every node that names its module, by module path."""
        return {out.module_path: out for out in self.nodes.values() if out.module_path}


@dataclass
class _State:
    values: dict[str, Value]
    coupled: dict[str, CoupledConv] = field(default_factory=dict)  # by rulebook


class FileRunner:
    """Executes a libspconv ONNX file on one device.

    Args:
        source: path of the file, or its bytes.
        device: where to compute; inputs must lie there.

    Raises:
        ExportError: the file is unreadable or has errors; `check_file` lists all of them.

    Attributes:
        graph: the graph of the file.
        warnings: what `check_file` warns of, conflicting ranges among them. Where consumers of a
            tensor declare different ranges, each quantizes in turn what the one before it left.
    """

    def __init__(self, source: str | Path | bytes, device: str | torch.device = "cpu") -> None:
        content = read_content(source)
        self.warnings: list[Defect] = require_valid(content)
        self.graph: Graph = content.graph
        self.device = torch.device(device)
        self._scales = FileScales.of(self.graph, self.device)
        self._convs = {
            conv.name: ConvLayer.build(conv, self.graph, self._scales, self.device)
            for conv in self.graph.convs
        }
        self._channels = _input_channels(self.graph)
        scatters = [node for node in self.graph.nodes if isinstance(node, ScatterDense)]
        self._reversed = bool(scatters) and scatters[0].format == "xyz"
        for node in scatters:
            if node.output_layout not in (None, "NCHW"):
                raise ExportError(
                    f"{node.name}: got output_layout {node.output_layout!r}, the runner computes "
                    "NCHW only"
                )

    @torch.no_grad()
    def __call__(self, features: Tensor, coords_bzyx: Tensor, spatial_shape: Triple) -> FileRun:
        """Run one frame.

        Args:
            features: `[n, c_in]` float16 or float32 (rounded to float16), finite; n may be 0.
            coords_bzyx: `[n, 4]` integers (batch 0, z, y, x), unique, inside the grid.
            spatial_shape: grid (z, y, x).

        Raises:
            GeometryError: the frame does not fit the file or the grid.
            ExportError: a node makes more voxels than its `output_bound`.
        """
        self._check_frame(features, coords_bzyx)
        if self._reversed:
            coords_bzyx = coords_bzyx[:, [0, 3, 2, 1]]
            spatial_shape = (spatial_shape[2], spatial_shape[1], spatial_shape[0])
        x = SparseTensor.from_coords(features.to(torch.float16), coords_bzyx, spatial_shape, 1)
        state = _State({self.graph.inputs[0].name: Value(x.features, x.sites)})
        nodes: dict[str, NodeOutput] = {}
        for node in self.graph.nodes:
            value = self._execute(node, state)
            state.values[node.output] = value
            nodes[node.name] = self._node_output(node, value)
        made_by = {node.output: node.name for node in self.graph.nodes}
        outputs = {info.name: nodes[made_by[info.name]] for info in self.graph.outputs}
        return FileRun(nodes, outputs)

    def _check_frame(self, features: Tensor, coords_bzyx: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self._channels:
            raise GeometryError(
                f"got features {list(features.shape)}, the file needs [n, {self._channels}]"
            )
        if coords_bzyx.shape != (len(features), 4) or coords_bzyx.is_floating_point():
            raise GeometryError(
                f"got coordinates {list(coords_bzyx.shape)} of {coords_bzyx.dtype}, need "
                f"[{len(features)}, 4] integers"
            )
        if features.device != coords_bzyx.device or features.device.type != self.device.type:
            raise GeometryError(
                f"got features on {features.device} and coordinates on {coords_bzyx.device}, "
                f"need both on {self.device}"
            )
        if not bool(torch.isfinite(features.to(torch.float16)).all()):
            raise GeometryError(
                "got features that are NaN or beyond float16 (65504), need finite values"
            )

    def _execute(self, node: Node, state: _State) -> Value:
        values = [state.values[name] for name in node.inputs if name in state.values]
        if isinstance(node, SparseConvolution):
            return self._convolve(self._convs[node.name], values[0], state)
        if isinstance(node, Add):
            return self._add(node, values)
        if isinstance(node, Relu):
            # After an Add this is the value that the folded sum already holds, and relu keeps it.
            return Value(torch.relu(values[0].features), values[0].sites, values[0].scale)
        if isinstance(node, ScatterDense):
            return _scatter(node, values[0])
        if isinstance(node, Reshape):
            return Value(values[0].features.reshape(node.dims), None)
        assert isinstance(node, Transpose)
        return Value(values[0].features.permute(node.dims), None)

    def _convolve(self, layer: ConvLayer, x: Value, state: _State) -> Value:
        node = layer.node
        assert x.sites is not None
        if node.inverse:
            link = state.coupled[node.rulebook]
            kernel_map, sites = link.kernel_map.transposed(), link.in_sites
        else:
            kernel_map, sites = x.sites.kernel_map(layer.geometry)
            if node.rulebook and not node.subm:
                state.coupled[node.rulebook] = CoupledConv(kernel_map, x.sites, sites)
        if len(sites) > node.output_bound:
            raise ExportError(
                f"{node.name}: got {len(sites)} output voxels, output_bound is "
                f"{node.output_bound} and an engine drops the rest; export with a larger bound"
            )
        return Value(layer(x.features, kernel_map), sites, layer.out_scale)

    def _add(self, node: Add, operands: list[Value]) -> Value:
        # A sum of a tensor with itself lists one name twice, and both were looked up.
        a, b = operands
        relu = [n for n in self.graph.consumers(node.output) if isinstance(n, Relu)]
        final = relu[0].output if relu else node.output
        out = self._scales.stored[final] if node.output_precision == INT8 else None
        read = self._scales.read
        steps = (read[node.name, 0], read[node.name, 1]) if node.precision == INT8 else None
        return Value(AddLayer(bool(relu), steps, out)(a.features, b.features), a.sites, out)

    def _node_output(self, node: Node, value: Value) -> NodeOutput:
        coords = None if value.sites is None else value.sites.coords_bzyx
        if coords is not None and self._reversed:
            coords = coords[:, [0, 3, 2, 1]]
        scale = None if value.scale is None else float(value.scale)
        return NodeOutput(node.name, node.module_path, value.features, scale, coords)


def _input_channels(graph: Graph) -> int:
    name = graph.inputs[0].name
    first = next((conv for conv in graph.convs if conv.inputs[0] == name), None)
    return conv_channels(first, graph)[0] if first else graph.inputs[0].shape[-1]


def _scatter(node: ScatterDense, x: Value) -> Value:
    assert x.sites is not None
    if x.sites.spatial_shape != node.input_spatial_shape:
        raise GeometryError(
            f"{node.name}: got a frame that ends on grid {list(x.sites.spatial_shape)}, the file "
            f"was exported for {list(node.input_spatial_shape)}; run it on its own input grid"
        )
    return Value(SparseTensor(x.features, x.sites).dense(), None)
