"""What a run hands out, and which frames and files it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from voxelquant.errors import ExportError, GeometryError
from voxelquant.export import FileRunner, serialize
from voxelquant.export.ir import SparseConvolution


def test_dense_tail(residual_graph, frame) -> None:
    run = FileRunner(serialize(residual_graph))(*frame)
    sparse, dense = run.nodes["conv3"], run.outputs["8"].features
    assert dense.shape == (1, 160, 12, 12)
    assert dense.dtype == torch.float16
    assert run.outputs["8"].coords_bzyx is None
    folded = torch.zeros_like(dense)
    for row, (_, z, y, x) in zip(sparse.features, sparse.coords_bzyx.tolist(), strict=True):
        folded[0, torch.arange(32) * 5 + z, y, x] = row
    assert torch.equal(dense, folded)


def test_outputs_are_found_by_node_and_by_module(residual_graph, frame) -> None:
    run = FileRunner(serialize(residual_graph))(*frame)
    assert list(run.nodes) == [node.name for node in residual_graph.nodes]
    assert run.by_module["net.2"] is run.nodes["conv2"]
    assert run.nodes["conv1"].features.dtype == torch.int8
    assert run.nodes["conv3"].scale is None


def test_an_xyz_file_computes_the_same(inverse_graph, frame) -> None:
    def turn(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[::-1]

    triples = ("kernel_size", "stride", "padding", "dilation")
    shapes = ("input_spatial_shape", "output_spatial_shape")
    nodes, values = [], dict(inverse_graph.initializers)
    for node in inverse_graph.nodes:
        if isinstance(node, SparseConvolution):
            values[node.inputs[1]] = values[node.inputs[1]].transpose(0, 3, 2, 1, 4)
            turned = {key: turn(getattr(node, key)) for key in (*triples, *shapes)}
            nodes.append(replace(node, **turned))
        elif node.name == "scatter0":
            turned = {"input_spatial_shape": (12, 12, 5), "output_shape": (1, 16, 12, 12, 5)}
            nodes.append(replace(node, format="xyz", **turned))
        else:
            nodes.append(node)
    file = serialize(replace(inverse_graph, nodes=tuple(nodes), initializers=values))
    zyx, xyz = FileRunner(serialize(inverse_graph))(*frame), FileRunner(file)(*frame)
    dense = xyz.nodes["scatter0"].features.permute(0, 1, 4, 3, 2)
    # Taps are summed in another order: float32 sums differ in their last bits before rounding.
    torch.testing.assert_close(dense, zyx.nodes["scatter0"].features, rtol=2**-10, atol=2**-14)
    assert torch.equal(xyz.outputs["5"].coords_bzyx, zyx.outputs["5"].coords_bzyx)


def test_empty_frame_gives_an_empty_map(residual_graph, frame) -> None:
    features, coords, grid = frame
    run = FileRunner(serialize(residual_graph))(features[:0], coords[:0], grid)
    assert run.nodes["conv2"].features.shape == (0, 16)
    assert not run.outputs["8"].features.any()


def test_one_voxel_runs(residual_graph, frame) -> None:
    features, coords, grid = frame
    run = FileRunner(serialize(residual_graph))(features[:1], coords[:1], grid)
    assert run.nodes["conv2"].features.shape == (1, 16)
    assert run.outputs["8"].features.isfinite().all()


def test_more_voxels_than_the_bound_are_never_dropped(residual_graph, frame) -> None:
    features, coords, grid = frame
    conv = replace(residual_graph.convs[1], output_bound=250, output_shape=(250, 16))
    nodes = tuple(conv if node.name == "conv1" else node for node in residual_graph.nodes)
    runner = FileRunner(serialize(replace(residual_graph, nodes=nodes)))
    with pytest.raises(ExportError, match=r"conv1: got 300 output voxels, output_bound is 250"):
        runner(features, coords, grid)
    runner(features[:250], coords[:250], grid)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, c, g: (f[:, :4], c, g), r"features \[300, 4\], the file needs \[n, 5\]"),
        (lambda f, c, g: (f, c[:10], g), r"coordinates \[10, 4\]"),
        (lambda f, c, g: (f, c.float(), g), "integers"),
        (lambda f, c, g: (f, c + 9, g), "coordinates from"),
        (lambda f, c, g: (f, c - 1, g), "coordinates from"),
        (lambda f, c, g: (f, c[:1].expand(300, 4), g), "repeated coordinates"),
        (lambda f, c, g: (f, c + torch.tensor([1, 0, 0, 0]), g), "coordinates from"),
        (lambda f, c, g: (f * float("nan"), c, g), "NaN or beyond float16"),
        (lambda f, c, g: (f * 1e6, c, g), "NaN or beyond float16"),
        (lambda f, c, g: (f, c, (9, 24, 26)), r"scatter0: got a frame that ends on grid"),
    ],
)
def test_a_frame_that_does_not_fit_is_one_clear_error(spoil, message, residual_graph, frame):
    runner = FileRunner(serialize(residual_graph))
    with pytest.raises(GeometryError, match=message) as raised:
        runner(*spoil(*frame))
    assert "\n" not in str(raised.value)


def test_inputs_are_not_changed(residual_graph, frame) -> None:
    before = [frame[0].clone(), frame[1].clone()]
    FileRunner(serialize(residual_graph))(*frame)
    assert torch.equal(frame[0], before[0])
    assert torch.equal(frame[1], before[1])


def test_a_defective_file_is_not_executed(residual_graph) -> None:
    conv = replace(residual_graph.convs[1], input_dynamic_range=None)
    nodes = tuple(conv if node.name == "conv1" else node for node in residual_graph.nodes)
    with pytest.raises(ExportError, match=r"cannot be executed: error: conv1: got range 0\.0"):
        FileRunner(serialize(replace(residual_graph, nodes=nodes)))


def test_readers_of_different_ranges_quantize_in_turn_and_the_conflict_is_reported(
    residual_graph, frame
) -> None:
    def with_ranges(conv1: float, add: float) -> FileRunner:
        changes = {
            "conv1": {"input_dynamic_range": conv1},
            "add0": {"input1_dynamic_range": add},
        }
        nodes = (replace(n, **changes.get(n.name, {})) for n in residual_graph.nodes)
        return FileRunner(serialize(replace(residual_graph, nodes=tuple(nodes))))

    agreed, conflicting = with_ranges(2.0, 2.0), with_ranges(2.0, 1.0)
    assert agreed.warnings == []
    assert [(d.node, d.rule) for d in conflicting.warnings] == [("add0", "range-conflict")]
    wanted, found = agreed(*frame).nodes, conflicting(*frame).nodes
    for name in ("conv0", "conv1", "conv2"):  # the first reader's range makes the codes
        assert torch.equal(found[name].features, wanted[name].features), name
    add = next(n for n in conflicting.graph.nodes if n.name == "add0")
    codes, branch = found["conv0"].features.numpy(), found["conv2"].features.numpy()
    own, stored = np.float32(1.0) / np.float32(127), np.float32(2.0) / np.float32(127)
    skip = np.clip(np.rint(codes.astype(np.float32) * stored / own), -128, 127).astype(np.float32)
    scale = np.float32(add.input0_dynamic_range) / np.float32(127)
    y = np.maximum(branch.astype(np.float32) * scale + skip * own, 0)
    assert (skip == 127).any()
    total = np.clip(np.rint(y / np.float32(found["add0"].scale)), -128, 127).astype(np.int8)
    assert np.array_equal(found["add0"].features.numpy(), total)


def first_difference(a: FileRunner, b: FileRunner, frame) -> str:
    left, right = a(*frame).nodes, b(*frame).nodes
    return next(n for n in left if not torch.equal(left[n].features, right[n].features))


def test_one_attribute_one_range_one_byte_change_that_node_and_none_before(
    residual_graph, frame
) -> None:
    def altered(name: str, **changes) -> FileRunner:
        nodes = (replace(n, **changes) if n.name == name else n for n in residual_graph.nodes)
        return FileRunner(serialize(replace(residual_graph, nodes=tuple(nodes))))

    original = FileRunner(serialize(residual_graph))
    assert first_difference(original, altered("conv2", activation="ReLU"), frame) == "conv2"
    ranges = residual_graph.convs[2].weight_dynamic_ranges
    wider = altered("conv2", weight_dynamic_ranges=(ranges[0] * 1.5, *ranges[1:]))
    assert first_difference(original, wider, frame) == "conv2"
    # The range of a tensor is the step of the node that makes it.
    assert first_difference(original, altered("conv3", input_dynamic_range=1.0), frame) == "add0"
    content = bytearray(serialize(residual_graph))
    raw = residual_graph.initializers["spconv1.weight"].tobytes()
    position = (
        content.index(raw)
        + 1
        + 2 * int(np.abs(residual_graph.initializers["spconv1.weight"]).argmax())
    )
    content[position] ^= 0x80  # the sign of one weight
    assert first_difference(original, FileRunner(bytes(content)), frame) == "conv1"
