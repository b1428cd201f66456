"""fp8 layers: the integer layers' neighbours, whose codes are floats of 8 bits.

Between fp8 layers features are `torch.float8_e4m3fn` codes and `SparseTensor.scale` carries their
step. A product of two codes has 8 bits of mantissa, hence is exact in float32; sums are float32.
The epilogue is that of the integer layers, with float32 accumulators.
"""

from __future__ import annotations

from torch import Tensor

from voxelquant.quant.int8_modules import CodeSparseAdd, CodeSparseConv3d
from voxelquant.sparse import KernelMap, sparse_conv_fp8


class Fp8SparseConv3d(CodeSparseConv3d):
    """Convolution of fp8 codes: e4m3 × e4m3 → float32."""

    def accumulate(self, codes: Tensor, kernel_map: KernelMap) -> Tensor:
        """`[n, c_in]` float8_e4m3fn → `[m, c_out]` float32."""
        return sparse_conv_fp8(codes, self.weight_q, kernel_map)


class Fp8SparseAdd(CodeSparseAdd):
    """Residual sum of two fp8 tensors."""
