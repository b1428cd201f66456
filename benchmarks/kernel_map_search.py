"""Ways to find sites and neighbours on a GPU, and what each takes: why the engine uses bitmaps.

    python benchmarks/kernel_map_search.py --out search.json [--frame FILE] [--batch 1 8]

Sites of all five levels and the eight kernel maps of SpMiddleResNetFHD, from coordinates on the
device, without a question to the host, in one CUDA graph:

- `bitmap`: occupancy bits with the count of all bits before (`backends/triton/site_index.py`);
- `hash`: a hash table of cells, 27 look-ups (`search_hash.py`);
- `column_hash`: a hash table of columns, 9 look-ups (`search_column_hash.py`);
- `sorted`: sorted keys, a binary search for each column (`search_sorted.py`).

Every way must give the sites and pairs of the reference backend before anything is timed. Each is
planned twice: with the engine's default bound of voxels, and with the frame's own number, which a
plan cannot know, as the best that a smaller table or a shorter sort could do. Stages are graphs of
their own; `whole` is one graph of all; replays follow one another, so caches are warm. `order` puts
the features into the order of rows, which a hash of cells has no need of. On a CPU, in Triton's
interpreter, only the gate means anything.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from backbone_cpu import REAL_FRAME, SHAPE, convs_of, load_frame
from rich.console import Console
from rich.table import Table
from search_bitmap import BitmapSearch
from search_column_hash import ColumnHashSearch
from search_gate import Found, require_reference
from search_hash import HashSearch
from search_problem import Search, SearchProblem, make_problem
from search_sorted import SortedSearch

from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.evaluation.gpu_memory import measure_memory
from voxelquant.evaluation.gpu_timing import measure_busy, measure_events
from voxelquant.evaluation.latency import Latency, measure_latency
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.recipes.bench_frames import BenchFrame, batch_of, read_voxel_frame
from voxelquant.recipes.bench_result import gpu_facts

WAYS: dict[str, Callable[[SearchProblem], Search]] = {
    "bitmap": BitmapSearch,
    "hash": HashSearch,
    "column_hash": ColumnHashSearch,
    "sorted": SortedSearch,
}
MIB = 2**20
BETWEEN = 10  # replays in one timed interval: events alone cost as much as a short stage


@dataclass(frozen=True)
class SearchCost:
    """What one way takes on one frame or batch.

    Attributes:
        stages: time of each stage alone.
        whole: of all in one graph.
        launches: kernels, copies and memsets of the whole; None on a CPU.
        bytes_held: tables, sites and maps.
        bytes_peak: at most allocated while it was made and ran once; None on a CPU.
    """

    stages: dict[str, Latency]
    whole: Latency
    launches: float | None
    bytes_held: int
    bytes_peak: int | None


def capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of launches whose kernels are compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def run_all(search: Search) -> None:
    for launch in search.stages.values():
        launch()


def measure_on_gpu(search: Search, repeats: int, bytes_peak: int) -> SearchCost:
    # The whole first: a stage alone reads what the graph before it left in place.
    graph = capture(lambda: run_all(search))
    whole = measure_events(graph.replay, repeats=repeats, between=BETWEEN)
    busy = measure_busy(graph.replay)
    run_all(search)
    stages = {}
    for name, launch in search.stages.items():
        graph = capture(launch)
        stages[name] = measure_events(graph.replay, repeats=repeats, between=BETWEEN)
    launches = None if busy is None else busy.launches
    return SearchCost(stages, whole, launches, search.bytes, bytes_peak)


def measure_on_cpu(search: Search, repeats: int) -> SearchCost:
    def time_it(run: Callable[[], object]) -> Latency:
        return measure_latency(run, warmup=0, repeats=repeats)

    stages = {name: time_it(launch) for name, launch in search.stages.items()}
    return SearchCost(stages, time_it(lambda: run_all(search)), None, search.bytes, None)


def measure_way(
    name: str, problem: SearchProblem, frame: BenchFrame, repeats: int
) -> tuple[SearchCost, Found]:
    """Gate one way, then time it."""
    device = problem.count.device
    if device.type != "cuda":
        search = WAYS[name](problem)
        found = require_reference(name, search, problem, frame)
        return measure_on_cpu(search, repeats), found

    def make() -> Search:
        search = WAYS[name](problem)
        run_all(search)
        return search

    search, memory = measure_memory(make, device)
    found = require_reference(name, search, problem, frame)
    return measure_on_gpu(search, repeats, memory.peak), found


def measure_case(frame: BenchFrame, max_voxels: int, repeats: int, ways: Sequence[str]) -> dict:
    """All ways on one frame or batch with one bound."""
    net = SpMiddleResNetFHD(BackboneConfig(in_channels=5, channels=(16, 16, 32, 64, 128)))
    problem = make_problem(convs_of(net), frame, max_voxels)
    costs = {}
    for name in ways:
        costs[name], found = measure_way(name, problem, frame, repeats)
    return {
        "batch": frame.batch_size,
        "voxels": len(frame),
        "max_voxels": max_voxels,
        **asdict(found),
        "ways": to_jsonable(costs),
    }


def case_table(name: str, case: dict, device: str) -> Table:
    """One row a way: its stages, the whole, what it holds."""
    title = f"{name}: {case['voxels']:,} voxels, batch {case['batch']}, at most "
    title += f"{case['max_voxels']:,}; us on {device} (executed)"
    table = Table(title=title)
    table.add_column("way", no_wrap=True)
    for column in ("sites", "order", "maps", "whole", "p20..p80", "launches", "MiB", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for way, cost in case["ways"].items():
        stages = [cost["stages"].get(stage) for stage in ("sites", "order", "maps")]
        times = ["–" if s is None else f"{1e3 * s['median_ms']:.1f}" for s in stages]
        whole, peak, launches = cost["whole"], cost["bytes_peak"], cost["launches"]
        spread = f"{1e3 * whole['p20_ms']:.1f}..{1e3 * whole['p80_ms']:.1f}"
        table.add_row(
            way,
            *times,
            f"{1e3 * whole['median_ms']:.1f}",
            spread,
            "–" if launches is None else f"{launches:.0f}",
            f"{cost['bytes_held'] / MIB:.1f}",
            "–" if peak is None else f"{peak / MIB:.1f}",
        )
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=Path, default=REAL_FRAME, help="default: real or synthetic")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="its grid z, y, x")
    parser.add_argument("--max-voxels", type=int, default=160_000, help="bound of one frame")
    parser.add_argument(
        "--bounds", nargs="+", choices=["bound", "exact"], default=["bound", "exact"]
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--commit", help="of this code; default: what git says of the checkout")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    shape = tuple(arguments.shape)
    frame = (
        load_frame(arguments.frame)
        if shape == SHAPE
        else read_voxel_frame(arguments.frame, 5, shape)
    )
    gpu = gpu_facts(arguments.device)
    where = "a CPU, interpreted" if gpu is None else gpu["name"]
    console = Console(width=100)  # a log has no width of its own
    cases = {}
    for batch_size in arguments.batch:
        batch = batch_of(frame, batch_size).to(arguments.device)
        for kind in arguments.bounds:
            bound = arguments.max_voxels if kind == "bound" else len(frame)
            case = measure_case(batch, bound * batch_size, arguments.repeats, arguments.ways)
            cases[f"b{batch_size}_{kind}"] = case
            console.print(case_table(f"b{batch_size}_{kind}", case, where))
    origin = provenance()
    result = {"frame": frame.name, "voxels": len(frame), "shape": shape, "cases": cases}
    result |= {"gpu": gpu, **origin, "commit": arguments.commit or origin["commit"]}
    write_json_atomic(arguments.out, result)


if __name__ == "__main__":
    main()
