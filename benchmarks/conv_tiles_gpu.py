"""Every convolution of the backbone's training step with every candidate tile, on a GPU.

    python benchmarks/conv_tiles_gpu.py --out tiles.json [--dtypes fp32 fp16 int8] [--channels 128]

For each product of forward and backward the time with the reasoned tile, the fastest one and its
time; `backends/triton/conv_tiles.py` is where a better rule belongs. The frame is that of
`training_step_gpu.py`. A candidate counts only where it gives what the reasoned tile gives.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from backbone_cpu import REAL_FRAME, SHAPE, convs_of, load_frame
from torch import Tensor
from training_step_gpu import CHANNELS, make_batch

from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.evaluation.latency import measure_latency
from voxelquant.numerics import relative_l2
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.sparse import ActiveSites, KernelMap
from voxelquant.sparse.backends.triton import conv
from voxelquant.sparse.backends.triton.conv_tiles import GemmShape, Tile, tile_of, tune

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
Run = Callable[[Tile], Tensor]


def products(coords: Tensor, batch: int, dtype: torch.dtype) -> Iterator[tuple[GemmShape, Run]]:
    """Forward and both gradients of every convolution; int8 has no gradients."""
    net = SpMiddleResNetFHD(BackboneConfig(in_channels=5, channels=CHANNELS))
    sites = ActiveSites(coords, SHAPE, batch)
    for layer in convs_of(net):
        kernel_map, sites = sites.kernel_map(layer.geometry)
        c_in, c_out = layer.in_channels, layer.out_channels
        yield convolution(kernel_map, c_in, c_out, dtype)
        if dtype != torch.int8:
            yield convolution(kernel_map.transposed(), c_out, c_in, dtype)
            yield weight_gradient(kernel_map, c_in, c_out, dtype)


def operand(like: Tensor, dtype: torch.dtype, *size: int) -> Tensor:
    return torch.randn(size, device=like.device).mul_(20 if dtype == torch.int8 else 1).to(dtype)


def convolution(
    kernel_map: KernelMap, c_in: int, c_out: int, dtype: torch.dtype
) -> tuple[GemmShape, Run]:
    table, taps = kernel_map.table, kernel_map.taps
    out_dtype = torch.int32 if dtype == torch.int8 else dtype

    def run(tile: Tile) -> Tensor:
        return conv._convolve(features, weight, kernel_map, out_dtype=out_dtype, tile=tile)

    features = operand(table, dtype, kernel_map.n_in, c_in)
    weight = operand(table, dtype, c_out, taps, c_in)
    return GemmShape("conv", dtype, c_in, c_out, taps), run


def weight_gradient(
    kernel_map: KernelMap, c_in: int, c_out: int, dtype: torch.dtype
) -> tuple[GemmShape, Run]:
    features = operand(kernel_map.table, dtype, kernel_map.n_in, c_in)
    grad = operand(kernel_map.table, dtype, kernel_map.n_out, c_out)

    def run(tile: Tile) -> Tensor:
        return conv._weight_grad(features, grad, kernel_map, tile=tile)

    return GemmShape("weight_grad", dtype, c_in, c_out, kernel_map.taps), run


def measure_ms(run: Run, tile: Tile, device: torch.device, expected: Tensor) -> float:
    """Median of many; infinite where the tile does not fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        error = relative_l2(expected, run(tile).double())
    except OutOfResources:
        return float("inf")
    if not error < 1e-3:
        raise SystemExit(f"{tile}: got a relative error of {error:.1e}, need below 1e-3")
    if device.type == "cuda":
        return float(do_bench(lambda: run(tile), warmup=5, rep=30, return_mode="median"))
    return measure_latency(lambda: run(tile), device=device, warmup=0, repeats=2).median_ms


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=Path, default=REAL_FRAME)
    parser.add_argument("--voxels", type=int, default=None, help="of the frame; default: all")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32", "fp16"])
    parser.add_argument("--channels", type=int, nargs="+", help="of either side; default: any")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    loaded = load_frame(arguments.frame)
    frame = loaded.name
    features = loaded.features[: arguments.voxels]
    coords = loaded.coords_bzyx[: arguments.voxels]
    batch = make_batch(features, coords, arguments.batch, arguments.device)
    rows: dict[GemmShape, dict] = {}
    for name in arguments.dtypes:
        for shape, run in products(batch.coords_bzyx, arguments.batch, DTYPES[name]):
            widest = max(shape.c_in, shape.c_out)
            if shape in rows or (arguments.channels and widest not in arguments.channels):
                continue
            reasoned = tile_of(shape)
            expected = run(reasoned).double()

            def measure(tile: Tile, run: Run = run, expected: Tensor = expected) -> float:
                return measure_ms(run, tile, batch.device, expected)

            before = measure(reasoned)
            tile, after = tune(shape, measure)
            facts = {"kind": shape.kind, "dtype": name, "c_in": shape.c_in, "c_out": shape.c_out}
            facts |= {"taps": shape.taps, "reasoned_ms": before, "fastest_ms": after, "tile": tile}
            rows[shape] = facts
            print(*facts.values(), flush=True)
    facts = {"frame": frame, "voxels": len(coords), "batch": arguments.batch}
    result = {**facts, "products": to_jsonable(list(rows.values())), **provenance()}
    write_json_atomic(arguments.out, result)


if __name__ == "__main__":
    main()
