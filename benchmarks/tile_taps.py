"""How many of a kernel's taps a tile of output rows needs, by the order of its rows; no GPU.

    python benchmarks/tile_taps.py [--frame FILE]

A tile multiplies every tap that any of its rows sees. Counted on the levels of SpMiddleResNetFHD:
rows in the order of their sites, as the site index numbers them; in groups that see the same taps
along z (`row_groups`), where a tile also takes what lies between: each tap of its group in every
column; sorted by the set of taps they see, as spconv does.

The frame is `nuscenes_voxels_79745.npz`. Without it a synthetic frame of the same size is used; the
result says so, and does not take the place of the real frame's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from backbone_cpu import REAL_FRAME, ROOT, SHAPE, existing_file, keep_real_result, load_frame
from torch import Tensor

from voxelquant.recipes.artifacts import provenance, write_json_atomic
from voxelquant.sparse import ConvGeometry, build_kernel_map

TILES = (64, 128)
ORDERS = ("in_order", "in_groups", "sorted_by_taps")
SUBM = ConvGeometry((3, 3, 3), subm=True)
STEPS = (
    ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ConvGeometry((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    ConvGeometry((3, 1, 1), (2, 1, 1), (0, 0, 0)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=existing_file, default=REAL_FRAME)
    out = ROOT / "benchmarks/results/tile_taps.json"
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    frame = load_frame(arguments.frame)
    keep_real_result(arguments.out, frame)
    print(f"frame {frame.name}, {len(frame):,} voxels; taps needed: {' / '.join(ORDERS)}")
    maps = count_maps(frame.coords_bzyx)
    for row in maps:
        print(describe(row))
    write_json_atomic(arguments.out, {"frame": frame.name, "maps": maps, **provenance()})
    print(f"Written: {arguments.out}")


def describe(row: dict[str, Any]) -> str:
    """A map in one line, in percent of its taps."""
    tiles = (
        f"tiles of {rows} "
        + " / ".join(f"{100 * row[f'tile_of_{rows}'][order]:.1f}" for order in ORDERS)
        for rows in TILES
    )
    return (
        f"{row['map']:14} {row['rows']:7,} rows in {row['groups']} groups, {row['taps']:2} taps; "
        f"a row sees {100 * row['seen_by_a_row']:.1f} %; {' %; '.join(tiles)} %"
    )


def count_maps(coords: Tensor) -> list[dict[str, Any]]:
    shape, found = SHAPE, []
    for level, step in enumerate((*STEPS, None)):
        if level < len(STEPS):
            found.append({"map": f"level {level}", **count_map(coords, shape, SUBM)[0]})
        if step is not None:
            counted, coords = count_map(coords, shape, step)
            found.append({"map": f"level {level} to {level + 1}", **counted})
            shape = step.output_shape(shape)
    return found


def count_map(
    coords: Tensor, shape: tuple[int, int, int], geometry: ConvGeometry
) -> tuple[dict[str, Any], Tensor]:
    kernel_map, outputs = build_kernel_map(coords, shape, 1, geometry)
    b, z, y, x = outputs.long().unbind(1)
    in_order = (((b << 12 | y) << 12 | x) << 12 | z).argsort()
    seen = (kernel_map.table < kernel_map.n_in)[:, in_order]  # [k, m]
    kz = geometry.kernel_size[0]
    heights = seen.view(kz, -1, seen.shape[1]).any(1)  # [kz, m]
    group, taps = _number(heights), _number(seen)
    by_taps = seen[:, taps.argsort(stable=True)]
    counted: dict[str, Any] = {
        "rows": seen.shape[1],
        "taps": len(seen),
        "groups": len(group.unique()),
        "seen_by_a_row": float(seen.double().sum(0).mean()) / len(seen),
    }
    for rows in TILES:
        counted[f"tile_of_{rows}"] = {
            "in_order": _needed(seen, rows),
            "in_groups": _needed_in_groups(heights, group, rows),
            "sorted_by_taps": _needed(by_taps, rows),
        }
    return counted, outputs


def _number(bits: Tensor) -> Tensor:
    return (bits.long() << torch.arange(len(bits))[:, None]).sum(0)


def _needed(seen: Tensor, rows: int) -> float:
    """Mean share of the taps that tiles of rows need."""
    tiles = torch.nn.functional.pad(seen, (0, -seen.shape[1] % rows)).view(len(seen), -1, rows)
    return float(tiles.any(2).double().mean())


def _needed_in_groups(heights: Tensor, group: Tensor, rows: int) -> float:
    """The same where a tile has rows of one group and needs its taps in all columns."""
    numbers, counts = group.unique(return_counts=True)
    share = torch.stack([heights[:, group == number][:, 0].double().mean() for number in numbers])
    tiles = -(-counts // rows)
    return float((share * tiles).sum() / -(-len(group) // rows))


if __name__ == "__main__":
    main()
