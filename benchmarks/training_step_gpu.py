"""A training step of SpMiddleResNetFHD, forward and backward, beside the same network of spconv.

    python benchmarks/training_step_gpu.py --out step.json [--profile] [--peer none]

The frame is `nuscenes_voxels_79745.npz`, four times in one batch (a synthetic frame of that size
where it is absent; the result says so). A step takes features and coordinates on the device, builds
the kernel maps, computes the dense map in training mode and the gradient of every parameter for a
fixed cotangent; there is no optimizer in it. Before anything is timed, outputs and gradients of one
frame must agree with the reference backend's, and the peer's with ours. `wall` is the time of a
step from an idle device until its stream has done all of it, `busy` the sum of its kernels'
times.

The peer is spconv 2.3 with its own choice of algorithms, TF32 off as in this package, its kernels
compiled and its algorithms tuned in the warm-up. Both networks have the same batch norms.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from backbone_cpu import REAL_FRAME, SHAPE, load_frame
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from voxelquant.detection.backbone import SpMiddleResNetFHD
from voxelquant.detection.config_schema import BackboneConfig
from voxelquant.evaluation.latency import Latency, measure_latency
from voxelquant.numerics import relative_l2
from voxelquant.recipes.artifacts import provenance, to_jsonable, write_json_atomic
from voxelquant.recipes.machine import package_version
from voxelquant.sparse import ActiveSites, BackendChoice, SparseTensor, use_backend

CHANNELS = (16, 16, 32, 64, 128)
# Relative L2 of the dense map and of the worst gradient. A gradient passes ReLUs whose sign differs
# where both executions are almost zero: an error e of the activations flips some e of them, and the
# gradient errs by about its root. Against float32, one half-precision step has 2e-3 and 0.14.
GATES = {"fp32": (1e-4, 2e-2), "amp": (2e-2, 0.5)}


@dataclass(frozen=True)
class Batch:
    """What a step starts from, on the device."""

    features: Tensor  # [n, 5]
    coords_bzyx: Tensor  # [n, 4] int32
    size: int
    cotangent: Tensor  # [size, c, y, x], gradient of the dense map

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.features.device


Forward = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class StepCost:
    """What one step takes.

    Attributes:
        wall: time of a step.
        busy_ms: of it, the time in which kernels run; None on a CPU.
        peak_mib: most memory that tensors held; None on a CPU.
    """

    wall: Latency
    busy_ms: float | None
    peak_mib: float | None


def make_batch(features: Tensor, coords: Tensor, size: int, device: str) -> Batch:
    """One frame `size` times."""
    rows = coords.repeat(size, 1)
    rows[:, 0] = torch.arange(size, dtype=coords.dtype).repeat_interleave(len(coords))
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn((1, 2 * CHANNELS[-1], 180, 180), generator=generator)
    repeated = cotangent.repeat(size, 1, 1, 1).to(device)
    return Batch(features.repeat(size, 1).to(device), rows.to(device), size, repeated)


def own_forward(net: SpMiddleResNetFHD, backend: BackendChoice) -> Forward:
    def forward(batch: Batch) -> Tensor:
        with use_backend(backend):
            sites = ActiveSites(batch.coords_bzyx, SHAPE, batch.size)
            return net(SparseTensor(batch.features, sites))

    return forward


def spconv_forward(net: nn.Module) -> Forward:
    return lambda batch: net(batch.features, batch.coords_bzyx, batch.size)


def run_step(net: nn.Module, forward: Forward, batch: Batch, amp: bool) -> Tensor:
    """Forward and backward; leaves gradients in the parameters and returns the dense map."""
    net.zero_grad(set_to_none=True)
    kind = batch.device.type
    half = torch.float16 if kind == "cuda" else torch.bfloat16
    with torch.autocast(kind, half, enabled=amp):
        out = forward(batch)
    out.backward(batch.cotangent.to(out.dtype))
    return out.detach()


def assert_agreement(
    own: tuple[nn.Module, Forward], other: tuple[nn.Module, Forward], batch: Batch, precision: str
) -> dict[str, float]:
    """Relative L2 of the dense map and of the worst gradient; ends the run above the gate."""
    outputs, gradients = [], []
    for net, forward in (own, other):
        outputs.append(run_step(net, forward, batch, precision == "amp").float())
        gradients.append({name: p.grad.float() for name, p in net.named_parameters()})
    # A bias before a batch norm has no gradient but rounding.
    names = [name for name in gradients[0] if not name.endswith((".conv1.bias", ".conv2.bias"))]
    errors = {name: relative_l2(gradients[1][name], gradients[0][name]) for name in names}
    worst = max(errors, key=lambda name: errors[name])
    output = relative_l2(outputs[1], outputs[0])
    if not (output <= GATES[precision][0] and errors[worst] <= GATES[precision][1]):
        raise SystemExit(
            f"{precision}: got relative errors {output:.1e} of the output and {errors[worst]:.1e} "
            f"of the gradient of {worst}, need at most {GATES[precision]}"
        )
    return {"output": output, "worst_gradient": errors[worst]}


def measure_step(
    step: Callable[[], object], device: torch.device, runs: int, warmup: int
) -> StepCost:
    wall = measure_latency(step, device=device, warmup=warmup, repeats=runs)
    if device.type != "cuda":
        return StepCost(wall, None, None)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
    return StepCost(wall, profile_step(step)[0], peak_mib)


def profile_step(step: Callable[[], object], rows: int = 25) -> tuple[float, str]:
    """Time of all kernels of a step in ms, and the table of those that take most of it."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, acc_events=True) as profiled:
        step()
        torch.cuda.synchronize()
    averages = profiled.key_averages()
    kernels = [e for e in averages if e.device_type == torch.autograd.DeviceType.CUDA]
    table = averages.table(
        sort_by="self_device_time_total", row_limit=rows, max_name_column_width=70
    )
    return sum(event.self_device_time_total for event in kernels) / 1e3, table


