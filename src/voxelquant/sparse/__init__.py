"""Sparse tensors and convolutions: voxels, never cars."""

from voxelquant.sparse.backends.choice import BackendChoice, choose_backend, use_backend
from voxelquant.sparse.conv_geometry import ConvGeometry, Triple
from voxelquant.sparse.convolution import Convolution
from voxelquant.sparse.functional import (
    sparse_conv,
    sparse_conv_fp8,
    sparse_conv_fp16,
    sparse_conv_int8,
)
from voxelquant.sparse.graph import SparseGraph, SparseNode
from voxelquant.sparse.kernel_map import KernelMap
from voxelquant.sparse.modules import (
    SparseAdd,
    SparseConv3d,
    SparseConvBase,
    SparseInverseConv3d,
    SparseModule,
    SparseSequential,
    SparseToDense,
    SubMConv3d,
    apply_module,
    check_same_sites,
    resolve_conv_map,
)
from voxelquant.sparse.neighbour_search import build_kernel_map
from voxelquant.sparse.recognize import (
    BATCHNORMS,
    builds_own_tensors,
    convolution_of,
    is_sparse_tensor,
    require_convolution,
)
from voxelquant.sparse.tensor import ActiveSites, CoupledConv, SparseTensor
from voxelquant.sparse.trace import trace_sparse_graph
from voxelquant.sparse.voxelize import VoxelGrid, VoxelGridSpec, voxelize, voxelize_batch
from voxelquant.sparse.voxelize_dynamic import voxelize_batch_dynamic

__all__ = [
    "BATCHNORMS",
    "ActiveSites",
    "BackendChoice",
    "ConvGeometry",
    "Convolution",
    "CoupledConv",
    "KernelMap",
    "SparseAdd",
    "SparseConv3d",
    "SparseConvBase",
    "SparseGraph",
    "SparseInverseConv3d",
    "SparseModule",
    "SparseNode",
    "SparseSequential",
    "SparseTensor",
    "SparseToDense",
    "SubMConv3d",
    "Triple",
    "VoxelGrid",
    "VoxelGridSpec",
    "apply_module",
    "build_kernel_map",
    "builds_own_tensors",
    "check_same_sites",
    "choose_backend",
    "convolution_of",
    "is_sparse_tensor",
    "require_convolution",
    "resolve_conv_map",
    "sparse_conv",
    "sparse_conv_fp8",
    "sparse_conv_fp16",
    "sparse_conv_int8",
    "trace_sparse_graph",
    "use_backend",
    "voxelize",
    "voxelize_batch",
    "voxelize_batch_dynamic",
]
