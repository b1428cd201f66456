"""The reference's quantized backbone, restated: sites in a dictionary, features overwritten.

Independent of the package: brute-force convolutions over Python dictionaries in float64, and a
tensor object that a quantized convolution overwrites, as the reference does. One thing is stated
otherwise: layers that the reference leaves unquantized are rounded to fp16, weights and tensors,
since that is how they are stored and deployed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Site = tuple[int, int, int]
DISABLED = ("conv_input.0", "conv1.0.conv1", "conv1.0.conv2", "conv1.0.quant_add")
STRIDES = {
    "conv2.0": ((2, 2, 2), (1, 1, 1)),
    "conv3.0": ((2, 2, 2), (1, 1, 1)),
    "conv4.0": ((2, 2, 2), (0, 1, 1)),
    "extra_conv.0": ((2, 1, 1), (0, 0, 0)),
}


class Features:
    """A sparse tensor whose features can be overwritten, and all who hold it see it."""

    def __init__(self, name: str, sites: list[Site], grid: Site, values: Array) -> None:
        self.name, self.sites, self.grid, self.values = name, sites, grid, values


def fake_quantized(x: Array, amax: Array) -> Array:
    scale = (np.float32(amax) / np.float32(127)).astype(np.float32)
    codes = np.clip(np.rint(x.astype(np.float32) / scale), -128, 127)
    return (codes * scale).astype(np.float32).astype(np.float64)


def half(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float64)


@dataclass
class Made:
    """What a layer made, before a reader overwrites it.

    Attributes:
        inputs: names of the layers whose tensors it read, unquantized.
        sites: cells (z, y, x) of the rows.
        grid: cells of the grid.
        values: the result, its ReLU included.
        reach: sum of the magnitudes of the terms of each element.
    """

    inputs: tuple[str, ...]
    sites: list[Site]
    grid: Site
    values: Array
    reach: Array


class ReferenceBackbone:
    """Runs a fused, quantized state dict; `made` keeps what every layer made."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
        self.made: dict[str, Made] = {}
        self.summed: dict[str, tuple[Array, Array]] = {}  # what each sum really adds

    def __call__(self, sites: list[Site], grid: Site, values: Array) -> Features:
        x = self._conv("conv_input.0", Features("@input", sites, grid, half(values)), relu=True)
        for stage, first, blocks in (
            ("conv1", None, (0, 1)),
            ("conv2", 0, (2, 3)),
            ("conv3", 0, (2, 3)),
            ("conv4", 0, (2, 3)),
        ):
            if first is not None:
                x = self._conv(f"{stage}.{first}", x, relu=True)
            for block in blocks:
                x = self._block(f"{stage}.{block}", x)
        return self._conv("extra_conv.0", x, relu=True)

    def _block(self, path: str, x: Features) -> Features:
        identity = x  # the same object: conv1 overwrites it below
        out = self._conv(f"{path}.conv1", x, relu=True)
        out = self._conv(f"{path}.conv2", out, relu=False)
        name = f"{path}.quant_add"
        a, b = out.values, identity.values
        if name not in DISABLED:
            amax = self.weights[f"{name}._input_quantizer._amax"]
            a, b = fake_quantized(a, amax), fake_quantized(b, amax)
        self.summed[name] = (a, b)
        total = (a.astype(np.float32) + b.astype(np.float32)).astype(np.float64)
        result = Features(name, x.sites, x.grid, np.maximum(total, 0.0))
        return self._keep(result, (out.name, identity.name), np.abs(a) + np.abs(b))

    def _conv(self, path: str, x: Features, *, relu: bool) -> Features:
        weight, bias = self._weight(path)
        if path not in DISABLED:
            x.values = fake_quantized(x.values, self.weights[f"{path}._input_quantizer._amax"])
        values, sites, grid = self._convolve(path, x.values, x, weight)
        reach, _, _ = self._convolve(path, np.abs(x.values), x, np.abs(weight))
        values = values + bias
        if relu:
            values = np.maximum(values, 0.0)
        if path in DISABLED or path == "extra_conv.0":
            values = half(values)
        return self._keep(Features(path, sites, grid, values), (x.name,), reach + np.abs(bias))

    def _weight(self, path: str) -> tuple[Array, Array]:
        weight = self.weights[f"{path}.weight"]
        if path == "conv_input.0":
            norm = {k: self.weights[f"conv_input.1.{k}"] for k in ("weight", "bias")}
            mean, var = (self.weights[f"conv_input.1.running_{k}"] for k in ("mean", "var"))
            factor = norm["weight"] / np.sqrt(var + 1e-3)
            folded = weight * factor.reshape(-1, 1, 1, 1, 1)
            return half(folded), half(norm["bias"] - mean * factor)
        bias = self.weights[f"{path}.bias"]
        if path in DISABLED:
            return half(weight), half(bias)
        return fake_quantized(weight, self.weights[f"{path}._weight_quantizer._amax"]), bias

    def _convolve(
        self, path: str, given: Array, x: Features, weight: Array
    ) -> tuple[Array, list[Site], Site]:
        row_of = {site: row for row, site in enumerate(x.sites)}
        taps = list(np.ndindex(*weight.shape[1:4]))
        kernel = weight.shape[1:4]
        if path in STRIDES:
            stride, padding = STRIDES[path]
            grid = tuple(
                (size + 2 * p - k) // s + 1
                for size, p, k, s in zip(x.grid, padding, kernel, stride, strict=True)
            )
            sites = sorted(
                {
                    out
                    for site in x.sites
                    for tap in taps
                    if (out := _output_of(site, tap, stride, padding, grid)) is not None
                }
            )
        else:
            stride, padding, grid, sites = (1, 1, 1), (1, 1, 1), x.grid, x.sites
        values = np.zeros((len(sites), weight.shape[0]))
        for row, out in enumerate(sites):
            for tap in taps:
                site = tuple(
                    o * s - p + t for o, s, p, t in zip(out, stride, padding, tap, strict=True)
                )
                if site in row_of:
                    values[row] += weight[(slice(None), *tap)] @ given[row_of[site]]
        return values, sites, grid

    def _keep(self, x: Features, inputs: tuple[str, ...], reach: Array) -> Features:
        self.made[x.name] = Made(inputs, x.sites, x.grid, x.values, reach)
        return x


def _output_of(site: Site, tap: Site, stride: Site, padding: Site, grid: Site) -> Site | None:
    out = []
    for at, t, s, p, size in zip(site, tap, stride, padding, grid, strict=True):
        cell, rest = divmod(at + p - t, s)
        if rest or not 0 <= cell < size:
            return None
        out.append(cell)
    return (out[0], out[1], out[2])