def load_peer(wanted: str, state: dict[str, Tensor], device: str) -> nn.Module | None:
    """The network of spconv with the same weights; None where it is not wanted or not there."""
    if wanted == "none":
        return None
    try:
        from spconv_backbone import SpconvBackbone
    except ImportError as error:
        if wanted == "spconv":
            raise SystemExit(f"spconv cannot be imported ({error}); or say --peer none") from error
        print(f"no peer: spconv cannot be imported ({error})")
        return None
    net = SpconvBackbone(CHANNELS, SHAPE)
    net.load_state_dict(state)
    return net.train().to(device)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frame", type=Path, default=REAL_FRAME)
    parser.add_argument("--voxels", type=int, default=None, help="of the frame; default: all")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=["auto", "reference", "triton"], default="auto")
    parser.add_argument("--peer", choices=["auto", "none", "spconv"], default="auto")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print where the GPU's time goes")
    parser.add_argument("--commit", help="of this code; default: what git says of the checkout")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def measure(arguments: argparse.Namespace, features: Tensor, coords: Tensor) -> dict:
    net = SpMiddleResNetFHD(BackboneConfig(in_channels=5, channels=CHANNELS)).train()
    net = net.to(arguments.device)
    peer = load_peer(arguments.peer, net.state_dict(), arguments.device)
    one = make_batch(features, coords, 1, arguments.device)
    batch = make_batch(features, coords, arguments.batch, arguments.device)
    runners = {"voxelquant": (net, own_forward(net, arguments.backend))}
    twin = copy.deepcopy(net)
    witnesses = {"reference": (twin, own_forward(twin, "reference"))}
    if peer is not None:
        runners["spconv"] = witnesses["spconv"] = (peer, spconv_forward(peer))
    errors, costs = {}, {}
    for precision in ("fp32", "amp"):
        for name, witness in witnesses.items():
            agreement = assert_agreement(runners["voxelquant"], witness, one, precision)
            errors[f"{name}_{precision}"] = agreement
        for name, (model, forward) in runners.items():

            def step(model: nn.Module = model, forward: Forward = forward) -> Tensor:
                return run_step(model, forward, batch, precision == "amp")  # noqa: B023

            cost = measure_step(step, batch.device, arguments.runs, arguments.warmup)
            costs[f"{name}_{precision}"] = cost
            print(f"  {name} {precision}: {cost.wall}, busy {cost.busy_ms} ms, {cost.peak_mib} MiB")
            if arguments.profile and batch.device.type == "cuda":
                print(profile_step(step)[1])
    return {"step": costs, "relative_l2_against": errors}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.manual_seed(0)
    loaded = load_frame(arguments.frame)
    frame = loaded.name
    features = loaded.features[: arguments.voxels]
    coords = loaded.coords_bzyx[: arguments.voxels]
    print(f"{frame}, {len(coords)} voxels, batch {arguments.batch}")
    result = measure(arguments, features, coords)
    facts = {
        "frame": frame,
        "voxels": len(coords),
        "batch": arguments.batch,
        "backend": arguments.backend,
        "spconv": {
            name: version
            for name in ("spconv", "spconv-cu120", "spconv-cu126")
            if (version := package_version(name))
        },
    }
    origin = provenance(seed=0)
    origin |= {"commit": arguments.commit or origin["commit"]}
    write_json_atomic(arguments.out, {**facts, **to_jsonable(result), **origin})


if __name__ == "__main__":
    main()
