"""Write docs/performance.md and its pictures from the result of `voxelquant bench` on a GPU.

    python benchmarks/performance_page.py

Every figure of the text comes from benchmarks/results/backbone_gpu.json; one that is missing ends
the script. What was tried and lost is written by hand in benchmarks/performance_notes.md, where
figures may stand in braces too, as in `{backbone_ms.fp16:.2f}`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from performance_pictures import draw_pictures
from performance_tables import (
    Figures,
    MissingFigureError,
    bars_table,
    growth_table,
    memory_table,
    slowest_table,
    stage_table,
    times_table,
)

from voxelquant.digest import file_digest
from voxelquant.recipes.artifacts import write_text_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "backbone_gpu.json"
NOTES = REPOSITORY / "benchmarks" / "performance_notes.md"
DOCS = REPOSITORY / "docs"

# Of SpMiddleResNetFHD on the benchmark frame of 79,745 voxels: multiply-adds of pairs that exist,
# and the features and weights that each layer has to read and write once, in fp16.
GMAC, TRAFFIC_MB = 25.46, 169
# One H200, dense fp16 and memory: what the arithmetic and the traffic take at best.
PEAK_TFLOPS, BANDWIDTH_TBPS = 989, 4.8
BENCHMARK_VOXELS = 79_745
POLICY_IN_FP16 = ("conv_input.", "conv1.0.")  # of recipe `reference`

INTRODUCTION = """# How fast the sparse backbone is

<!-- Written by benchmarks/performance_page.py from benchmarks/results/backbone_gpu.json and \
benchmarks/performance_notes.md; do not edit. -->

The sparse backbone of {f.config.config} (SpMiddleResNetFHD, 21 convolutions) on one {f.gpu.name},
from voxel features and coordinates on the GPU to the dense map, kernel maps included. *Executed*,
not simulated; frame {f.frame.name}, {f.frame.voxels:,} voxels; driver {f.gpu.driver}, torch
{f.versions.torch}, Triton {f.versions.triton}, commit {f.commit}. Weights are fresh, which
does not change the time, and every engine had to agree with the reference backend before it was
timed ({checks} dense maps; int8 bit for bit where its fp16 layers sum exactly).

![Time of one frame by engine and by what it is spent on](pictures/performance_time.png)
"""

BEFORE = """## Where the time went

spconv, in the fastest of the ways to run it ({f.how.spconv_fp16}; batch norms folded, warm), takes
{f.backbone_ms.spconv_fp16:.2f} ms of wall time for a frame, and the GPU is busy for
{f.busy_ms.spconv_fp16:.2f} ms of them: {idle:.0%} of the time it waits for the host, which launches
{launches:.0f} kernels and copies, asks the GPU for the number of output sites of every level, and
allocates. The arithmetic, {gmac:.1f} G multiply-adds, takes such a chip {compute_ms:.2f} ms at its
peak, and reading and writing each layer's features and weights once {traffic_ms:.2f} ms.
Precision does not help with what the host does, so the host was taken out first.
"""

NOW = """## Where it goes now

One CUDA graph holds everything, planned for at most {f.max_voxels:,} voxels; the host hands over a
frame and launches it. int8 is the published policy (recipe `reference`: first convolution and first
block in fp16). fp16 takes {f.backbone_ms.fp16:.3f} ms ({fp16_speedup:.1f} times as fast as
spconv), int8 {f.backbone_ms.int8:.3f} ms ({int8_speedup:.1f} times). While fp16 runs,
the GPU is busy for {f.busy_ms.fp16:.3f} ms of those {f.backbone_ms.fp16:.3f} ms ({busy_share:.0%}).
Stages below are timed one by one, in order; *gaps* is the replay of the graph less their sum,
negative since in the graph a kernel begins while the one before it ends.
"""

LIMITS = """## What limits it

The convolutions of fp16 take {conv_ms:.3f} ms for {gmac:.1f} G multiply-adds: {tflops:.0f}
TFLOP/s, {peak_share:.0%} of the dense fp16 peak of an H100 or H200. What precision does not touch
(inputs, kernel maps, dense map) takes {fixed_ms:.3f} ms by itself, beside a replay of
{replay_ms:.3f} ms in all, and bounds what eight bits can win on one frame; int8 spends
{int8_conv_ms:.3f} ms in its convolutions. With a
cold second-level cache fp16 takes {cold_ms:.3f} ms. The slowest layers of fp16:

{slowest}
"""

GROWTH = """## Over the number of voxels

The frame cut to a sector or grown by mirrored copies of itself; sizes are{quantiles}. One plan,
that of the frame above, runs all of them.

![Time over the number of voxels, spconv and the planned engine](pictures/performance_voxels.png)

{table}
"""

BATCH = """## Eight frames at once

{table}

A batch holds the frame and its mirrored copies. fp16 takes
{f.throughput_b8_ms_per_frame.fp16:.3f} ms a frame in it, {batch_gain:.2f} times as fast as alone;
int8 {f.throughput_b8_ms_per_frame.int8:.3f} ms, {int8_over_fp16:.2f} times as fast as fp16; spconv
{f.throughput_b8_ms_per_frame.spconv_fp16:.2f} ms.
{stages}
## Memory

A plan allocates once. In MiB of 2²⁰ bytes (the bar above is in MB of 10⁶), for one frame of at most
{f.max_voxels:,} voxels, beyond what was allocated before. *Held* is what lives on once the plan is
made; a call that needs nothing more has it as its peak, and planning may take more for a while, to
tune. *By purpose* names the plan's own buffers; *held* counts whatever else planning left allocated
as well, and the allocator's rounding.

