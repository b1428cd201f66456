"""Where the rivals of `kernel_map_search.py` look: what sites reach, what taps see."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from search_problem import SearchProblem
from torch import Tensor

from voxelquant.sparse.backends.triton.site_index import LevelGrid

COLUMNS = 9  # most columns of a kernel
MAP_FIELDS = 23


def step_table(levels: tuple[LevelGrid, ...]) -> tuple[int, ...]:
    """`[levels, levels, 12]` flat: kernel, stride, padding and grid by axis of every step.

    The levels are a chain, as they are in the network of this benchmark.
    """
    table: list[int] = []
    for number in range(len(levels)):
        for level in levels[1 : number + 1]:
            g = level.geometry
            assert g is not None
            axes = (g.kernel_size, g.stride, g.padding, level.spatial_shape)
            for axis in zip(*axes, strict=True):
                table += axis
        table += [0] * (12 * (len(levels) - number))
    return tuple(table)


def level_table(levels: tuple[LevelGrid, ...], *by_level: list[int]) -> tuple[int, ...]:
    """`[levels, fields]` flat: numbers of a column, grid, most reached by axis, what is given.

    Args:
        levels: a chain.
        by_level: further fields, a number for each level.
    """
    table: list[int] = []
    reach = [1, 1, 1]
    for number, level in enumerate(levels):
        g = level.geometry
        if g is not None:
            pairs = zip(reach, g.kernel_size, g.stride, strict=True)
            reach = [(r + k - 2) // s + 1 for r, k, s in pairs]
        table += [1 << level.z_bits, *level.spatial_shape, *reach]
        table += [numbers[number] for numbers in by_level]
    return tuple(table)


def map_table(
    problem: SearchProblem, firsts: list[int], sizes: list[int], widths: list[int]
) -> Tensor:
    """`[maps, 23]` int64: what a look-up reads of its map.

    Args:
        problem: levels and maps.
        firsts: by level, where it begins in what is searched.
        sizes: by level, how long it is there.
        widths: by map, numbers that it holds for an output site.
    """
    rows, first_entry = [], 0
    for spec, width in zip(problem.specs, widths, strict=True):
        source, target = problem.levels[spec.in_level], problem.levels[spec.out_level]
        g = spec.geometry
        row = [spec.out_level, sum(problem.capacities[: spec.out_level]), target.capacity]
        row += [1 << target.z_bits, *target.spatial_shape[1:]]
        row += [1 << source.z_bits, *source.spatial_shape]
        row += [g.kernel_size[0], spec.columns, g.kernel_size[2], *g.stride, *g.effective_padding]
        row += [first_entry, spec.in_level, firsts[spec.in_level], sizes[spec.in_level]]
        assert len(row) == MAP_FIELDS
        rows.append(row)
        first_entry += width * target.capacity
    return torch.tensor(rows, dtype=torch.int64, device=problem.count.device)


@triton.jit
def read_coords(coords_ptr, count_ptr, BLOCK: tl.constexpr):
    """Rows of a program, which of them hold a voxel, and its coordinates."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < tl.load(count_ptr)
    b = tl.load(coords_ptr + rows * 4, mask=there, other=0)
    z = tl.load(coords_ptr + rows * 4 + 1, mask=there, other=0)
    y = tl.load(coords_ptr + rows * 4 + 2, mask=there, other=0)
    x = tl.load(coords_ptr + rows * 4 + 3, mask=there, other=0)
    return rows, there, b, z, y, x


@triton.jit
def reached_box(z, y, x, there, STEPS: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr):
    """Interval of cells of a level that sites of the input reach, by axis, and who reaches any."""
    z_lo, z_hi, y_lo, y_hi, x_lo, x_hi = z, z, y, y, x, x
    for step in tl.static_range(LEVEL):
        z_lo, z_hi = _reached_interval(z_lo, z_hi, STEPS, (LEVEL * LEVELS + step) * 12)
        y_lo, y_hi = _reached_interval(y_lo, y_hi, STEPS, (LEVEL * LEVELS + step) * 12 + 4)
        x_lo, x_hi = _reached_interval(x_lo, x_hi, STEPS, (LEVEL * LEVELS + step) * 12 + 8)
        there &= (z_lo <= z_hi) & (y_lo <= y_hi) & (x_lo <= x_hi)
    return z_lo, z_hi, y_lo, y_hi, x_lo, x_hi, there


@triton.jit
def _reached_interval(lo, hi, STEPS: tl.constexpr, AT: tl.constexpr):
    """Interval of outputs that an interval of inputs reaches along an axis."""
    KERNEL: tl.constexpr = STEPS[AT]
    STRIDE: tl.constexpr = STEPS[AT + 1]
    PADDING: tl.constexpr = STEPS[AT + 2]
    SIZE: tl.constexpr = STEPS[AT + 3]
    # Rounded up; what is below zero becomes zero all the same.
    first = tl.maximum(lo + (PADDING - KERNEL + STRIDE), 0) // STRIDE
    return first, tl.minimum((hi + PADDING) // STRIDE, SIZE - 1)


@triton.jit
def seen_column(spec_ptr, cell, number):
    """Column of the input that column `number` of a kernel sees from output cells.

    Returns its index, the z of the first tap, and whether the grid has that column.
    """
    out_bits = tl.load(spec_ptr + 3)
    out_y, out_x = tl.load(spec_ptr + 4), tl.load(spec_ptr + 5)
    in_y, in_x = tl.load(spec_ptr + 8), tl.load(spec_ptr + 9)
    kernel_x = tl.load(spec_ptr + 12)
    cell = cell.to(tl.int64)
    column = cell // out_bits
    line = column // out_x
    z = cell - column * out_bits
    x = (column - line * out_x) * tl.load(spec_ptr + 15) - tl.load(spec_ptr + 18)
    b = line // out_y
    y = (line - b * out_y) * tl.load(spec_ptr + 14) - tl.load(spec_ptr + 17)
    y += number // kernel_x
    x += number % kernel_x
    seen = (y >= 0) & (y < in_y) & (x >= 0) & (x < in_x)
    z0 = (z * tl.load(spec_ptr + 13) - tl.load(spec_ptr + 16)).to(tl.int32)
    return tl.where(seen, (b * in_y + y) * in_x + x, 0), z0, seen
