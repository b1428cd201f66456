"""Convolutions with what they must give: dense conv3d in float64, and a bound for every element."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.sparse_sites import dense_conv, gather, random_sites, scatter
from voxelquant.sparse import ConvGeometry, KernelMap, build_kernel_map, sparse_conv

Triple = tuple[int, int, int]
SHAPE = (7, 9, 11)
BATCH = 3  # sample 1 is empty
GEOMETRIES = {
    "subm": ConvGeometry((3, 3, 3), subm=True),
    "subm 1x1x1": ConvGeometry((1, 1, 1), subm=True),
    "subm dilated": ConvGeometry((3, 3, 3), dilation=(1, 2, 2), subm=True),
    "subm (3,1,5)": ConvGeometry((3, 1, 5), subm=True),
    "stride 2": ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "padding (0,1,1)": ConvGeometry((3, 3, 3), (2, 2, 2), (0, 1, 1)),
    "(3,1,1) in z": ConvGeometry((3, 1, 1), (2, 1, 1)),
    "1x1x1 stride 2": ConvGeometry((1, 1, 1), (2, 2, 2)),
    "even, overlapping": ConvGeometry((4, 2, 4), (2, 1, 2), (1, 1, 2)),
    "stride above kernel": ConvGeometry((2, 2, 2), (3, 3, 3), (0, 1, 0)),
}
# Unit roundoff of float32.
_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class ConvProblem:
    """Operands on the CPU, in their dtype."""

    coords: Tensor
    shape: Triple
    geometry: ConvGeometry
    features: Tensor
    weight: Tensor
    bias: Tensor
    seed: int

    def kernel_map(self, device: str) -> tuple[KernelMap, Tensor]:
        return build_kernel_map(self.coords.to(device), self.shape, BATCH, self.geometry)


def make_problem(
    name: str,
    n: int,
    channels: tuple[int, int],
    dtype: torch.dtype,
    *,
    shape: Triple = SHAPE,
    seed: int = 0,
) -> ConvProblem:
    """`n` sites at random in samples 0 and 2 of three, normal operands."""
    geometry = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(1000 * seed + n)
    c_in, c_out = channels

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    weight = normal(c_out, *geometry.kernel_size, c_in)
    coords = random_sites(n, shape, [0, 2], seed)
    return ConvProblem(coords, shape, geometry, normal(n, c_in), weight, normal(c_out), seed)


def assert_right(problem: ConvProblem, *, device: str = "cpu") -> None:
    """Hold the Triton backend's output and gradients against the dense convolution.

    The bound is that of `backends/triton/conv.py`, with the number of terms of every sum, and for
    half precision one rounding of the result.
    """
    found, cotangent = _run(problem, device)
    out_coords = problem.kernel_map("cpu")[1]
    exact = _dense(problem, out_coords, cotangent, torch.Tensor.double)
    magnitude = _dense(problem, out_coords, cotangent, lambda x: x.double().abs())
    taps, rows = problem.geometry.taps, len(out_coords)
    c_out, c_in = problem.weight.shape[0], problem.weight.shape[-1]
    # A weight's gradient sums its rows, then at most as many parts.
    terms = {
        "output": taps * c_in + 1,
        "features": taps * c_out,
        "weight": 2 * rows,
        "bias": rows,
    }
    for name, result in found.items():
        assert result.dtype == problem.features.dtype, f"{name}: {result.dtype}"
        bound = (3 * terms[name] + 12) * _ROUNDOFF * magnitude[name]
        if result.dtype != torch.float32:
            info = torch.finfo(result.dtype)
            smallest = info.tiny * info.eps  # spacing of subnormals
            bound = bound * (1 + info.eps) + info.eps / 2 * exact[name].abs() + smallest
        error = (result.cpu().double() - exact[name]).abs()
        assert (error <= bound).all(), f"{name}: {(error / bound).max():.2f} of the bound"


def _run(problem: ConvProblem, device: str) -> tuple[dict[str, Tensor], Tensor]:
    kernel_map, _ = problem.kernel_map(device)
    operands = [
        x.to(device).requires_grad_() for x in (problem.features, problem.weight, problem.bias)
    ]
    features, weight, bias = operands
    out = sparse_conv(features, weight, kernel_map, bias, backend="triton")
    generator = torch.Generator().manual_seed(problem.seed)
    cotangent = torch.randn(out.shape, generator=generator).to(out.dtype)
    grads = torch.autograd.grad(out, operands, cotangent.to(device))
    return dict(
        zip(("output", "features", "weight", "bias"), (out, *grads), strict=True)
    ), cotangent


def _dense(problem, out_coords, cotangent, convert) -> dict[str, Tensor]:
    """Output and gradients on the dense grid, of operands that `convert` took to float64."""
    operands = [
        convert(x).detach().requires_grad_()
        for x in (problem.features, problem.weight, problem.bias)
    ]
    features, weight, bias = operands
    geometry = problem.geometry
    dense = dense_conv(
        scatter(features, problem.coords, problem.shape, BATCH),
        weight,
        geometry.stride,
        geometry.effective_padding,
        geometry.dilation,
    )
    out = gather(dense, out_coords) + bias
    grads = torch.autograd.grad(out, operands, convert(cotangent))
    values = zip(("output", "features", "weight", "bias"), (out, *grads), strict=True)
    return {name: value.detach() for name, value in values}
