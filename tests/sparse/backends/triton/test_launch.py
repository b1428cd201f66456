"""Launches by what was compiled before: for the same types, constants and alignment alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from voxelquant.sparse.backends.triton.launch import Launcher

GRID = (3, 1, 1)


class RecordingKernel:
    """Compiles for what it is launched with, as a kernel of Triton does, and runs nothing."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, num_warps: int, num_stages: int) -> Any:
            self.compiled.append((arguments, num_warps, num_stages))
            return CompiledKernel(self, grid, arguments)[grid](*arguments)

        return launch


class CompiledKernel:
    def __init__(self, kernel: RecordingKernel, grid: Any, arguments: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.aligned = aligned(arguments)

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any) -> Any:
            assert not self.aligned or aligned(arguments)
            self.kernel.launched.append((grid, *arguments))
            return self

        return launch


def aligned(arguments: tuple[Any, ...]) -> bool:
    return all(x.data_ptr() % 16 == 0 for x in arguments if isinstance(x, Tensor))


@pytest.fixture
def kernel() -> RecordingKernel:
    return RecordingKernel()


def test_the_second_launch_compiles_nothing_and_passes_its_own_arguments(
    kernel: RecordingKernel,
) -> None:
    launch = Launcher(kernel)
    first, second = torch.zeros(8), torch.ones(16)
    launch(GRID, (first,), (8,), (True, "a"), warps=8, stages=2)
    launch((5, 2, 1), (second,), (16,), (True, "a"), warps=8, stages=2)
    assert len(kernel.compiled) == 1
    assert kernel.compiled[0][1:] == (8, 2)
    assert [call[0] for call in kernel.launched] == [GRID, (5, 2, 1)]
    assert kernel.launched[1][1] is second
    assert kernel.launched[1][2:] == (16, True, "a")


@pytest.mark.parametrize(
    ("tensor", "constants", "warps"),
    [(torch.zeros(8).half(), (3,), 4), (torch.zeros(8), (4,), 4), (torch.zeros(8), (3,), 8)],
    ids=["type", "constant", "warps"],
)
def test_another_kind_of_launch_is_compiled(
    kernel: RecordingKernel, tensor: Tensor, constants: tuple[int], warps: int
) -> None:
    launch = Launcher(kernel)
    launch(GRID, (torch.zeros(8),), (8,), (3,))
    launch(GRID, (tensor,), (8,), constants, warps=warps)
    assert len(kernel.compiled) == 2


def test_what_begins_anywhere_is_never_read_as_aligned(kernel: RecordingKernel) -> None:
    launch = Launcher(kernel)
    whole = torch.zeros(9)
    for tensor in (whole[1:], whole, whole[1:], whole):
        launch(GRID, (tensor,), (8,), ())
    assert len(kernel.compiled) == 3  # looked up by Triton both times that it began elsewhere
    assert len(kernel.launched) == 4


def test_a_grid_without_programs_is_not_launched(kernel: RecordingKernel) -> None:
    Launcher(kernel)((0, 1, 1), (torch.zeros(0),), (0,), ())
    assert kernel.compiled == []
