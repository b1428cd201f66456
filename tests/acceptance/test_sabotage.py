"""A file with one attribute, range or weight byte altered: parity names that node, none before."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from voxelquant.data.synthetic import generate_frames
from voxelquant.detection.config import load_config
from voxelquant.detection.detector import CenterPoint
from voxelquant.export import check_file, read
from voxelquant.export.ir import Add, Graph, Relu, SparseConvolution
from voxelquant.export.libspconv_writer import serialize
from voxelquant.recipes.parity import Forms, measure_parity
from voxelquant.sparse import SparseTensor

# No layer is named by hand: the tenth convolution stands in the middle of the graph.
VICTIM = 10


@dataclass(frozen=True)
class Exported:
    forms: Forms
    file: Path
    frame: SparseTensor

    @property
    def victim(self) -> SparseConvolution:
        return read(self.file).convs[VICTIM]


@pytest.fixture(scope="module")
def exported(run_chain, tmp_path_factory) -> Exported:
    tiny = load_config("centerpoint_tiny")
    config = tiny.model_copy(update={"point_range": (-25.6, -25.6, -5.0, 25.6, 25.6, 3.0)})
    (frame,) = generate_frames(seed=5, scenes=[0], key_frames=1)
    x = CenterPoint(config).read_clouds([frame.points])
    chain = run_chain(config, x, tmp_path_factory.mktemp("sabotage"))
    return Exported(chain.forms, chain.exported.path, x)


def altered_node(graph: Graph, name: str, **changes: object) -> Graph:
    nodes = tuple(replace(n, **changes) if n.name == name else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def without_activation(graph: Graph, conv: SparseConvolution) -> Graph:
    assert conv.activation == "ReLU"
    return altered_node(graph, conv.name, activation="None")


def wider_range(graph: Graph, conv: SparseConvolution) -> Graph:
    """The range of the tensor that `conv` makes, in all who read it: the file stays consistent."""
    tensors = {conv.output} | {
        n.output for n in graph.nodes if isinstance(n, Relu) and n.inputs[0] == conv.output
    }
    fields = ("input_dynamic_range", "input0_dynamic_range", "input1_dynamic_range")
    altered = graph
    for node in graph.nodes:
        if not isinstance(node, SparseConvolution | Add):
            continue
        for position, source in enumerate(node.inputs):
            field = fields[0] if isinstance(node, SparseConvolution) else fields[1 + position]
            if source in tensors and getattr(node, field, None) is not None:
                wider = float(np.float32(getattr(node, field) * 1.5))
                altered = altered_node(altered, node.name, **{field: wider})
    assert altered != graph
    return altered


def one_weight_byte(graph: Graph, conv: SparseConvolution) -> Graph:
    """Sign and exponent of the largest weight to zero: it becomes almost nothing, within range."""
    weights = dict(graph.initializers)
    values = weights[conv.inputs[1]].copy()
    step = np.asarray(conv.weight_dynamic_ranges)[:, None, None, None, None] / 127
    place = np.unravel_index(np.argmax(np.abs(values) / step), values.shape)
    bits = values.view(np.uint8).reshape(*values.shape, 2)
    bits[(*place, 1)] = 0  # little endian: the upper byte
    before, after = weights[conv.inputs[1]], values
    assert np.count_nonzero(before.view(np.uint16) != after.view(np.uint16)) == 1
    assert abs(float(before[place]) - float(after[place])) > 2 * float(step[place[0]].squeeze())
    weights[conv.inputs[1]] = values
    return replace(graph, initializers=weights)


@pytest.mark.parametrize("alter", [without_activation, wider_range, one_weight_byte])
def test_parity_names_the_altered_node(
    exported: Exported, alter: Callable[[Graph, SparseConvolution], Graph]
) -> None:
    graph = alter(read(exported.file), exported.victim)
    altered = serialize(graph)
    assert check_file(altered) == []  # only an execution can tell
    parity = measure_parity(exported.forms, exported.frame, altered)
    assert parity.first_difference == exported.victim.module_path
    assert parity.output_equal is False
    assert not parity.holds
    names = [layer.path for layer in parity.layers]
    before = parity.layers[: names.index(parity.first_difference)]
    assert len(before) > VICTIM
    assert all(layer.file_equals_engine for layer in before)


def test_the_file_as_written_has_no_difference(exported: Exported) -> None:
    parity = measure_parity(exported.forms, exported.frame, exported.file)
    assert parity.holds
    assert parity.first_difference is None
