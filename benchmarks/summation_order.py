"""How far two right executions of one network may be apart: the limits of `voxelquant bench`.

    python benchmarks/summation_order.py [--frame FILE]

The reference backend sums by taps or by columns. Both are right; fp16 layers then part in the last
bit of a few values, which flips codes on ties in the integer layers after them. On the lattice of
`recipes/bench_networks.py` all sums are exact, and nothing may part.
"""

import argparse
from pathlib import Path
from typing import Any

from backbone_cpu import REAL_FRAME, ROOT, existing_file, keep_real_result, load_frame
from torch import Tensor

from voxelquant.detection.config import load_config
from voxelquant.numerics import sqnr_db
from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.recipes.bench_frames import BenchFrame
from voxelquant.recipes.bench_networks import Networks, lower_network, make_backbone, on_lattice
from voxelquant.sparse.backends import reference

SEED = 0


def expected_by_columns(networks: Networks, frame: BenchFrame) -> Tensor:
    by_default = reference._convolve

    def by_columns(features: Tensor, weight: Tensor, kernel_map: Any, columns: bool) -> Tensor:
        return by_default(features, weight, kernel_map, True)

    reference._convolve = by_columns
    try:
        return networks.expected(frame)
    finally:
        reference._convolve = by_default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=existing_file, default=REAL_FRAME)
    out = ROOT / "benchmarks/results/summation_order.json"
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    frame = load_frame(arguments.frame)
    keep_real_result(arguments.out, frame)
    backbone = make_backbone(load_config("centerpoint_voxel0075"), SEED, "cpu")
    found: dict[str, Any] = {"frame": frame.name, "voxels": len(frame)}
    maps = {}
    for precision in ("fp16", "int8"):
        networks = lower_network(backbone, precision, frame)
        maps[precision] = networks.expected(frame)
        other = expected_by_columns(networks, frame)
        found[f"{precision}_sqnr_db"] = sqnr_db(maps[precision], other)
        found[f"{precision}_differing"] = (maps[precision] != other).double().mean().item()
    found["int8_against_fp16_sqnr_db"] = sqnr_db(maps["int8"], maps["fp16"])
    network, exact = on_lattice(backbone, frame)
    networks = lower_network(network, "int8", exact)
    same = networks.expected(exact)
    found["lattice_differing"] = (same != expected_by_columns(networks, exact)).sum().item()
    found["lattice_nonzero"] = (same != 0).sum().item()
    for name, value in found.items():
        print(f"{name:28} {value}")
    write_json_atomic(arguments.out, {**found, **provenance(seed=SEED)})
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
