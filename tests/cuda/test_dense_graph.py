"""Neck and head as graphs do what the modules do: values, gradients, statistics, step by step."""

import copy
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

from voxelquant.data.frame import Frame
from voxelquant.data.sampling import Shard
from voxelquant.data.synthetic import generate_frames
from voxelquant.detection.config import DetectorConfig, load_config
from voxelquant.detection.dense_graph import DenseGraph, LossGraph, can_be_graphed
from voxelquant.detection.detector import CenterPoint
from voxelquant.detection.losses import centerpoint_loss
from voxelquant.recipes.distributed import World
from voxelquant.recipes.train import DetectorTrainee
from voxelquant.recipes.training_loop import launch_step, make_step

BATCH = 2
ALONE = World(Shard(), "cuda")


@pytest.fixture(scope="module")
def config() -> DetectorConfig:
    return load_config("centerpoint_tiny")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return generate_frames(5, range(4 * BATCH), key_frames=1, device="cuda")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Algorithms that do not depend on where memory lies."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def two_detectors(config: DetectorConfig) -> tuple[CenterPoint, CenterPoint]:
    torch.manual_seed(3)
    model = CenterPoint(config).cuda().train()
    return model, copy.deepcopy(model)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("amp", [False, True])
def test_values_and_gradients_are_those_of_the_modules(config: DetectorConfig, amp: bool) -> None:
    graphed, plain = two_detectors(config)
    names = {name: value.clone() for name, value in graphed.state_dict().items()}
    dense = DenseGraph(graphed, BATCH, amp=amp)
    for name, value in graphed.state_dict().items():
        assert torch.equal(value, names[name]), f"{name} changed while it was recorded"
    shape, dtype = dense._recorded.inputs[0].shape, dense._recorded.inputs[0].dtype
    assert dtype == (torch.bfloat16 if amp else torch.float32)
    for number in range(4):
        generator = torch.Generator("cuda").manual_seed(number)
        bev = torch.randn(shape, device="cuda", generator=generator).to(dtype)
        inputs = [bev.clone().requires_grad_() for _ in range(2)]
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
            outputs = [dense(inputs[0]), plain.dense(inputs[1])]
        for own, wanted in zip(*outputs, strict=True):
            assert list(own) == list(wanted)
            for name in own:
                assert own[name].dtype == wanted[name].dtype
                assert distance(own[name], wanted[name]) < (2e-2 if amp else 1e-3), name
        for model, maps in zip((graphed, plain), outputs, strict=True):
            model.zero_grad(set_to_none=True)
            parts = [value.float().square().mean() for task in maps for value in task.values()]
            torch.stack(parts).sum().backward()
        # Branches that are computed as one sum in another order; bfloat16 keeps 8 bits of a sum.
        most = 0.1 if amp else 1e-2
        assert distance(inputs[0].grad, inputs[1].grad) < most  # type: ignore[arg-type]
        expected = dict(plain.named_parameters())
        # A bias in front of a batch norm has a gradient of nothing but rounding.
        of_rounding = {"bbox_head.shared_conv.0.bias"}
        for name, parameter in graphed.named_parameters():
            if name.startswith("backbone") or name in of_rounding or ".0.bias" in name:
                continue
            assert parameter.grad is not None, name
            assert distance(parameter.grad, expected[name].grad) < most, name  # type: ignore[arg-type]
        for (name, own), wanted in zip(graphed.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(own, wanted, rtol=most, atol=most / 100, msg=name)


@pytest.mark.parametrize("amp", [False, True])
def test_losses_and_their_gradients_are_those_of_the_modules(
    config: DetectorConfig, frames: list[Frame], amp: bool
) -> None:
    graphed, plain = two_detectors(config)
    spec, most = config.head_spec, 0.1 if amp else 1e-2  # as above
    graph = LossGraph(graphed, BATCH, amp=amp)
    assert all(
        torch.equal(value, expected)
        for value, expected in zip(
            graphed.state_dict().values(), plain.state_dict().values(), strict=True
        )
    )
    example = graph._recorded.inputs[0]
    for number in range(4):
        targets = DetectorTrainee(plain, config).assign(frames[number * BATCH :][:BATCH])
        generator = torch.Generator("cuda").manual_seed(number)
        bev = torch.randn(example.shape, device="cuda", generator=generator).to(example.dtype)
        inputs = [bev.clone().requires_grad_() for _ in range(2)]
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
            loss, maps = graph(inputs[0], targets), plain.dense(inputs[1])
        wanted = centerpoint_loss(maps, targets, spec).total
        assert distance(loss, wanted) < (2e-2 if amp else 1e-3)
        for model, own in ((graphed, loss), (plain, wanted)):
            model.zero_grad(set_to_none=True)
            own.backward()
        assert distance(inputs[0].grad, inputs[1].grad) < most  # type: ignore[arg-type]


def test_other_shapes_and_evaluation_run_the_modules(config: DetectorConfig) -> None:
    graphed, plain = two_detectors(config)
    dense = DenseGraph(graphed, BATCH, amp=False)
    bev = torch.randn(dense._recorded.inputs[0].shape, device="cuda")

    def same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> None:
        for own, wanted in zip(a, b, strict=True):
            for name in own:
                torch.testing.assert_close(own[name], wanted[name], rtol=1e-3, atol=1e-4)

    same(dense(bev[:1].clone().requires_grad_()), plain.dense(bev[:1]))  # a smaller batch
    graphed.eval()
    plain.eval()
    same(dense(bev.clone().requires_grad_()), plain.dense(bev))
    graphed.train()
    plain.train()
    with torch.no_grad():
        same(dense(bev), plain.dense(bev))
    same(dense(bev.clone().requires_grad_()), plain.dense(bev))


@pytest.mark.parametrize("amp", [False, True])
def test_training_goes_as_without_graphs(
    config: DetectorConfig, frames: list[Frame], amp: bool
) -> None:
    """Losses of some steps with an evaluation in between."""
    losses = []
    for model, graphed in zip(two_detectors(config), (True, False), strict=True):
        trainee = DetectorTrainee(model, config, amp=amp, graphed=graphed)
        predict = trainee.predictor(ALONE, BATCH)
        assert (predict is model) is not graphed
        own = []
        for step in range(6):
            batch = frames[step % 4 * BATCH :][:BATCH]
            own.append(float(make_step(trainee, predict, batch, step, ALONE)))
            if step == 2:
                model.eval()
                with torch.no_grad():
                    model(trainee.read(batch))
        losses.append(own)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-2 if amp else 1e-3)
    # Adam's first steps are signs of gradients, of which those near zero differ.
    assert losses[0] == pytest.approx(losses[1], rel=0.25 if amp else 0.1)
    assert losses[0][-1] < losses[0][0]


