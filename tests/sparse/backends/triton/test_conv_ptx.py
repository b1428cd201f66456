"""What the interpreter cannot show, on the PTX that the kernels compile to; needs no GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ARCHS = (80, 90)
# Types of the product, and of what a tensor core multiplies and adds for it.
NARROW = {"*fp16": ".f32.f16.f16", "*bf16": ".f32.bf16.bf16", "*i8": ".s32.s8.s8"}
# A process of its own: the kernels of this one may be the interpreter's.
COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from voxelquant.sparse.backends.triton.conv_kernels import conv_kernel

def compile_to_ptx(arch, dtype, precision, turned=False):
    types = {
        "features_ptr": dtype, "weight_ptr": dtype, "bias_ptr": "*fp32", "table_ptr": "*i32",
        "out_ptr": "*i32" if dtype == "*i8" else dtype, "n_in": "i32", "n_out": "i32",
    }
    constants = dict(
        TAPS=27, C_IN=64, C_OUT=64, TURNED=turned, MIRRORED=turned, HAS_BIAS=dtype != "*i8",
        PRECISION=precision, BLOCK_M=128, BLOCK_N=64, BLOCK_C=64, TAPS_PER_STEP=1,
    )
    names = conv_kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in types}
    source = ASTSource(conv_kernel, signature, constexprs, aligned)
    options = {"num_warps": 4, "num_stages": 2}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]

print(json.dumps({"/".join(map(str, v)): compile_to_ptx(*v) for v in json.loads(sys.argv[1])}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PTX by `arch/dtype/precision`, of a turned weight by `arch/dtype/precision/True`."""
    cache: Path = tmp_path_factory.mktemp("triton")
    kinds = [("*fp32", "tf32x3"), ("*fp32", "tf32"), *((dtype, "tf32x3") for dtype in NARROW)]
    kinds += [("*fp16", "tf32x3", True)]
    variants = [(arch, *kind) for arch in ARCHS for kind in kinds]
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(variants)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def products(ptx: str) -> list[str]:
    """Every tensor-core instruction, with the types that it multiplies and adds in."""
    return re.findall(r"(?:wgmma\.mma_async|mma)\.sync\S*", ptx)


@pytest.mark.parametrize("arch", ARCHS)
def test_float32_is_multiplied_in_three_tf32_products(compiled: dict[str, str], arch: int) -> None:
    split, plain = (products(compiled[f"{arch}/*fp32/{p}"]) for p in ("tf32x3", "tf32"))
    assert plain
    assert len(split) == 3 * len(plain)
    assert all(".f32.tf32.tf32" in product for product in split)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("dtype", "types"), NARROW.items())
def test_narrow_operands_are_accumulated_wide_on_tensor_cores(
    compiled: dict[str, str], arch: int, dtype: str, types: str
) -> None:
    found = products(compiled[f"{arch}/{dtype}/tf32x3"])
    assert found
    assert all(types in product for product in found)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_turned_weight_is_copied_and_multiplied_as_any_other(
    compiled: dict[str, str], arch: int
) -> None:
    """As many products, and as many copies that a program does not wait for."""
    straight, turned = (compiled[f"{arch}/*fp16/tf32x3{end}"] for end in ("", "/True"))
    assert len(products(turned)) == len(products(straight)) > 0
    copies = [ptx.count("cp.async.cg") for ptx in (straight, turned)]
    assert copies[0] == copies[1] > 0
