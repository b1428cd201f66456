"""Validate an exported file: every rule of the dialect, every defect with its node and a mend.

`onnx.checker` refuses these files (their ops have no schema), and NVIDIA's parser crashes or reads
zeros where something is wrong; this is the only check between an exporter and a wrong detection.
"""

from __future__ import annotations

from pathlib import Path

from voxelquant.errors import ExportError
from voxelquant.export.checks.dense import check_dense
from voxelquant.export.checks.geometry import check_geometry
from voxelquant.export.checks.precision import check_precision
from voxelquant.export.checks.rulebooks import check_rulebooks
from voxelquant.export.checks.structure import check_structure
from voxelquant.export.checks.weights import check_weights
from voxelquant.export.defects import Defect, errors_of
from voxelquant.export.flow import trace_flow
from voxelquant.export.libspconv_reader import FileContent, read_content


def check_file(source: str | Path | bytes) -> list[Defect]:
    """All defects of a file, errors first; an empty list for a file without any.

    Args:
        source: path of the file, or its bytes.

    Raises:
        ExportError: the file is missing or is not an ONNX protobuf.
    """
    return check_content(read_content(source))


def check_content(content: FileContent) -> list[Defect]:
    """All defects of a file that was read, errors first.

    Names and nodes come first: while they are wrong, nothing can be said about what flows where.
    A node with an unreadable attribute is named once, for that.
    """
    structure = list(check_structure(content))
    found = [*content.defects, *structure]
    all_nodes_known = len(content.graph.nodes) == len(content.outline)
    if all_nodes_known and not errors_of(structure):
        unreadable = {defect.node for defect in errors_of(list(content.defects))}
        found += [defect for defect in _check_meaning(content) if defect.node not in unreadable]
    return sorted(found, key=lambda defect: defect.severity != "error")


def _check_meaning(content: FileContent) -> list[Defect]:
    graph = content.graph
    flow = trace_flow(graph)
    return [
        *check_geometry(graph, flow),
        *check_rulebooks(graph, flow),
        *check_weights(graph, content.initializer_names),
        *check_precision(graph, flow),
        *check_dense(graph, flow),
    ]


def require_valid(content: FileContent) -> list[Defect]:
    """The warnings of a file.

    Raises:
        ExportError: the file has errors; the message holds the first and their number.
    """
    defects = check_content(content)
    found = errors_of(defects)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ExportError(f"the file cannot be executed: {found[0]}{more}")
    return defects
