"""The kernels of kernel maps, compiled for the chips that run them; needs no GPU.

The interpreter takes what the compiler refuses, such as a constant that a loop assigns again.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# A process of its own: the kernels of this one may be the interpreter's. Launches are compiled for
# the chip that is named, not run.
COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from voxelquant.sparse.backends.triton import neighbour_maps
from voxelquant.sparse.conv_geometry import ConvGeometry

TYPES = {torch.int32: "*i32", torch.int64: "*i64"}
ptx = {}

def compile_launch(kernel, *args, grid, warmup, num_warps, num_stages):
    values = dict(zip(kernel.arg_names, args))
    signature, constants, aligned = {}, {}, {}
    for place, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params)):
        value = values[name]
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants, aligned)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    made = triton.compile(source, target=target, options={"num_warps": num_warps})
    ptx.setdefault(kernel.__name__.lstrip("_"), []).append(made.asm["ptx"])

JITFunction.run = compile_launch
torch.Tensor.item = lambda total: 7  # nothing was counted

sites = torch.zeros((9, 4), dtype=torch.int32)
for geometry in (
    ConvGeometry((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ConvGeometry((3, 1, 1), (2, 1, 1)),
    ConvGeometry((4, 2, 3), (3, 1, 1), (1, 1, 2), (1, 2, 2)),
):
    strided, coords, bitmap = neighbour_maps.build_kernel_map(sites, (41, 90, 90), 2, geometry)
    neighbour_maps.transpose_table(strided.table, strided.n_in)
    subm = ConvGeometry((3, 3, 5), dilation=(1, 2, 1), subm=True)
    neighbour_maps.build_kernel_map(coords, (21, 45, 45), 2, subm, bitmap)
neighbour_maps.build_kernel_map(sites, (41, 90, 90), 2, subm)
print(json.dumps(ptx))
"""


@pytest.fixture(scope="module", params=[80, 90])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """PTX of every launch, by kernel."""
    cache: Path = tmp_path_factory.mktemp("triton")
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(request.param)],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_every_kernel_of_a_map_compiles(compiled: dict[str, list[str]]) -> None:
    assert set(compiled) == {
        "mark_readers",
        "count_bits",
        "rank_bits",
        "place_rows",
        "list_cells",
        "look_up_taps",
        "scatter_pairs",
        "turn_table",
    }


def test_bits_are_counted_by_the_instruction(compiled: dict[str, list[str]]) -> None:
    counting = set(compiled) - {"mark_readers", "turn_table"}
    for name in counting:
        assert all("popc.b64" in ptx for ptx in compiled[name]), name


def test_marking_waits_for_no_other_memory(compiled: dict[str, list[str]]) -> None:
    """An atomic with an order makes every program wait for its earlier stores."""
    for ptx in compiled["mark_readers"]:
        assert re.search(r"atom\S*\.relaxed\S*\.or\.b64", ptx)
        assert "acq_rel" not in ptx
