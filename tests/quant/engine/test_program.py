"""What is read out of a lowered network: operations, levels, maps, values."""

import pytest
import torch

import voxelquant as vq
from voxelquant.errors import GraphError
from voxelquant.quant.engine.program import (
    AddOp,
    ConvertOp,
    ConvOp,
    DenseOp,
    Program,
    read_program,
)
from voxelquant.sparse import ConvGeometry, SparseSequential, SubMConv3d

GRID = (12, 9, 10)
DOWN = ConvGeometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
IN_PLACE = vq.Recipe(name="r", ranges="in_place")


def kinds(program: Program) -> list[str]:
    carries = [isinstance(op, ConvOp) and op.add is not None for op in program.ops]
    names = [type(op).__name__ for op in program.ops]
    return [f"{n} + sum" if c else n for n, c in zip(names, carries, strict=True)]


def test_a_residual_sum_is_carried_by_the_convolution_before_it(engine_of) -> None:
    engine = engine_of("residual", "reference")
    program = read_program(engine, GRID, 5)
    block = ["ConvOp", "ConvOp + sum"]
    assert kinds(program) == ["ConvOp", *block, "ConvOp", *block, "ConvOp", "DenseOp"]
    carried = program.ops[2]
    assert isinstance(carried, ConvOp)
    assert carried.conv is engine.get_submodule("conv1.0.conv2")
    assert carried.add is engine.get_submodule("conv1.0.add")
    assert carried.own_operand == 0
    first = program.ops[0]
    assert isinstance(first, ConvOp)
    assert carried.residual == first.out
    assert [level.spatial_shape for level in program.levels] == [GRID, (6, 5, 5), (2, 5, 5)]
    assert [level.parent for level in program.levels] == [None, 0, 1]
    assert len(program.maps) == 4  # one for each level's submanifold kernel, one for each step
    assert program.dense_shapes == [(32, 5, 5)]
    assert program.names[1] == "conv1.0.conv1"


def test_values_have_the_formats_of_the_policy(engine_of) -> None:
    program = read_program(engine_of("residual", "reference"), GRID, 5)
    stored = [program.values[op.out].dtype for op in program.ops if isinstance(op, ConvOp)]
    half, codes = torch.float16, torch.int8
    # The first block computes in fp16 and hands codes on; the last layer leaves in fp16.
    assert stored == [half, half, codes, codes, codes, codes, half]
    fp8 = read_program(engine_of("residual", "fp8"), GRID, 5)
    assert torch.float8_e4m3fn in {value.dtype for value in fp8.values}


def test_ranges_of_readers_need_conversions(engine_of) -> None:
    """A skip that passes two quantizers in turn is taken through both before a sum of its own."""
    program = read_program(engine_of("residual", IN_PLACE), GRID, 5)
    assert kinds(program).count("ConvertOp") == kinds(program).count("AddOp") == 2
    convert = next(op for op in program.ops if isinstance(op, ConvertOp))
    add = next(op for op in program.ops if isinstance(op, AddOp))
    assert len(convert.scales) == 2
    assert convert.out in (add.a, add.b)
    assert convert.codes == torch.int8


def test_raw_input_that_is_quantized_is_converted_first(engine_of) -> None:
    program = read_program(engine_of("residual", "every_layer"), GRID, 5)
    convert = program.ops[0]
    assert isinstance(convert, ConvertOp)
    assert convert.x == 0
    assert len(convert.scales) == 1
    assert program.values[convert.out].dtype == torch.int8
    assert program.names[0] == "conv_input.0/input"


def test_sums_that_no_convolution_can_carry_stand_alone(engine_of) -> None:
    """A sum of two convolutions is carried by the later; one tensor with itself by none."""
    program = read_program(engine_of("three readers", "int8"), GRID, 5)
    assert kinds(program) == [
        *["ConvOp"] * 2,
        "ConvOp + sum",
        "AddOp",
        "AddOp",
        "ConvOp",
        "DenseOp",
    ]
    twice = program.ops[4]
    assert isinstance(twice, AddOp)
    assert twice.a == twice.b
    carried = program.ops[2]
    assert isinstance(carried, ConvOp)
    assert carried.own_operand == 1


def test_an_inverse_convolution_leads_back_to_the_level_of_its_key(engine_of) -> None:
    program = read_program(engine_of("up and down", "int8"), GRID, 5)
    up = program.ops[2]
    assert isinstance(up, ConvOp)
    made = program.maps[up.map]
    assert (made.in_level, made.out_level, made.inverse) == (1, 0, True)
    assert made.geometry == DOWN
    assert program.values[up.out].level == 0


def test_convolutions_of_one_geometry_share_level_and_map(engine_of) -> None:
    program = read_program(engine_of("branches", "int8"), GRID, 5)
    left, right, other = (program.ops[i] for i in (1, 3, 5))
    assert isinstance(left, ConvOp)
    assert isinstance(right, ConvOp)
    assert isinstance(other, ConvOp)
    assert left.map == right.map != other.map
    assert [level.parent for level in program.levels] == [None, 0, 0]
    assert [op.output for op in program.ops if isinstance(op, DenseOp)] == [0, 1, 2]
    assert program.dense_shapes == [(48, 5, 5), (36, 5, 5), (24, 4, 5)]


def test_a_network_that_is_not_lowered_is_refused_by_name() -> None:
    net = SparseSequential(SubMConv3d(5, 8, 3))
    with pytest.raises(GraphError, match=r"^0: got a SubMConv3d .* plan the result of lower\(\)$"):
        read_program(net, GRID, 5)


def test_a_network_that_returns_sparse_tensors_is_refused(engine_of) -> None:
    engine = engine_of("residual", "int8")
    for headless in (engine.conv_input, torch.nn.Sequential(engine.conv_input, engine.conv1)):
        with pytest.raises(GraphError, match="got a network that returns sparse tensors"):
            read_program(headless, GRID, 5)
