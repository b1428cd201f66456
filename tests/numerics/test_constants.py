import torch

from voxelquant.numerics import constant_on

CPU = torch.device("cpu")


def test_a_constant_is_made_once() -> None:
    first = constant_on(CPU, (0.5, 2.0))
    assert first.dtype == torch.float32
    assert first.tolist() == [0.5, 2.0]
    assert constant_on(CPU, (0.5, 2.0)) is first
    assert constant_on(CPU, (0.5, 2.0), torch.float64) is not first


def test_one_made_during_inference_serves_training() -> None:
    with torch.inference_mode():
        factor = constant_on(CPU, (3.25,))
    x = torch.ones(1, requires_grad=True)
    (x * factor).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.25]
