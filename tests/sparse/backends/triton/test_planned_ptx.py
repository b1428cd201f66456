"""What the interpreter cannot show: every kernel of a plan compiled to PTX; needs no GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).resolve().parents[3]
# A process of its own: the kernels of this one may be the interpreter's. Launches are compiled for
# the chip that is named, not run.
COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor
import voxelquant.sparse.backends.triton.overlap as overlap

arch = int(sys.argv[1])
overlap.OVERLAP = triton.language.constexpr(arch >= 90)  # before anyone takes it
TYPES = {
    torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8",
    torch.int32: "i32", torch.int64: "i64",
}
ptx = {}

def compile_launch(
    kernel, *args, grid, warmup, num_warps=4, num_stages=3, enable_fp_fusion=True, **named
):
    values = {**dict(zip(kernel.arg_names, args)), **named}
    signature, constants, aligned = {}, {}, {}
    for place, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params)):
        value = values[name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    key = f"{kernel.__name__.lstrip('_')} {signature} {constants}"
    if key in ptx:
        return
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {
        "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion,
    }
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx[key] = made.asm["ptx"]

JITFunction.run = compile_launch

import voxelquant as vq
from planned_networks import BATCH, GRID, make_engine
from voxelquant.quant.engine.network_plan import ConvOp, plan_network
from voxelquant.sparse.backends.triton.planned_conv import ConvTile

for name, recipe in (
    ("three readers", vq.Recipe(name="in_place", ranges="in_place")),
    ("up and down", "fp8" if arch >= 89 else "int8"),  # older chips have no such codes
):
    plan = plan_network(
        make_engine(name, recipe), spatial_shape=GRID, in_channels=5, max_voxels=99,
        batch_size=BATCH, device="cpu",
    )
    for stage in plan.stages:
        stage.run()
    op = [op for op in plan.program.ops if isinstance(op, ConvOp)][-1]
    for steps in ("tap", "seen", "column"):
        plan.launches.conv_launcher(op, ConvTile(64, 16, 32, steps, 4, 3, splits=3))()
    if arch >= 90:
        plan.launches.conv_launcher(op, ConvTile(64, 16, 32, "seen", 4, 3, bulk=True))()
print(json.dumps(ptx))
"""


@pytest.fixture(scope="module", params=[80, 90])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """PTX by kernel and constants."""
    cache = tmp_path_factory.mktemp("triton")
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(request.param)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": str(cache),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def of_kernel(compiled: dict[str, str], name: str) -> list[str]:
    return [ptx for key, ptx in compiled.items() if key.startswith(name)]


def test_every_kernel_of_a_plan_compiles(compiled: dict[str, str]) -> None:
    found = {key.split()[0] for key in compiled}
    assert found == {
        "fetch_fields",
        "mark_sites",
        "index_levels",
        "clear_marks",
        "build_maps",
        "order_features",
        "conv_kernel",
        "convert_rows",
        "add_rows",
        "densify",
    }
    for steps in ("tap", "seen", "column", "together"):
        assert any(f"'STEPS': '{steps}'" in key for key in compiled), steps


def test_nothing_is_divided_and_no_subnormal_flushed(compiled: dict[str, str]) -> None:
    for key, ptx in compiled.items():
        assert not re.search(r"\b(div|rcp)\.\S*f32", ptx), key
        assert not re.search(r"\b(mul|add|sub|fma|div)\.rn\.ftz", ptx), key


def test_nothing_is_fused_but_quotients(compiled: dict[str, str]) -> None:
    """The addend is the product of the same dividend with the reciprocal's second part."""
    quotients = 0
    for key, ptx in compiled.items():
        products = {
            result: {a, b}
            for result, a, b in re.findall(r"mul\.rn\.f32\s+(%\w+), (\S+), (\S+);", ptx)
        }
        fused = re.findall(r"\bfma\.rn\.f32\s+%\w+, (\S+), (\S+), (\S+);", ptx)
        assert len(fused) == len(re.findall(r"\bfma\.\S*f32", ptx)), key
        for a, b, addend in fused:
            assert {a, b} & products[addend], key
        quotients += len(fused)
    assert quotients > 0


def test_bits_are_counted_by_the_instruction(compiled: dict[str, str]) -> None:
    for name in ("index_levels", "order_features", "build_maps", "densify"):
        kernels = of_kernel(compiled, name)
        assert kernels
        assert all("popc.b64" in ptx for ptx in kernels), name


def test_codes_are_multiplied_on_tensor_cores_and_summed_wide(compiled: dict[str, str]) -> None:
    for key, ptx in compiled.items():
        if not key.startswith("conv_kernel"):
            continue
        products = set(re.findall(r"(?:wgmma\.mma_async|mma)\.sync\S*", ptx))
        types = ".s32.s8.s8" if "'FORMAT': 'int8'" in key else ".f32.f16.f16"
        assert products, key
        assert all(types in product for product in products), (key, products)


def test_bulk_weights_are_fetched_by_the_copy_engine(
    compiled: dict[str, str], request: pytest.FixtureRequest
) -> None:
    arch = request.node.callspec.params["compiled"]
    bulk = [ptx for key, ptx in compiled.items() if "'BULK': True" in key]
    assert len(bulk) == (2 if arch >= 90 else 0)  # one for each network
    assert all("cp.async.bulk.tensor.2d.shared" in ptx for ptx in bulk)
    others = [ptx for key, ptx in compiled.items() if "'BULK': False" in key]
    assert not any("cp.async.bulk" in ptx for ptx in others)
