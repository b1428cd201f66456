"""From a quantized model to the graph of a libspconv file, and to the file.

The exporter invents nothing: weights and ranges are those of the `QuantState`, precisions those of
its plan, sites and shapes those of a trace. What the dialect cannot express is an error that names
the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from voxelquant.errors import CalibrationError, ExportError, QuantStateError
from voxelquant.export import ir
from voxelquant.export.defects import Defect, errors_of
from voxelquant.export.graph_builder import GraphBuilder
from voxelquant.export.libspconv_writer import serialize, write
from voxelquant.export.validate import check_file
from voxelquant.quant import QuantState, is_quantized, quantize
from voxelquant.quant.insert import as_arguments
from voxelquant.sparse import (
    SparseTensor,
    trace_sparse_graph,
)

DEFAULT_OUTPUT_BOUND = 200_000


@dataclass(frozen=True)
class Exported:
    """What was written: the file, its graph, and what `check_file` warns of."""

    path: Path
    graph: ir.Graph
    warnings: list[Defect]


def export_libspconv(
    model: nn.Module,
    path: str | Path,
    *,
    example: Any,
    output_bound: int = DEFAULT_OUTPUT_BOUND,
) -> Exported:
    """Write a model as a libspconv ONNX file, validated before it takes its name.

    Args:
        model: a calibrated quantized model, or a float one, which is written in fp16.
        path: file to write.
        example: one model input, as for `quantize`, of a single frame with many voxels; it fixes
            the grid and shows how many voxels each layer makes.
        output_bound: largest number of voxels that an engine keeps in a layer.

    Raises:
        ExportError: the model is not calibrated, computes what the dialect cannot express, or
            exceeds `output_bound` already on the example.
        GraphError: features are computed outside of modules.
    """
    graph = build_graph(model, example, output_bound=output_bound)
    defects = check_file(serialize(graph))
    found = errors_of(defects)
    if found:
        listed = "; ".join(str(defect) for defect in found)
        raise ExportError(f"the model cannot be expressed in a libspconv file: {listed}")
    return Exported(write(graph, path), graph, defects)


def build_graph(
    model: nn.Module, example: Any, *, output_bound: int = DEFAULT_OUTPUT_BOUND
) -> ir.Graph:
    """Graph of a model, as `export_libspconv` writes it.

    Raises:
        ExportError: as there.
    """
    try:
        arguments = as_arguments(example, model)
        if arguments and isinstance(arguments[0], SparseTensor):
            _check_example(arguments[0].batch_size, len(arguments[0].sites))
        qmodel = model if is_quantized(model) else quantize(model, "fp16", example=arguments)
        state = QuantState.of(qmodel)
    except (CalibrationError, QuantStateError) as reason:
        raise ExportError(str(reason)) from reason
    traced = trace_sparse_graph(qmodel, *as_arguments(arguments, model))
    _check_example(traced.batch_size, traced.input_shape[0])
    return GraphBuilder(qmodel, state, traced, output_bound).build()


def _check_example(batch_size: int, voxels: int) -> None:
    if batch_size != 1 or voxels == 0:
        raise ExportError(
            f"got an example of {batch_size} samples and {voxels} voxels, need one frame with "
            "many voxels"
        )
