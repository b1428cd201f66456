"""Write the part of docs/results.md that benchmarks/results/accuracy.json tells.

    python benchmarks/accuracy_page.py

What stands between the two marks in docs/results.md is replaced; what benchmarks/real_clouds.py
has found stands at its end, where its result is. Every figure comes from the
result; what its rows mean is written by hand in benchmarks/accuracy_notes.md, where figures may
stand in braces, as in `{ptq_mse.mAP:.3f}`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from performance_tables import Figures, MissingFigureError, markdown_table

from voxelquant.recipes.artifacts import write_text_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "accuracy.json"
CLOUDS = REPOSITORY / "benchmarks" / "results" / "real_clouds.json"
NOTES = REPOSITORY / "benchmarks" / "accuracy_notes.md"
PAGE = REPOSITORY / "docs" / "results.md"
BEGIN = "<!-- Written by benchmarks/accuracy_page.py; do not edit. -->"
END = "<!-- End of what benchmarks/accuracy_page.py has written. -->"

HALF_WIDTH = 0.2  # points of mAP: an interval that is wider says too little for a bar
# Of the design: how many points of mAP a row may lie below another.
BARS = (("ptq", "float", 0.3), ("qat", "float", 0.2), ("qat", "ptq_mse", 0.1))
NAMES = {"ptq": "best PTQ", "qat": "QAT", "float": "float", "ptq_mse": "PTQ, mse"}
METHODS = ("mse", "max", "percentile", "entropy")

INTRODUCTION = """{begin}
## The reference's table in kind

*Synthetic* data: {f.config}, {f.frames:,} key frames of world seed {f.seeds.validation}, by
nuscenes-devkit; commit {f.commit}. The sparse backbone is quantized with the reference's precision
policy (recipe `reference`), neck and head stay in float. Calibrated on {batches} generated batches
of seed {f.seeds.calibration}; QAT and the control were trained for {f.plan.steps:,} steps of
{f.plan.batch_size} frames of seed {f.seeds.training}. ± is half of the 95 % interval of the
difference to float, by a paired bootstrap over frames.
"""


IN_REAL_CLOUDS = """## In real clouds

The same weights in two real clouds of nuScenes, whose like the model has never seen: ten sweeps
without labels, and a labelled key frame of a single sweep, where it was trained on ten. Counted are
boxes with a score above {limits.shown_score:g}; right is one whose centre lies within
{limits.matched_m:g} m of an annotated box of its class; float and int8 (*executed*) have found the
same object where boxes of one class lie within {limits.same_m:g} m.

{table}

![The cloud of ten sweeps from above with the boxes of float and int8](pictures/real_sweeps.png)

![The labelled key frame from above: annotated boxes, float and int8](pictures/real_key_frame.png)

