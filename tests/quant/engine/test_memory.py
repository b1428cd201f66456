"""Values in one piece of memory: what an operation reads is still there when it is read."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.quant.engine.memory import place_values
from voxelquant.quant.engine.program import AddOp, DenseOp, Program, ReluOp, Value, values_read

NO_MODULE: Any = None


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, list[int]]:
    """Sums and ReLUs of values made before, in any order; sizes of all values."""
    program = Program(values=[Value(0, 1, torch.float16)])
    for _ in range(draw(st.integers(1, 14))):
        made = len(program.values)
        known = st.integers(0, made - 1)
        kind = draw(st.sampled_from(("sum", "relu", "dense")))
        if kind == "dense":
            program.ops.append(DenseOp(draw(known), 0))
            continue
        if kind == "sum":
            program.ops.append(AddOp(NO_MODULE, draw(known), draw(known), made))
        else:
            program.ops.append(ReluOp(draw(known), made))
        program.values.append(Value(0, 1, torch.float16))
    count = len(program.values)
    return program, draw(st.lists(st.integers(1, 2000), min_size=count, max_size=count))


@given(programs())
def test_no_value_is_overwritten_while_it_is_needed(drawn: tuple[Program, list[int]]) -> None:
    program, sizes = drawn
    offsets, total = place_values(program, sizes)
    memory = [-1] * total

    def bytes_of(number: int) -> slice:
        return slice(offsets[number], offsets[number] + sizes[number])

    def write(number: int) -> None:
        assert offsets[number] + sizes[number] <= total
        memory[bytes_of(number)] = [number] * sizes[number]

    write(0)
    for op in program.ops:
        if not isinstance(op, DenseOp):
            write(op.out)
        # Checked after the result is there: a kernel writes while it still reads.
        for number in values_read(op):
            assert memory[bytes_of(number)] == [number] * sizes[number]
    assert len(memory) == total, "a value was written beyond the memory"
    assert all(offset % 256 == 0 for offset in offsets)


def test_a_chain_needs_two_places() -> None:
    program = Program(values=[Value(0, 1, torch.float16)] * 6)
    program.ops.extend(ReluOp(i, i + 1) for i in range(5))
    offsets, total = place_values(program, [1024] * 6)
    assert total == 2048
    assert offsets[0::2] == [offsets[0]] * 3
    assert offsets[1::2] == [offsets[1]] * 3
