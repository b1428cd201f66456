"""Write docs/world.md from the results of benchmarks/world.py.

python benchmarks/world_report.py
"""

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"

INTRODUCTION = """# The synthetic LiDAR world

<!-- Written by benchmarks/world_report.py from benchmarks/results/world_*.json; do not edit. -->

A 32-beam spinning LiDAR (HDL-32E elevations, 1,084 columns, 20 Hz) drives through streets with
buildings, walls, poles, trees and the ten nuScenes detection classes. Everything follows from
(seed, scene) by a counter-based hash; boxes are equal on every device. The figures below stand
beside those of real nuScenes LiDAR: voxel counts of all 6,019 validation frames, and one frame of
ten sweeps and one labelled key frame for the rest. World version {version}, seed {seed},
{frames} frames of ten sweeps, commit {commit}.
"""

LIMITS = """
## What does not match

- One time stamp for each sweep: objects and the ego vehicle move between sweeps, not within one.
- Real files hold about 8,000 returns a sweep from the ego vehicle and from rays without an answer,
  all within 1.5 m; here these rays do not report, and they are left out of the real counts above.
- Straight solids: no curved car bodies, no rain, no multiple returns, no reflections in glass.
- One arc of street a scene: no crossings, so few objects stand or drive across the ego direction.
- Rare classes are more frequent than in nuScenes, on purpose: a validation set of 40 frames must
  hold 40 instances of each class.
- Constant speeds; ten or more seconds into a long scene the oncoming lanes thin out.
- `num_lidar_pts` counts the returns from the object itself, nuScenes counts all points in the box.
"""


def main() -> None:
    cpu = json.loads((RESULTS / "world_cpu.json").read_text())
    parts = [
        INTRODUCTION.format(version=cpu["world_version"], **cpu),
        voxel_table(cpu),
        range_table(cpu),
        class_table(cpu),
        speed_table(),
        LIMITS,
    ]
    target = REPOSITORY / "docs" / "world.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts))


def voxel_table(result: dict[str, Any]) -> str:
    ours, real = result["frame"], result["nuscenes"]
    lines = [
        "## Frames\n",
        "Voxels of 0.075 × 0.075 × 0.2 m in ±54 m, z −5..3; ten sweeps.\n",
        "| | synthetic | nuScenes |",
        "|---|---|---|",
        f"| voxels, mean | {ours['voxels']['mean']:,.0f} | {real['voxels']['mean']:,.0f} |",
    ]
    for level in ("p5", "p25", "p50", "p75", "p95"):
        pair = f"{ours['voxels'][level]:,.0f} | {real['voxels'][level]:,.0f}"
        lines.append(f"| voxels, {level} | {pair} |")
    lines.append(
        f"| returns of the key frame | {ours['key_frame_points']:,.0f} | "
        f"{real['key_frame_points']:,.0f} (one frame) |"
    )
    for level in ("p5", "p25", "p50", "p75", "p95"):
        pair = f"{ours['intensity'][level]:.0f} | {real['intensity'][level]:.0f} (one frame)"
        lines.append(f"| intensity, {level} | {pair} |")
    return "\n".join(lines) + "\n"


def range_table(result: dict[str, Any]) -> str:
    ours, real = result["frame"]["range_shares"], result["nuscenes"]["range_shares"]
    lines = ["Share of points over range:\n", "| range | synthetic | nuScenes (one frame) |"]
    lines.append("|---|---|---|")
    lines += [f"| {ring} | {ours[ring]:.3f} | {real[ring]:.3f} |" for ring in ours]
    return "\n".join(lines) + "\n"


def class_table(result: dict[str, Any]) -> str:
    rings = ("0-10 m", "10-20 m", "20-30 m", "30-40 m", "40-50 m")
    lines = [
        "## Points per box\n",
        "Boxes within the class's range of the nuScenes metric. Cells: median points of the key",
        "frame (share of boxes without a point); after the slash the same of the real key frame",
        "where it has at least three boxes.\n",
        "| class | boxes a frame | of them visible | " + " | ".join(rings) + " |",
        "|---|---|---|" + "---|" * len(rings),
    ]
    for name, ours in result["frame"]["classes"].items():
        real = result["nuscenes"]["classes"].get(name, {"by_distance": {}})
        cells = [ring_cell(ours["by_distance"], real["by_distance"], ring) for ring in rings]
        counts = f"{ours['boxes_per_frame']:.1f} | {ours['visible_per_frame']:.1f}"
        lines.append(f"| {name} | {counts} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ring_cell(ours: dict[str, Any], real: dict[str, Any], ring: str) -> str:
    if ring not in ours:
        return ""
    cell = f"{ours[ring]['median_points']:.0f} ({ours[ring]['without_points']:.2f})"
    if real.get(ring, {"boxes": 0})["boxes"] >= 3:
        cell += f" / {real[ring]['median_points']:.0f} ({real[ring]['without_points']:.2f})"
    return cell


def speed_table() -> str:
    lines = [
        "## Speed\n",
        "One key frame of ten sweeps, points and boxes.\n",
        "| machine | frames a call | median, ms a frame | p20 | p80 | commit |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("world_*.json")):
        result = json.loads(path.read_text())
        machine, seconds = result["machine"], result["seconds_per_frame"]
        if "gpu" in machine:
            name = machine["gpu"]
        else:
            load = machine["load_average"]
            name = f"CPU, {machine['threads']} threads of {machine['cores']} cores"
            name += f" (load average {load:.1f} while measured)"
        times = " | ".join(f"{1000 * seconds[key]:.1f}" for key in ("median", "p20", "p80"))
        lines.append(f"| {name} | {result['batch']} | {times} | {result['commit']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
