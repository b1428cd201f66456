import math

import pytest
import torch
from torch import nn

from oracles.sparse_sites import dense_conv, gather, random_sites
from voxelquant.errors import GeometryError
from voxelquant.sparse import (
    SparseAdd,
    SparseConv3d,
    SparseInverseConv3d,
    SparseSequential,
    SparseTensor,
    SparseToDense,
    SubMConv3d,
    apply_module,
)

SHAPE = (6, 8, 10)


def _tensor(n: int = 70, channels: int = 3, seed: int = 0) -> SparseTensor:
    coords = random_sites(n, SHAPE, [0, 1], seed)
    features = torch.randn(n, channels, dtype=torch.float64)
    return SparseTensor.from_coords(features, coords, SHAPE, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_submanifold_module_equals_dense(bias: bool) -> None:
    x = _tensor()
    conv = SubMConv3d(3, 5, (3, 1, 3), dilation=(1, 1, 2), bias=bias).double()
    dense = dense_conv(x.dense(), conv.weight, (1,) * 3, (1, 0, 2), (1, 1, 2))
    expected = gather(dense, x.coords_bzyx) + (conv.bias if bias else 0)
    torch.testing.assert_close(conv(x).features, expected)
    assert conv(x).sites is x.sites


def test_strided_module_equals_dense_where_sites_are_active() -> None:
    x = _tensor()
    conv = SparseConv3d(3, 5, 3, 2, (0, 1, 1), dilation=(1, 1, 2)).double()
    out = conv(x)
    dense = dense_conv(x.dense(), conv.weight, (2,) * 3, (0, 1, 1), (1, 1, 2))
    assert out.spatial_shape == tuple(dense.shape[2:])
    torch.testing.assert_close(out.features, gather(dense, out.coords_bzyx) + conv.bias)
    unreached = (out.replace_features(torch.ones(len(out.sites), 1)).dense() == 0).expand_as(dense)
    assert not dense[unreached].any()


def test_inverse_module_is_the_transposed_convolution_on_the_sites_of_its_partner() -> None:
    x = _tensor()
    down = SparseConv3d(3, 4, 3, 2, 1, indice_key="d").double()
    up = SparseInverseConv3d(4, 2, 3, indice_key="d", bias=False).double()
    middle = down(x)
    out = up(middle)
    assert out.sites is x.sites
    weight = up.weight.permute(4, 0, 1, 2, 3)  # [c_in, c_out, kz, ky, kx]
    dense = nn.functional.conv_transpose3d(
        middle.dense(), weight, None, 2, 1, output_padding=(1, 1, 1)
    )
    assert tuple(dense.shape[2:]) == SHAPE
    torch.testing.assert_close(out.features, gather(dense, x.coords_bzyx))


def test_inverse_module_passes_gradients_to_both_weights() -> None:
    x = _tensor(12)
    down = SparseConv3d(3, 2, 2, 2, indice_key="d").double()
    up = SparseInverseConv3d(2, 2, 2, indice_key="d").double()

    def network(features, down_weight, up_weight):
        y = torch.func.functional_call(down, {"weight": down_weight}, x.replace_features(features))
        return torch.func.functional_call(up, {"weight": up_weight}, y).features

    operands = [x.features, down.weight.detach(), up.weight.detach()]
    assert torch.autograd.gradcheck(network, [t.clone().requires_grad_() for t in operands])


def test_inverse_module_without_its_partner_is_refused() -> None:
    x = _tensor()
    up = SparseInverseConv3d(4, 2, 3, indice_key="d").double()
    with pytest.raises(GeometryError, match=r"'d', but only \['e'\]"):
        up(SparseConv3d(3, 4, 3, 2, 1, indice_key="e").double()(x))


def test_inverse_module_on_other_sites_is_refused() -> None:
    x = _tensor()
    down = SparseConv3d(3, 4, 3, 2, 1, indice_key="d").double()
    further = SparseConv3d(4, 4, 3, 2, 1).double()
    with pytest.raises(GeometryError, match="not the"):
        SparseInverseConv3d(4, 2, 3, indice_key="d").double()(further(down(x)))


def test_couplings_follow_the_tensor_and_do_not_leak_back() -> None:
    x = _tensor()
    y = SparseConv3d(3, 3, 3, 2, 1, indice_key="a").double()(x)
    z = SubMConv3d(3, 3, 3, indice_key="s").double()(y)
    assert (list(x.coupled), list(y.coupled), list(z.coupled)) == ([], ["a"], ["a"])


def test_sum_needs_the_same_sites() -> None:
    a, b = _tensor(), _tensor()
    add = SparseAdd()
    assert torch.equal(add(a, a).features, 2 * a.features)
    with pytest.raises(GeometryError, match="different sites"):
        add(a, b)  # equal coordinates, but not known to be
    with pytest.raises(GeometryError):
        add(a, a.replace_features(a.features[:, :2]))


def test_dense_map_folds_height_into_channels() -> None:
    x = _tensor()
    folded, plain = SparseToDense()(x), SparseToDense(fold_height=False)(x)
    assert plain.shape == (2, 3, *SHAPE)
    assert folded.shape == (2, 18, 8, 10)
    for channel in range(3):
        for z in range(6):
            assert torch.equal(folded[:, channel * 6 + z], plain[:, channel, z])


def test_sequence_mixes_sparse_and_ordinary_modules() -> None:
    x = _tensor().replace_features(torch.randn(70, 3))
    norm = nn.BatchNorm1d(4).eval()
    inner = SparseSequential(SubMConv3d(3, 4, 3), norm)
    net = SparseSequential(inner, nn.ReLU(), SparseToDense())
    expected = norm(inner[0](x).features).relu()
    assert torch.equal(net(x), x.replace_features(expected).dense().flatten(1, 2))


def test_initial_weights_are_bounded_by_the_true_fan_in() -> None:
    torch.manual_seed(0)
    conv = SparseConv3d(16, 200, (3, 1, 1))
    bound = 1 / math.sqrt(16 * 3)
    for parameter in (conv.weight, conv.bias):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.95 * bound
    assert conv.weight.shape == (200, 3, 1, 1, 16)


@pytest.mark.parametrize("value", [(1, 2), [1, 2, 3, 4], ()])
def test_sizes_are_one_int_or_three(value) -> None:
    with pytest.raises(GeometryError, match="one int or three"):
        SubMConv3d(1, 1, value)


def test_training_updates_every_parameter() -> None:
    x = _tensor().replace_features(torch.randn(70, 3))
    net = SparseSequential(
        SubMConv3d(3, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(inplace=True),
        SparseConv3d(4, 4, 3, 2, 1, indice_key="d"),
        SparseInverseConv3d(4, 2, 3, indice_key="d"),
    )
    net(x).features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("n", [0, 1])
def test_statistics_of_fewer_than_two_voxels_are_refused(n: int) -> None:
    x = SparseTensor.from_coords(torch.ones(n, 4), torch.zeros(n, 4), (3, 3, 3), 1)
    norm = nn.BatchNorm1d(4)
    with pytest.raises(GeometryError, match=rf"got a batch with {n} voxels? left, need 2"):
        apply_module(norm, x)
    assert norm.num_batches_tracked == 0
    assert len(apply_module(norm.eval(), x).features) == n
