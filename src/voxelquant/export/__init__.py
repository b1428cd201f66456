"""Exported files: graph, writer, reader, validator and the integer runner.

Making a graph from a quantized model is `voxelquant.export.from_graph`; it stands apart, so that
whatever judges a file can be imported without the quantizers that made it.
"""

from voxelquant.export.defects import Defect
from voxelquant.export.libspconv_reader import read
from voxelquant.export.libspconv_writer import serialize, write
from voxelquant.export.runner import FileRun, FileRunner, NodeOutput
from voxelquant.export.validate import check_file

__all__ = [
    "Defect",
    "FileRun",
    "FileRunner",
    "NodeOutput",
    "check_file",
    "read",
    "serialize",
    "write",
]
