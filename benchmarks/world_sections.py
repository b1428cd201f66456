"""The sections of docs/world.md as templates; world_report.py fills them with a result."""

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
- Three real frames: a *ten-sweep cloud*, the labelled key frame of *scene 0061* (one sweep, road
  works and many pedestrians), and the *benchmark frame*, which comes as voxels. **Each is one
  frame, not a distribution**: a frame far from the synthetic mean may be an unusual one. So each is
  measured against how far single synthetic frames are from their own mean.
- Published counts of annotations and attributes.

A quantile is here always a value that occurs: of n sorted values that of rank (n − 1) · level,
rounded. The result keeps five digits of every figure.
Of real points only histograms, quantiles and sums stand in the result.
"""

MISMATCH = """## What does not match

**Histograms.** The distance of a real frame's histogram from the synthetic mean is the share that
lies in other bins (total variation); beside it the distance of single synthetic frames from the
same mean, median and 95th percentile, and the ratio to the latter. {differing} of {compared} real
histograms have a ratio above 1.00 (bold): such a frame would be rarer than one in twenty. *Too few*
and *too many* are where the synthetic world lacks and exceeds most.

{gaps}

**Single figures** over the synthetic frames beside the real ones; what lies outside of p5 to p95 is
bold ({outside} of {single}). What is bold is decided on the figures as they are printed.

{scalars}

**Voxel counts.** The cumulative curves over all {validation:,} validation frames are at most
{largest_gap:.3f} apart, at {largest_gap_at:,.0f} voxels; equal worlds would exceed
{gap_of_chance:.3f} with {frames} frames once in twenty times.

**Level beam and upper beams.** One beam looks level. In the synthetic world it does so exactly, in
every frame, and what it meets makes a spike just above the sensor's height; in the real frames its
returns lie on both sides, and the two sides together hold about as many. The upper beams come back
less often than in both real frames: too little stands high, as the points between 3 and 8 m below
show too. Total variation hides both among the usual differences of single frames.

{sights}

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

Quantiles of the intensity of all returns over range, key frames, the two real ones together:

{table}

Quantiles of the intensity of points in boxes; those of scene 0061 are of a few objects each:

{boxes}
"""

BOXES = """## Boxes

![Boxes a frame by class, attributes, speeds](pictures/world_classes.png)

All boxes within 75 m, and those with a point of the key frame, beside nuScenes' annotations, of
which few have none: {source}. *Moving* is faster than
0.2 m/s. The *rank of real boxes* compares points in boxes: each box of scene 0061 takes its place
among the synthetic boxes of its class at its distance, 0 where all of those hold more points, 1
where all hold fewer; the mean is 0.5 where worlds are alike. In brackets the number of boxes; they
are of one frame, and boxes without a point are left out.

{classes}

Attributes within their kind; nuScenes: {attribute_source}.

{attributes}

## Points in a box

![Points in a box over distance by class](pictures/world_boxes.png)

Boxes with at least one point. Shaded: 90 % and 50 % of the synthetic boxes, line: their median,
drawn for each {step_m} m of distance that hold at least {fewest} synthetic boxes; rare classes
have fewer everywhere, and no line. Dots: the boxes of scene 0061, at the middle of their bin;
dotted line: beyond it the nuScenes metric does not look. In the table medians where there are at
least {few} boxes, after the slash those of scene 0061:

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
