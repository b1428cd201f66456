"""SpMiddleResNetFHD on a CPU, one real frame, kernel maps included: where the time goes.

    python benchmarks/backbone_cpu.py [--frame FILE] [--threads 2] [--runs 15]

The frame is `nuscenes_voxels_79745.npz` (79,745 voxels of ten sweeps). Without it a synthetic frame
of the same size is used, and the result says so. The peer is the plain way to write this in torch:
keys searched in sorted keys for each of the 27 taps, then gather, GEMM and `index_add_` by tap. It
must agree with our output before anything is timed.

What was tried on 2 cores of an AMD EPYC with torch 2.13, and lost (one thread, the 17 submanifold
convolutions without their maps, gather and products of all pairs alone: 0.8 s):

- scatter-add by tap over all rows (`index_add_` with int64 rows; int32 rows are eight times slower,
  they miss torch's sorted path): 1.34 s, since every tap goes through all outputs again. Finishing
  some thousand output rows at a time and summing their products with `embedding_bag`: 1.01 s.
- the same without chunks, all pairs of a convolution at once: 1.87 s; products leave the cache.
- neighbourhoods side by side and one GEMM (the form for GPUs): 2.15 s; half to three quarters of
  the columns are zeros.
- oneDNN instead of MKL GEMMs: a tenth faster, but only through private operators; as 1x1
  convolutions half as fast.
- fresh buffers for every chunk: page faults cost more than the gather.
- a search in sorted keys for 13 taps and mirrored pairs for the rest: 64 ms a map, five searches by
  column 24 ms, the block table 12 ms for all 27 taps.
- a dense table of the grid: 340 MB for one frame, most of the time spent on fresh pages.
- rows scattered into a channels-last grid that is then permuted: 40 ms, channels first 5 ms.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from voxelquant.detection.backbone import SparseResidualBlock, SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.detection.detector import CenterPoint
from voxelquant.evaluation.latency import Latency, measure_latency
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.recipes.bench_frames import (
    BenchFrame,
    read_voxel_frame,
    resize_frame,
    voxelize_frame,
)
from voxelquant.recipes.frame_files import FrameChoice, choose_cloud
from voxelquant.recipes.machine import usable_cores
from voxelquant.sparse import (
    ConvGeometry,
    SparseConvBase,
    SparseTensor,
    sparse_conv,
    sparse_conv_int8,
)
from voxelquant.sparse.backends.reference import chunk_rows

SHAPE = (41, 1440, 1440)
VOXELS = 79_745
ROOT = Path(__file__).resolve().parents[1]
REAL_FRAME = ROOT.parent / "shared" / "data" / "nuscenes_voxels_79745.npz"
SYNTHETIC = "synthetic"  # name of the frame where there is no real one


def load_frame(path: Path) -> BenchFrame:
    """The frame of the file, or one of the synthetic world with as many voxels."""
    if path.exists():
        return read_voxel_frame(path, 5, SHAPE)
    detector = CenterPoint.from_config("centerpoint_voxel0075")
    cloud = choose_cloud(detector.config, FrameChoice())
    return resize_frame(voxelize_frame(detector, cloud, SYNTHETIC), VOXELS)


def existing_file(text: str) -> Path:
    """A file that a user names: no other frame takes its place."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"got no file {text}")
    return Path(text)


def keep_real_result(out: Path, frame: BenchFrame) -> None:
    """End the script where a synthetic frame's result would take the place of a real one's."""
    if frame.name != SYNTHETIC or not out.exists():
        return
    kept = json.loads(out.read_text(encoding="utf-8"))["frame"]
    if kept != SYNTHETIC:
        sys.exit(
            f"got a synthetic frame, and {out} is of {kept}: name the real one with --frame, or "
            "another file with --out"
        )


