import pytest
import torch
from torch import nn

from oracles.sparse_sites import random_sites
from voxelquant.errors import GraphError
from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseModule,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
    trace_sparse_graph,
)

SHAPE = (6, 8, 10)


def _tensor() -> SparseTensor:
    coords = random_sites(60, SHAPE, [0])
    return SparseTensor.from_coords(torch.randn(60, 3), coords, SHAPE, 1)


class _Block(SparseModule):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.body = SparseSequential(SubMConv3d(3, 3, 3), nn.BatchNorm1d(3))
        self.add = SparseAdd()
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return apply_module(self.relu, self.add(self.body(x), x))


def _edges(model: nn.Module) -> list[tuple[str, str, tuple[int, ...], int]]:
    graph = trace_sparse_graph(model, _tensor())
    return [(n.path, n.kind, n.inputs, n.output) for n in graph.nodes]


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_blocks_share_the_tensor_between_conv_and_sum(inplace: bool) -> None:
    model = SparseSequential(_Block(inplace=inplace), _Block(inplace=inplace), SparseToDense())
    assert _edges(model) == [
        ("0.body.0", "conv", (0,), 1),
        ("0.body.1", "batchnorm", (1,), 2),
        ("0.add", "add", (2, 0), 3),
        ("0.relu", "relu", (3,), 4),
        ("1.body.0", "conv", (4,), 5),
        ("1.body.1", "batchnorm", (5,), 6),
        ("1.add", "add", (6, 4), 7),
        ("1.relu", "relu", (7,), 8),
        ("2", "to_dense", (8,), 9),
    ]


def test_an_in_place_relu_between_two_consumers_is_what_the_second_one_reads() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SubMConv3d(3, 3, 3), SubMConv3d(3, 3, 3)
            self.relu, self.add = nn.ReLU(inplace=True), SparseAdd()

        def forward(self, x: SparseTensor) -> SparseTensor:
            y = self.first(x)
            z = self.second(y)
            apply_module(self.relu, y)
            return self.add(z, b=y)  # y holds the rectified values now

    assert _edges(Model()) == [
        ("first", "conv", (0,), 1),
        ("second", "conv", (1,), 2),
        ("relu", "relu", (1,), 3),
        ("add", "add", (2, 3), 4),
    ]


def test_shapes_consumers_and_producers() -> None:
    model = SparseSequential(SubMConv3d(3, 4, 3), SparseConv3d(4, 5, 3, 2, 1), SparseToDense())
    graph = trace_sparse_graph(model, _tensor())
    assert [n.in_spatial_shape for n in graph.nodes] == [SHAPE, SHAPE, (3, 4, 5)]
    assert [n.out_spatial_shape for n in graph.nodes] == [SHAPE, (3, 4, 5), (3, 4, 5)]
    assert graph.nodes[0].output_shape == (60, 4)
    assert graph.nodes[2].output_shape == (1, 15, 4, 5)
    assert graph.consumers(graph.input_value) == [graph.nodes[0]]
    assert graph.producer(graph.input_value) is None
    assert graph.producer(graph.nodes[1].output) is graph.nodes[1]
    assert graph.outputs == (graph.nodes[2].output,)


def test_returned_values_are_outputs_even_when_consumed() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (SubMConv3d(3, 3, 3) for _ in range(3))

        def forward(self, x: SparseTensor):
            y = self.a(x)
            z = self.b(y)
            return {"levels": [y, z], "last": self.c(z)}

    graph = trace_sparse_graph(Model(), _tensor())
    assert graph.outputs == (1, 2, 3)


@pytest.mark.parametrize("how", ["linear", "rows", "cat", "shape", "nothing"])
def test_what_other_code_computes_with_leaves_the_graph(how: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = SubMConv3d(3, 3, 3), SubMConv3d(3, 3, 3)
            self.points = nn.Linear(3, 1)

        def forward(self, x: SparseTensor) -> SparseTensor:
            y = self.a(x)
            {
                "linear": lambda f: self.points(f),
                "rows": lambda f: f[:5],
                "cat": lambda f: torch.cat([torch.ones(60, 1), f], 1),
                "shape": lambda f: torch.zeros_like(f),
                "nothing": lambda f: nn.functional.dropout(f, training=False),
            }[how](y.features)
            return self.b(y)

    expected = (2,) if how in ("shape", "nothing") else (1, 2)
    assert trace_sparse_graph(Model(), _tensor()).outputs == expected


@pytest.mark.parametrize("where", ["conv", "add"])
def test_features_computed_outside_of_modules_name_the_consumer(where: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = SubMConv3d(3, 3, 3)
            self.stage = nn.ModuleDict({"conv": SubMConv3d(3, 3, 3), "add": SparseAdd()})

        def forward(self, x: SparseTensor) -> SparseTensor:
            y = self.stem(x)
            y = y.replace_features(y.features * 2)
            return self.stage["conv"](y) if where == "conv" else self.stage["add"](x, y)

    with pytest.raises(GraphError, match=rf"^stage\.{where}: consumes features"):
        trace_sparse_graph(Model(), _tensor())


def test_a_model_without_sparse_modules_is_refused() -> None:
    class Model(nn.Module):
        def forward(self, x: SparseTensor) -> SparseTensor:
            return x

    with pytest.raises(GraphError, match="without sparse modules"):
        trace_sparse_graph(Model(), _tensor())


def test_dense_part_is_not_recorded() -> None:
    model = nn.Sequential(
        SubMConv3d(3, 3, 3), SparseToDense(), nn.ReLU(), nn.Conv2d(18, 2, 1), nn.BatchNorm2d(2)
    )
    assert [edge[0] for edge in _edges(model)] == ["0", "1"]


def test_training_flags_and_statistics_survive_module_by_module() -> None:
    model = SparseSequential(_Block(), _Block()).train()
    model[0].body[1].eval()  # a frozen BatchNorm
    flags = [m.training for m in model.modules()]
    mean = model[1].body[1].running_mean.clone()
    trace_sparse_graph(model, _tensor())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(model[1].body[1].running_mean, mean)


def test_flags_and_hooks_are_restored_after_a_failure() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SubMConv3d(3, 3, 3)

        def forward(self, x: SparseTensor) -> SparseTensor:
            self.conv(x)
            raise KeyError("defect in the model")

    model = Model()
    with pytest.raises(KeyError, match="defect"):
        trace_sparse_graph(model, _tensor())
    assert model.training
    assert not model.conv._forward_hooks
