"""Write docs/world.md and its pictures from the results of benchmarks/world.py.

    python benchmarks/world_report.py

Every figure comes from benchmarks/results/world_cpu.json (times also from world_*.json beside it);
real data is not needed. What is built otherwise than in the real world is written by hand in
benchmarks/world_notes.md. The pictures of scenes are made anew from the seed of the result.
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from world_box_pictures import draw_classes, draw_points
from world_gaps import Result, histogram_gaps, single_figures
from world_pictures import draw_distributions, draw_intensity, draw_voxels
from world_scenes import draw_scenes
from world_tables import (
    attribute_table,
    class_mix,
    class_table,
    count_table,
    gap_table,
    intensity_table,
    point_table,
    scalar_table,
    share_table,
    speed_table,
)

from voxelquant.atomic_file import atomic_path
from voxelquant.data.synthetic import WORLD_VERSION, WorldConfig
from voxelquant.digest import file_digest
from voxelquant.recipes.artifacts import write_text_atomic
from voxelquant.report.bev import png_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
RESULT = RESULTS / "world_cpu.json"
NOTES = REPOSITORY / "benchmarks" / "world_notes.md"
DOCS = REPOSITORY / "docs"
RANGES_M, HEIGHTS_M = (0, 10, 20, 30, 40, 50, 104), (-5, -2, -1, 0, 1, 2, 3, 8)

INTRODUCTION = """# The synthetic LiDAR world

<!-- Written by benchmarks/world_report.py from benchmarks/results/world_*.json and \
benchmarks/world_notes.md; do not edit. -->

A spinning 32-beam LiDAR (HDL-32E, 20 Hz) drives through streets with buildings, walls, poles,
trees and the ten nuScenes detection classes. Everything follows from (seed, scene) by a
counter-based hash; boxes are equal on every device. World version {world_version}, seed {seed},
{frames} frames of ten sweeps, commit {commit}.

![Four synthetic scenes from above](pictures/world_scenes.png)

![The same scenes from behind the vehicle](pictures/world_view.png)

Points of ten sweeps by height, and in green the boxes of annotated objects with a point.

## What it is held against

- The voxel counts of all {validation:,} validation frames of nuScenes: a distribution.
- Three real frames, of three different places: a *ten-sweep cloud*, the labelled key frame of
  *scene 0061* (one sweep, a construction site with many pedestrians), and the *benchmark frame*,
  which comes as voxels. **Each is one frame, not a distribution**: a frame far from the synthetic
  mean may be an unusual one. So each is measured against how far single synthetic frames are from
  their own mean.
- Published counts of annotations and attributes.

Of real points only histograms, quantiles and sums stand in the result.
"""

MISMATCH = """## What does not match

**Histograms.** The distance of a real frame's histogram from the synthetic mean is the share that
lies in other bins (total variation); beside it the distance of single synthetic frames from the
same mean, median and 95th percentile, and the ratio to the latter. {differing} of {compared} real
histograms have a ratio above 1 (bold): such a frame would be rarer than one in twenty. *Too few*
and *too many* are where the synthetic world lacks and exceeds most.

{gaps}

**Single figures** over the synthetic frames beside the real ones; what lies outside of p5 to p95 is
bold ({outside} of {single}).

{scalars}

**Voxel counts.** The cumulative curves over all {validation:,} validation frames are at most
{largest_gap:.3f} apart, at {largest_gap_at:,.0f} voxels; equal worlds would exceed
{gap_of_chance:.3f} with {frames} frames once in twenty times.

**Class mix.** Boxes with a point a frame, as a multiple of nuScenes' annotations: {mix}.
"""

VOXELS = """## Voxels, sites and neighbours

Voxels of 0.075 × 0.075 × 0.2 m in ±54 m, z −5 to 3; ten sweeps.

{counts}

![Voxels a frame, sites of every level, neighbours of a site](pictures/world_voxels.png)

Level 0 are the voxels, each further level follows a 3×3×3 convolution of stride 2, as in the
detector's backbone. A site's neighbours, itself included, are the products that a submanifold
convolution sums for it. Shaded: 90 % and 50 % of the synthetic frames, line: their median or mean.
"""

WHERE = """## Where the points are

![Points, voxels and returns over range, height and beam](pictures/world_distributions.png)

{ranges}

{heights}
"""

INTENSITY = """## Intensity

![Intensities of the key frame, and their quantiles over range](pictures/world_intensity.png)

Key frames; the two real ones together.

