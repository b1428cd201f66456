import copy

import numpy as np
import pytest
import torch
from torch import nn

import voxelquant as vq
from voxelquant.errors import GraphError, QuantStateError
from voxelquant.numerics import relative_l2
from voxelquant.quant.fold import fold_batchnorm
from voxelquant.quant.insert import trace_fused_graph
from voxelquant.sparse import SparseSequential, SubMConv3d


def test_folded_values_are_the_float64_formula_rounded_once(make_network, make_frame) -> None:
    network = make_network("residual")
    conv, norm = network.conv1[0].conv2, network.conv1[0].bn2
    factor = norm.weight.detach().double().numpy() / np.sqrt(
        norm.running_var.double().numpy() + norm.eps
    )
    weight = conv.weight.detach().double().numpy() * factor.reshape(-1, 1, 1, 1, 1)
    bias = (conv.bias.detach().double().numpy() - norm.running_mean.double().numpy()) * factor
    bias = bias + norm.bias.detach().double().numpy()
    fold_batchnorm(network, trace_fused_graph(network, (make_frame(0),)))
    # A unit in the last place of float64 may move a value across an fp16 tie: none does here.
    assert np.array_equal(conv.weight.detach().numpy(), weight.astype(np.float16))
    assert np.array_equal(conv.bias.detach().numpy(), bias.astype(np.float16))
    assert isinstance(network.conv1[0].bn2, nn.Identity)
    assert network.conv1[0].conv1.bias is not None  # had none before


def test_folding_changes_the_output_by_fp16_rounding_only(
    make_network, frames_of, network_name
) -> None:
    network = make_network(network_name)
    frame = frames_of(network_name)[0]
    folded = copy.deepcopy(network)
    fold_batchnorm(folded, trace_fused_graph(folded, (frame,)))
    assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    with torch.no_grad():
        reference, out = network(frame), folded(frame)
    if not isinstance(out, torch.Tensor):
        reference, out = reference.features, out.features
    assert relative_l2(reference, out) < 2e-3
    paths = [path for path, _ in network.named_modules()]
    assert [path for path, _ in folded.named_modules()] == paths


def conv_and_norm(**options: bool) -> SparseSequential:
    torch.manual_seed(1)
    return SparseSequential(SubMConv3d(5, 4, 3), nn.BatchNorm1d(4, **options), nn.ReLU())


def test_norms_without_affine_parameters_fold(make_frame) -> None:
    network = conv_and_norm(affine=False)
    network.train()
    network(make_frame(0))
    network.eval()
    qmodel = vq.quantize(network, "fp16", example=make_frame(0))
    with torch.no_grad():
        assert relative_l2(network(make_frame(0)).features, qmodel(make_frame(0)).features) < 2e-3


def test_a_folded_value_is_rounded_once_not_by_way_of_float32(make_frame) -> None:
    network = conv_and_norm().eval()
    network[1].eps = 0.0
    step = 1 + 2.0**-12  # squared, just above a tie of fp16: float32 would put it on the tie
    with torch.no_grad():
        network[0].weight.fill_(step)
        network[1].weight.fill_(step)
    qmodel = vq.quantize(network, "fp16", example=make_frame(0))
    assert qmodel[0].weight.unique().tolist() == [1 + 2.0**-10]


def test_norms_without_running_statistics_are_refused(make_frame) -> None:
    with pytest.raises(GraphError, match="1: got a batch norm without running statistics"):
        vq.quantize(conv_and_norm(track_running_stats=False), "fp16", example=make_frame(0))


def test_overflow_and_nan_name_layer_and_channel(make_frame) -> None:
    network = conv_and_norm().eval()
    network[1].running_var[2] = 1e-30
    network[1].eps = 0.0
    with pytest.raises(QuantStateError, match=r"^0: got a weight .*channel 2.*65504"):
        vq.quantize(network, "fp16", example=make_frame(0))
    network = conv_and_norm().eval()
    network[1].running_mean[3] = 1e7
    with pytest.raises(QuantStateError, match=r"^0: got a bias .*channel 3"):
        vq.quantize(network, "fp16", example=make_frame(0))
    network = conv_and_norm().eval()
    network[0].weight.data[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(QuantStateError, match=r"^0: got a weight .*channel 1"):
        vq.quantize(network, "fp16", example=make_frame(0))


def test_the_float_model_stays_as_it_was(make_network, make_frame) -> None:
    network = make_network("residual")
    before = copy.deepcopy(network.state_dict())
    types = [type(module) for module in network.modules()]
    network.conv1[0].bn1.train()  # each module's own flag survives, in the copy too
    qmodel = vq.quantize(network, "int8", example=make_frame(0))
    vq.calibrate(qmodel, [make_frame(1)])
    assert [type(module) for module in network.modules()] == types
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.conv1[0].bn1.training
    assert not network.training
