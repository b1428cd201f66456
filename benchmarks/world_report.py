"""Write docs/world.md and its pictures from the results of benchmarks/world.py.

    python benchmarks/world_report.py

Every figure comes from benchmarks/results/world_cpu.json (times also from world_*.json beside it);
real data is not needed. What is built otherwise than in the real world is written by hand in
benchmarks/world_notes.md. The pictures of scenes are made anew from the seed of the result.
"""

import json
import sys
from pathlib import Path

import world_sections
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from world_box_pictures import draw_classes, draw_points
from world_gaps import FEWEST_BOXES, Result, histogram_gaps, single_figures
from world_pictures import draw_distributions, draw_intensity, draw_voxels
from world_scenes import draw_scenes
from world_tables import (
    attribute_table,
    brightness_table,
    class_mix,
    class_table,
    count_table,
    gap_table,
    intensity_table,
    point_table,
    scalar_table,
    share_table,
    sight_table,
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


def page_text(result: Result, results: list[Result], notes: str) -> str:
    """The whole page: of the compared result, of all results with times, and of the notes."""
    gaps, singles = histogram_gaps(result), single_figures(result)
    published, counts = result["nuscenes"]["published"]["sources"], result["voxel_counts"]
    sections = [
        world_sections.INTRODUCTION.format(validation=counts["nuscenes"]["frames"], **result),
        world_sections.MISMATCH.format(
            differing=sum(gap.differs for gap in gaps),
            compared=len(gaps),
            gaps=gap_table(result),
            outside=sum(figure.outside for figure in singles),
            single=len(singles),
            scalars=scalar_table(result),
            sights=sight_table(result),
            mix=class_mix(result),
            validation=counts["nuscenes"]["frames"],
            frames=result["frames"],
            **counts,
        ),
        world_sections.VOXELS.format(counts=count_table(result)),
        world_sections.WHERE.format(
            ranges=share_table(result, ["points_over_range", "voxels_over_range"], RANGES_M),
            heights=share_table(result, ["points_over_height", "voxels_over_height"], HEIGHTS_M),
        ),
        world_sections.INTENSITY.format(
            table=intensity_table(result), boxes=brightness_table(result)
        ),
        world_sections.BOXES.format(
            source=published["boxes_per_frame"],
            classes=class_table(result),
            attribute_source=published["attributes"],
            attributes=attribute_table(result),
            few=result["measures"]["boxes"]["few_boxes"],
            fewest=FEWEST_BOXES,
            step_m=result["measures"]["boxes"]["distance_step_m"],
            points=point_table(result),
        ),
        world_sections.SPEED.format(table=speed_table(results)),
        world_sections.NOTES_HEAD,
        notes,
        world_sections.REPEAT,
    ]
    return "\n".join(sections)


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
    text = page_text(result, results, NOTES.read_text())
    print(f"Written: {write_text_atomic(DOCS / 'world.md', text)} and its pictures.")


if __name__ == "__main__":
    main()