class NaiveSites:
    """The peer's sites: sorted keys, and its kernel maps by geometry."""

    def __init__(self, coords: Tensor, shape: tuple[int, int, int]) -> None:
        self.coords, self.shape = coords.long(), shape
        self.maps: dict[ConvGeometry, tuple] = {}

    def keys(self, coords: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Row-major index of every coordinate."""
        b, z, y, x = coords.unbind(1)
        return ((b * shape[0] + z) * shape[1] + y) * shape[2] + x

    def map_of(self, geometry: ConvGeometry) -> tuple:
        """Output sites and one pair of row lists for each tap, kept."""
        if geometry not in self.maps:
            self.maps[geometry] = self._search(geometry)
        return self.maps[geometry]

    def _search(self, geometry: ConvGeometry) -> tuple["NaiveSites", list[tuple[Tensor, Tensor]]]:
        shape = geometry.output_shape(self.shape)
        stride, padding, dilation = (
            torch.tensor(v)
            for v in (geometry.stride, geometry.effective_padding, geometry.dilation)
        )
        reached = []
        for tap in geometry.tap_offsets:
            shifted = self.coords[:, 1:] + padding - dilation * torch.tensor(tap)
            place = shifted.div(stride, rounding_mode="floor")
            valid = (place * stride == shifted) & (place >= 0) & (place < torch.tensor(shape))
            rows = valid.all(1).nonzero().squeeze(1)
            out = torch.cat([self.coords[rows, :1], place[rows]], 1)
            reached.append((rows, self.keys(out, shape)))
        if geometry.subm:
            sites, keys = self, self.keys(self.coords, shape)
        else:
            keys = torch.unique(torch.cat([k for _, k in reached]))
            places = [keys // (shape[0] * shape[1] * shape[2])]
            places += [keys // (shape[1] * shape[2]) % shape[0], keys // shape[2] % shape[1]]
            sites = NaiveSites(torch.stack([*places, keys % shape[2]], 1), shape)
        ordered, order = keys.sort()
        pairs = []
        for rows, out_keys in reached:
            place = torch.searchsorted(ordered, out_keys).clamp_(max=len(ordered) - 1)
            found = ordered[place] == out_keys
            pairs.append((rows[found], order[place[found]]))
        return sites, pairs


def naive_conv(
    conv: SparseConvBase, features: Tensor, sites: NaiveSites
) -> tuple[Tensor, NaiveSites]:
    out_sites, pairs = sites.map_of(conv.geometry)
    taps = conv.weight.flatten(1, 3)
    out = features.new_zeros((len(out_sites.coords), conv.out_channels))
    for tap, (in_rows, out_rows) in enumerate(pairs):
        out.index_add_(0, out_rows, features[in_rows] @ taps[:, tap].t())
    return (out if conv.bias is None else out + conv.bias), out_sites


def naive_layers(module: nn.Module, x: Tensor, sites: NaiveSites) -> tuple[Tensor, NaiveSites]:
    if isinstance(module, SparseConvBase):
        return naive_conv(module, x, sites)
    if isinstance(module, SparseResidualBlock):
        y, _ = naive_conv(module.conv1, x, sites)
        y, _ = naive_conv(module.conv2, module.bn1(y).relu(), sites)
        return (module.bn2(y) + x).relu(), sites
    if isinstance(module, nn.Sequential):
        for layer in module:
            x, sites = naive_layers(layer, x, sites)
        return x, sites
    return module(x), sites


def naive_backbone(net: SpMiddleResNetFHD, features: Tensor, coords: Tensor) -> Tensor:
    sites = NaiveSites(coords, SHAPE)
    for stage in (net.conv_input, net.conv1, net.conv2, net.conv3, net.conv4, net.extra_conv):
        features, sites = naive_layers(stage, features, sites)
    b, z, y, x = sites.coords.unbind(1)
    dense = features.new_zeros((1, *sites.shape, features.shape[1]))
    dense[b, z, y, x] = features
    return dense.permute(0, 4, 1, 2, 3).flatten(1, 2).contiguous()


def convs_of(net: nn.Module) -> list[SparseConvBase]:
    return [m for m in net.modules() if isinstance(m, SparseConvBase)]


def build_maps(net: nn.Module, features: Tensor, coords: Tensor) -> list[tuple]:
    """Every kernel map in the form that the convolutions read; convs come in execution order."""
    sites = SparseTensor.from_coords(features, coords, SHAPE, 1).sites
    problems = []
    for conv in convs_of(net):
        kernel_map, sites = sites.kernel_map(conv.geometry)
        kernel_map.output_chunks(chunk_rows(conv.in_channels, conv.out_channels))
        problems.append((conv, kernel_map))
    return problems


def measure(net: SpMiddleResNetFHD, features: Tensor, coords: Tensor, runs: int) -> dict:
    def forward() -> Tensor:
        return net(SparseTensor.from_coords(features, coords, SHAPE, 1))

    def time_it(run: Callable[[], object], repeats: int = runs) -> Latency:
        return measure_latency(run, warmup=2, repeats=repeats)

    torch.testing.assert_close(
        forward(), naive_backbone(net, features, coords), rtol=1e-3, atol=1e-4
    )
    problems = build_maps(net, features, coords)
    floats = [torch.randn(m.n_in, c.in_channels) for c, m in problems]
    codes = [torch.randint(-128, 128, f.shape, dtype=torch.int8) for f in floats]
    weights = [torch.randint(-40, 41, c.weight.shape, dtype=torch.int8) for c, _ in problems]

    def float_convs() -> None:
        for (conv, kernel_map), x in zip(problems, floats, strict=True):
            sparse_conv(x, conv.weight, kernel_map, conv.bias)

    def int8_convs() -> None:
        for (_, kernel_map), x_q, w_q in zip(problems, codes, weights, strict=True):
            sparse_conv_int8(x_q, w_q, kernel_map)

    timed = {
        "backbone": time_it(forward),
        "maps": time_it(lambda: build_maps(net, features, coords)),
        "convs_fp32": time_it(float_convs),
        "convs_int8": time_it(int8_convs),
    }
    # Before the peer runs: the peak of the process is ours.
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    peer = time_it(lambda: naive_backbone(net, features, coords), max(runs // 3, 3))
    rest_ms = timed["backbone"].median_ms - timed["maps"].median_ms - timed["convs_fp32"].median_ms
    return {
        "latency": {**timed, "naive_peer": peer},
        "rest_ms": rest_ms,
        "peak_memory_mib": peak_mib,
        "peer_over_ours": peer.median_ms / timed["backbone"].median_ms,
        "int8_over_fp32": timed["convs_int8"].median_ms / timed["convs_fp32"].median_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=existing_file, default=REAL_FRAME)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/backbone_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    frame = load_frame(arguments.frame)
    keep_real_result(arguments.out, frame)
    features, coords = frame.features, frame.coords_bzyx
    net = SpMiddleResNetFHD(BackboneConfig(in_channels=5, channels=(16, 16, 32, 64, 128))).eval()
    cpu_share = -time.process_time(), -time.perf_counter()
    with torch.no_grad():
        result = measure(net, features, coords, arguments.runs)
    cpu_s, wall_s = cpu_share[0] + time.process_time(), cpu_share[1] + time.perf_counter()
    print(f"{frame.name}, {len(coords)} voxels, {arguments.threads} threads")
    for name, latency in result["latency"].items():
        print(f"  {name:12} {latency}")
    print(f"  peer takes {result['peer_over_ours']:.1f} times as long", end="; ")
    print(f"int8 convs {result['int8_over_fp32']:.2f} of fp32; {result['peak_memory_mib']} MiB")
    # Near 1 only when nobody else wanted the cores: threads that wait for one another spin.
    facts = {"cores_obtained": cpu_s / wall_s / arguments.threads}
    print(f"  {facts['cores_obtained']:.2f} of the threads' time was spent on a core")
    facts |= {"frame": frame.name, "voxels": len(coords), "threads": arguments.threads}
    write_json_atomic(arguments.out, {**facts, **to_jsonable(result), **provenance(seed=0)})
    print(f"Written: {arguments.out}")


if __name__ == "__main__":
    main()
