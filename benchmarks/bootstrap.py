"""How long a paired bootstrap over frames takes; matches are made up.

    python benchmarks/bootstrap.py

Two detectors on 600 frames with 250 detections each, of all ten classes: as many as a detector
reports on nuScenes at a score threshold of 0.1. 1,000 resamples of the frames, mAP and NDS of both
in each. One thread.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from nuscenes.eval.common.config import config_factory

from voxelquant.evaluation.bootstrap import paired_difference
from voxelquant.evaluation.matching import ClassMatches, Matches
from voxelquant.evaluation.nuscenes import PROTOCOL
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic

FRAMES, DETECTIONS, OBJECTS, RESAMPLES = 600, 250, 50, 1000
OUT = Path(__file__).resolve().parent / "results" / "bootstrap_cpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    first, second = (make_matches(seed) for seed in (0, 1))
    started = time.perf_counter()
    difference = paired_difference(first, second, resamples=RESAMPLES)
    seconds = time.perf_counter() - started
    print(f"{RESAMPLES} resamples of {FRAMES} frames: {seconds:.1f} s")
    size = {"frames": FRAMES, "detections_a_frame": DETECTIONS, "resamples": RESAMPLES}
    result = {**size, "seconds": seconds, "difference": to_jsonable(difference)}
    write_json_atomic(arguments.out, {**result, **provenance()})


def make_matches(seed: int) -> Matches:
    """Detections that are the likelier right the higher their score, and the wider the limit."""
    config = config_factory(PROTOCOL)
    rng = np.random.default_rng(seed)
    classes = {name: _make_class(rng) for name in config.class_names}
    return Matches(tuple(str(frame) for frame in range(FRAMES)), classes, config)


def _make_class(rng: np.random.Generator) -> ClassMatches:
    n = FRAMES * DETECTIONS // 10
    scores = np.sort(rng.uniform(0.1, 1.0, n))[::-1]
    luck = rng.random(n) / scores
    matched = np.stack([luck < share for share in (0.2, 0.25, 0.3, 0.35)])
    errors = np.full((n, 5), np.nan)
    errors[matched[2]] = rng.random((int(matched[2].sum()), 5))
    objects = rng.poisson(OBJECTS / 10, FRAMES)
    return ClassMatches(scores, rng.integers(FRAMES, size=n), matched, errors, objects)


if __name__ == "__main__":
    main()
