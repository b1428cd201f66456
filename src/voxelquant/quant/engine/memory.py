"""Where the tensors between kernels lie: one piece of memory, reused after the last reader."""

from __future__ import annotations

from collections.abc import Sequence

from voxelquant.quant.engine.program import DenseOp, Program, values_read

_ALIGNMENT = 256


def place_values(program: Program, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offset of every value, and the bytes that hold them all.

    Values that are alive at the same time do not overlap. Largest first, each at the lowest free
    place (greedy by size; Pisarchyk 2020, 2001.03288, section 4.3).

    Args:
        program: operations in order.
        sizes: bytes of each value.
    """
    born = [0] * len(sizes)
    dies = [0] * len(sizes)
    for time, op in enumerate(program.ops):
        for number in values_read(op):
            dies[number] = max(dies[number], time)
        if not isinstance(op, DenseOp):
            born[op.out] = time
            dies[op.out] = time
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = 0
        rivals = [p for p in placed if born[p] <= dies[number] and born[number] <= dies[p]]
        for rival in sorted(rivals, key=lambda p: offsets[p]):
            if place + sizes[number] <= offsets[rival]:
                break
            end = offsets[rival] + sizes[rival]
            place = max(place, -(-end // _ALIGNMENT) * _ALIGNMENT)
        offsets[number] = place
        placed.append(number)
    total = max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)
    return offsets, total