Of the points the pictures show which cells of a metre hold any. `benchmarks/real_clouds.py`.
"""
CLOUD_NAMES = {"sweeps": "ten sweeps", "key_frame": "key frame"}


def section_text(result: dict[str, Any], notes: str, clouds: dict[str, Any] | None = None) -> str:
    """What stands between the marks, marks included.

    Raises:
        MissingFigureError: the result lacks a figure that the text needs.
    """
    f = Figures(result)
    parts = [
        INTRODUCTION.format(begin=BEGIN, f=f, batches=result["plan"]["batches"][0]),
        main_table(result),
        bars_table(result),
        "By method and number of batches, mAP − float in points (*simulated*):\n",
        methods_table(result),
        notes.strip().format_map(f) + "\n",
        "The float model by class and distance, in %; recall within 2 m:\n",
        rings_table(result),
        *([] if clouds is None else [clouds_text(clouds)]),
        END,
    ]
    return "\n".join(parts)


def main_table(result: dict[str, Any]) -> str:
    best = best_ptq(result)
    rows = [
        ("float", "float"),
        (f"PTQ, {best.removeprefix('ptq_')} (*simulated*)", best),
        ("PTQ, mse, integers (*executed*)", "int8"),
        ("QAT (*simulated*)", "qat"),
        ("QAT, integers (*executed*)", "qat_int8"),
        ("control: float, fine-tuned with QAT's steps, rate and frames", "float_tuned"),
    ]
    cells = [
        (
            what,
            percent(result[name]["mAP"]),
            percent(result[name]["NDS"]),
            against_float(result[name]),
        )
        for what, name in rows
    ]
    return markdown_table(("", "mAP, %", "NDS, %", "mAP − float, points"), cells) + "\n"


def best_ptq(result: dict[str, Any]) -> str:
    """The PTQ row of the full number of batches with the highest mAP."""
    return max((f"ptq_{method}" for method in METHODS), key=lambda name: result[name]["mAP"])


def bars_table(result: dict[str, Any]) -> str:
    """What may be lost, and whether the interval stays above it."""
    cells = []
    for name, other, allowed in BARS:
        found = _difference(result, name, other)
        if found is None:
            continue
        low, half_width = 100 * found["low"], 50 * (found["high"] - found["low"])
        met = low > -allowed and half_width <= HALF_WIDTH
        why = "" if half_width <= HALF_WIDTH else f" (± {half_width:.2f} is too wide)"
        cells.append(
            (
                f"{NAMES[name]} against {NAMES[other]}",
                f"not more than {allowed:.1f} lower",
                f"{100 * found['value']:+.2f} ({low:+.2f} to {100 * found['high']:+.2f})",
                ("passed" if met else "**missed**") + why,
            )
        )
    return (
        markdown_table(("", "bar, points of mAP", "difference (95 % interval)", ""), cells) + "\n"
    )


def _difference(result: dict[str, Any], name: str, other: str) -> dict[str, float] | None:
    row = best_ptq(result) if name == "ptq" else name
    if other == "float":
        return result[row]["difference"]["mAP"]
    found = result["differences"].get(f"{name} - {other}")
    return None if found is None else found["mAP"]


def methods_table(result: dict[str, Any]) -> str:
    most, *fewer = result["plan"]["batches"]
    suffixes = [(most, ""), *((batches, f"_{batches}") for batches in fewer)]
    cells = [
        (method, *(against_float(result[f"ptq_{method}{suffix}"]) for _, suffix in suffixes))
        for method in METHODS
    ]
    head = ("method", *(f"{batches} batches" for batches, _ in suffixes))
    return markdown_table(head, cells) + "\n"


def rings_table(result: dict[str, Any]) -> str:
    rings = result["rings"]
    head = ("", "AP", *(f"recall, {ring['near_m']}–{ring['far_m']} m" for ring in rings))
    rows = [("all", percent(result["float"]["mAP"]), *(percent(ring["recall"]) for ring in rings))]
    for name, ap in result["float"]["per_class_ap"].items():
        found = [ring["classes"].get(name) for ring in rings]
        recalls = ("–" if ring is None else percent(ring["recall"]) for ring in found)
        rows.append((name, percent(ap), *recalls))
    return markdown_table(head, rows) + "\n"


def clouds_text(clouds: dict[str, Any]) -> str:
    """What was found in the real clouds."""
    rows = []
    for name, found in clouds["clouds"].items():
        right = found.get("right")
        rows.append(
            (
                CLOUD_NAMES[name],
                f"{found['points']:,}",
                "–" if right is None else str(found["annotated"]),
                *(str(found["found"][engine]) for engine in ("float", "int8")),
                str(found["found_by_both"]),
                *("–" if right is None else str(right[engine]) for engine in ("float", "int8")),
            )
        )
    head = ("", "points", "annotated", "float", "int8", "both", "right, float", "right, int8")
    return IN_REAL_CLOUDS.format(limits=Figures(clouds).limits, table=markdown_table(head, rows))


def against_float(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return ""
    found = row["difference"]["mAP"]
    return f"{100 * found['value']:+.2f} ± {50 * (found['high'] - found['low']):.2f}"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def with_section(page: str, section: str) -> str:
    """A page with what stands between its marks replaced, or with the section at its end."""
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n{section}\n"
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{PAGE} lacks the mark at the end"
    return before + section + after


def main() -> None:
    if not RESULT.exists():
        sys.exit(f"got no {RESULT.relative_to(REPOSITORY)}, need it; run benchmarks/accuracy.py")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    clouds = json.loads(CLOUDS.read_text(encoding="utf-8")) if CLOUDS.exists() else None
    try:
        section = section_text(result, NOTES.read_text(encoding="utf-8"), clouds)
    except MissingFigureError as error:
        sys.exit(str(error))
    page = with_section(PAGE.read_text(encoding="utf-8"), section)
    print(f"Written: {write_text_atomic(PAGE, page)}")


if __name__ == "__main__":
    main()