{memory}
"""

BATCH_STAGES = """Of all eight frames together, stages one by one:

{table}
The convolutions that the policy computes in int8 take {fp16_ms:.2f} ms in fp16 and {int8_ms:.2f} ms
in int8, {gain:.2f} times as fast. Kernel maps, inputs, dense map and the three convolutions that
stay in fp16 are {same_share:.0%} of what the stages of int8 take together: what eight bits win has
to be won beside them.
"""

REPEAT = """## To repeat it

```
pip install spconv-cu126==2.3.8
voxelquant bench --against spconv {options}--work-dir runs/bench
cp runs/bench/result.json benchmarks/results/backbone_gpu.json
python benchmarks/performance_page.py
```

`wall` is {f.method.wall}. `busy` is {f.method.busy}. Caches: {f.method.caches}.
"""


def page_text(result: dict[str, Any], notes: str) -> str:
    """The whole page.

    Raises:
        MissingFigureError: the result lacks a figure that the text needs.
    """
    f = Figures(result)
    derived = derived_figures(f)
    parts = [
        INTRODUCTION.format(f=f, **derived),
        bars_table(f, derived),
        BEFORE.format(f=f, **derived),
        NOW.format(f=f, **derived),
        stage_table(f, f.stages),
        LIMITS.format(f=f, slowest=slowest_table(f), **derived),
        GROWTH.format(quantiles=quantiles_in_words(f), table=growth_table(f)),
        BATCH.format(
            f=f, table=times_table(f), stages=batch_stages(f), memory=memory_table(f), **derived
        ),
        "## What was tried and lost\n\n" + notes.strip().format_map(f) + "\n",
        REPEAT.format(f=f, options=options_in_words(f)),
    ]
    return "\n".join(parts)


def derived_figures(f: Figures) -> dict[str, Any]:
    """What the text says beside the measured figures."""
    stages, wall, busy = f.stages.fp16, f.backbone_ms, f.busy_ms
    gmac = GMAC * f.frame.voxels / BENCHMARK_VOXELS
    conv_ms = stages.by_kind_ms.conv
    tflops = 2 * gmac / conv_ms
    batch = f.throughput_b8_ms_per_frame
    return {
        "checks": len(f.gate),
        "idle": 1 - busy.spconv_fp16 / wall.spconv_fp16,
        "launches": f.latency.spconv_fp16.timing.busy.launches,
        "gmac": gmac,
        "compute_ms": 2 * gmac / PEAK_TFLOPS,
        "traffic_ms": TRAFFIC_MB / BANDWIDTH_TBPS / 1e3 * f.frame.voxels / BENCHMARK_VOXELS,
        "fp16_speedup": wall.spconv_fp16 / wall.fp16,
        "int8_speedup": wall.spconv_fp16 / wall.int8,
        "busy_share": busy.fp16 / wall.fp16,
        "conv_ms": conv_ms,
        "int8_conv_ms": f.stages.int8.by_kind_ms.conv,
        "tflops": tflops,
        "peak_share": tflops / PEAK_TFLOPS,
        "replay_ms": stages.replay_ms,
        "fixed_ms": sum(stages.by_kind_ms[kind] for kind in stages.by_kind_ms) - conv_ms,
        "cold_ms": f.latency.fp16.timing.wall_cold.median_ms,
        "batch_gain": wall.fp16 / batch.fp16,
        "int8_over_fp16": batch.fp16 / batch.int8,
        "spconv_over_fp16_b8": batch.spconv_fp16 / batch.fp16,
        "spconv_over_int8_b8": batch.spconv_fp16 / batch.int8,
        "peak_mb": max(f.memory.fp16.peak, f.memory.int8.peak) / 1e6,
    }


def batch_stages(f: Figures) -> str:
    """Where the time of a batch goes; nothing where the result does not tell."""
    if f.optional("batch_stages") is None:
        return ""
    fp16, int8 = (quantized_ms(stages) for stages in (f.batch_stages.fp16, f.batch_stages.int8))
    everything = sum(stage["median_ms"] for stage in f.batch_stages.int8.each)
    return BATCH_STAGES.format(
        table=stage_table(f, f.batch_stages),
        fp16_ms=fp16,
        int8_ms=int8,
        gain=fp16 / int8,
        same_share=1 - int8 / everything,
    )


def quantized_ms(stages: Figures) -> float:
    """Time of the convolutions that the published policy computes in int8."""
    convs = [stage for stage in stages.each if stage["kind"] == "conv"]
    return sum(s["median_ms"] for s in convs if not s["name"].startswith(POLICY_IN_FP16))


def quantiles_in_words(f: Figures) -> str:
    source = f.config.optional("counts")
    return f" 10,000 and the quantiles of {source}" if source else " round numbers"


def options_in_words(f: Figures) -> str:
    files = {name: f.config.optional(name) for name in ("frame", "cloud", "counts")}
    return "".join(f"--{name} {value} " for name, value in files.items() if value)


def main() -> None:
    if not RESULT.exists() or not NOTES.exists():
        absent = RESULT if not RESULT.exists() else NOTES
        sys.exit(f"got no {absent.relative_to(REPOSITORY)}, need it; see this script's first lines")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    try:
        text = page_text(result, NOTES.read_text(encoding="utf-8"))
    except MissingFigureError as error:
        sys.exit(str(error))
    draw_pictures(result, DOCS / "pictures", file_digest(RESULT))
    print(f"Written: {write_text_atomic(DOCS / 'performance.md', text)} and its pictures.")


if __name__ == "__main__":
    main()