{table}
"""

BOXES = """## Boxes

![Boxes a frame by class, attributes, speeds](pictures/world_classes.png)

All boxes within 75 m, and those with a point of the key frame, beside nuScenes' annotations
({source}), of which few have none. *Moving* is faster than
0.2 m/s. The *rank of real boxes* compares points in boxes: each box of scene 0061 takes its place
among the synthetic boxes of its class at its distance, 0 where all of those hold more points, 1
where all hold fewer; the mean is 0.5 where worlds are alike. In brackets the number of boxes; they
are of one frame, and boxes without a point are left out.

{classes}

Attributes within their kind; nuScenes: {attribute_source}.

{attributes}

## Points in a box

![Points in a box over distance by class](pictures/world_boxes.png)

Boxes with at least one point. Shaded: 90 % and 50 % of the synthetic boxes, line: their median;
dots: the boxes of scene 0061, at the middle of their bin; dotted line: beyond it the nuScenes
metric does not look. Medians, after the slash those of scene 0061 where it has at least {few}
boxes:

{points}
"""

SPEED = """## Speed

One key frame of ten sweeps, points and boxes.

{table}
"""

NOTES_HEAD = "## What is built otherwise\n"

REPEAT = """## To repeat it

```
python benchmarks/world.py --real REAL_LIDAR --out benchmarks/results/world_cpu.json
python benchmarks/world_report.py
```

`python benchmarks/world.py --help` says what REAL_LIDAR must hold. The page needs no real data.
"""


def page_text(result: Result, results: list[Result], notes: str) -> str:
    """The whole page: of the compared result, of all results with times, and of the notes."""
    gaps, singles = histogram_gaps(result), single_figures(result)
    published, counts = result["nuscenes"]["published"]["sources"], result["voxel_counts"]
    return "\n".join([
        INTRODUCTION.format(validation=counts["nuscenes"]["frames"], **result),
        MISMATCH.format(
            differing=sum(gap.differs for gap in gaps),
            compared=len(gaps),
            gaps=gap_table(result),
            outside=sum(figure.outside for figure in singles),
            single=len(singles),
            scalars=scalar_table(result),
            mix=class_mix(result),
            validation=counts["nuscenes"]["frames"],
            frames=result["frames"],
            **counts,
        ),
        VOXELS.format(counts=count_table(result)),
        WHERE.format(
            ranges=share_table(result, ["points_over_range", "voxels_over_range"], RANGES_M),
            heights=share_table(result, ["points_over_height", "voxels_over_height"], HEIGHTS_M),
        ),
        INTENSITY.format(table=intensity_table(result)),
        BOXES.format(
            source=published["boxes_per_frame"],
            classes=class_table(result),
            attribute_source=published["attributes"],
            attributes=attribute_table(result),
            few=result["measures"]["boxes"]["few_boxes"],
            points=point_table(result),
        ),
        SPEED.format(table=speed_table(results)),
        NOTES_HEAD,
        notes,
        REPEAT,
    ])  # fmt: skip


def draw_pictures(result: Result) -> dict[str, Figure]:
    """Every picture of the page by file name."""
    return {
        "world_voxels.png": draw_voxels(result),
        "world_distributions.png": draw_distributions(result),
        "world_intensity.png": draw_intensity(result),
        "world_classes.png": draw_classes(result),
        "world_boxes.png": draw_points(result),
    }


def main() -> None:
    result = json.loads(RESULT.read_text())
    if "nuscenes" not in result:
        sys.exit(f"{RESULT.name} holds no figures of nuScenes: make it with world.py --real")
    if result["world_version"] != WORLD_VERSION:
        sys.exit(
            f"{RESULT.name} is of world {result['world_version']}, this is world {WORLD_VERSION}: "
            "measure it again, the pictures of scenes would be of another world"
        )
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("world_*.json"))]
    folder, digest = DOCS / "pictures", file_digest(RESULT)
    for name, figure in draw_pictures(result).items():
        with atomic_path(folder / name) as temporary:
            FigureCanvasAgg(figure).print_png(
                temporary, metadata={"Software": None, "Source": digest}
            )
    above, view = draw_scenes(result["seed"], WorldConfig())
    for name, figure in (("world_scenes.png", above), ("world_view.png", view)):
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(png_bytes(FigureCanvasAgg(figure)))
    write_text_atomic(DOCS / "world.md", page_text(result, results, NOTES.read_text()))


if __name__ == "__main__":
    main()