def test_a_gradient_that_is_not_finite_moves_no_weight(
    config: DetectorConfig, frames: list[Frame]
) -> None:
    model, _ = two_detectors(config)
    trainee = DetectorTrainee(model, config, amp=True)
    predict = trainee.predictor(ALONE, BATCH)
    make_step(trainee, predict, frames[:BATCH], 0, ALONE)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    moments = [trainee.optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    batch = trainee.prepare(frames[:BATCH])
    batch.x.features.fill_(float("nan"))
    outcome = launch_step(trainee, predict, batch, 1, ALONE)
    for parameter, before, moment in zip(model.parameters(), kept, moments, strict=True):
        assert torch.equal(parameter, before)
        state = trainee.optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], moment)
        assert float(state["step"]) == 1
    with pytest.raises(Exception, match="got a gradient norm of nan"):
        outcome.require_finite()


def test_only_plain_modules_are_graphed(config: DetectorConfig) -> None:
    model, _ = two_detectors(config)
    assert can_be_graphed(model)
    handle = model.neck.register_forward_hook(lambda *_: None)
    assert not can_be_graphed(model)
    handle.remove()
    for register in (
        model.neck.register_full_backward_hook,
        next(model.bbox_head.parameters()).register_hook,
    ):
        handle = register(lambda *_: None)
        assert not can_be_graphed(model)
        handle.remove()
    assert can_be_graphed(model)
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.neck)
    assert not can_be_graphed(model)


def test_a_resumed_optimiser_lies_in_memory_as_its_weights_do(
    config: DetectorConfig, frames: list[Frame], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from voxelquant.recipes.training_state import load_training_state, save_training_state

    path = tmp_path_factory.mktemp("state") / "checkpoint.safetensors"
    trainees = [DetectorTrainee(model, config, amp=True) for model in two_detectors(config)]
    make_step(trainees[0], trainees[0].model, frames[:BATCH], 0, ALONE)
    save_training_state(path, trainees[0].model, trainees[0].optimizer, 1)
    load_training_state(path, trainees[1].model, trainees[1].optimizer)
    for parameter in trainees[1].model.parameters():
        assert trainees[1].optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()
    for trainee in trainees:
        make_step(trainee, trainee.model, frames[BATCH : 2 * BATCH], 1, ALONE)
