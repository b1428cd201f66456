"""What the interpreter cannot show, on the PTX that the kernels compile to; needs no GPU."""

import os
import re
import subprocess
import sys
import tempfile

import pytest

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from voxelquant.sparse.backends.triton.conv_kernels import conv_kernel

arch, dtype, precision = int(sys.argv[1]), sys.argv[2], sys.argv[3]
out = "*i32" if dtype == "*i8" else dtype
types = {
    "features_ptr": dtype, "weight_ptr": dtype, "bias_ptr": "*fp32", "table_ptr": "*i32",
    "out_ptr": out, "n_in": "i32", "n_out": "i32",
}
constants = dict(
    TAPS=27, C_IN=64, C_OUT=64, MIRRORED=False, HAS_BIAS=dtype != "*i8", PRECISION=precision,
    BLOCK_M=128, BLOCK_N=64, BLOCK_C=64, TAPS_PER_STEP=1,
)
names = conv_kernel.arg_names
signature = {name: types.get(name, "constexpr") for name in names}
constexprs = {(names.index(name),): value for name, value in constants.items()}
aligned = {
    (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in types
}
source = ASTSource(conv_kernel, signature, constexprs, aligned)
compiled = triton.compile(
    source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4, "num_stages": 2}
)
print(compiled.asm["ptx"])
"""


def compile_to_ptx(arch: int, dtype: str, precision: str = "tf32x3") -> str:
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, "-c", COMPILE, str(arch), dtype, precision],
            env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    return result.stdout


def products(ptx: str) -> list[str]:
    """Every tensor-core instruction, with the types that it multiplies and adds in."""
    return re.findall(r"(?:wgmma\.mma_async|mma)\.sync\S*", ptx)


@pytest.mark.parametrize("arch", [80, 90])
def test_float32_is_multiplied_in_three_tf32_products(arch: int) -> None:
    split, plain = (products(compile_to_ptx(arch, "*fp32", p)) for p in ("tf32x3", "tf32"))
    assert plain
    assert len(split) == 3 * len(plain)
    assert all(".f32.tf32.tf32" in product for product in split)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "types"),
    [("*fp16", ".f32.f16.f16"), ("*bf16", ".f32.bf16.bf16"), ("*i8", ".s32.s8.s8")],
)
def test_narrow_operands_are_accumulated_wide_on_tensor_cores(
    arch: int, dtype: str, types: str
) -> None:
    found = products(compile_to_ptx(arch, dtype))
    assert found
    assert all(types in product for product in found)
