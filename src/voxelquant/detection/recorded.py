"""A module in training as two CUDA graphs, forward and backward: launched as a whole ever after.

Thousands of small launches take a host longer than the computation takes a GPU. Where shapes are
always the same, all of them are recorded once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WARM_UP_CALLS = 3


class Recorded:
    """Forward and backward of a module in two graphs, with the memory that they read and write.

    What `torch.cuda.make_graphed_callables` does, which keeps the autograd graph of the recording
    besides, and with it the stream on which it would then accumulate gradients.

    Parameters must stay the same tensors. A backward pass sets their gradients and adds nothing to
    what is there. They are to be used before the next call, and what a call returns to be read,
    since all calls write into the same memory.

    Args:
        module: its work depends on shapes and parameters, and on no value.
        inputs: what it is called with; of the first alone a gradient is taken.

    Attributes:
        inputs: what the forward graph reads.
        parameters: of the module, those that train.
        out: what the forward graph writes.
        grad_out: what the backward graph reads.
        grads: what it writes: of the first input, then of the parameters, in their order of memory.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.parameters = tuple(p for p in module.parameters() if p.requires_grad)
        leaves = (inputs[0], *self.parameters)
        _warm_up(module, inputs, leaves)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward):
            out = module(*inputs)
        self.grad_out = torch.zeros_like(out)
        with torch.cuda.graph(self.backward, pool=self.forward.pool()):
            grads = torch.autograd.grad(out, leaves, self.grad_out)
            self.grads = tuple(map(_in_order_of, grads, leaves))
        self.out, self.inputs = out.detach(), tuple(x.detach() for x in inputs)


def replay(recorded: Recorded, *inputs: Tensor) -> Tensor:
    """What the module returns for these inputs, of the shapes that it was recorded with."""
    out: Tensor = _Replay.apply(recorded, *inputs)
    return out


def _warm_up(module: nn.Module, inputs: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> None:
    """Libraries choose algorithms and take workspaces at first calls; graphs hold neither."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_CALLS):
            out = module(*inputs)
            torch.autograd.grad(out, leaves, torch.zeros_like(out))
    torch.cuda.current_stream().wait_stream(stream)


def _in_order_of(grad: Tensor, leaf: Tensor) -> Tensor:
    """The gradient as `leaf.grad` takes it without a copy."""
    return grad if grad.stride() == leaf.stride() else torch.empty_like(leaf).copy_(grad)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *inputs: Tensor) -> Tensor:
        ctx.recorded = recorded
        for kept, given in zip(recorded.inputs, inputs, strict=True):
            kept.copy_(given)
        recorded.forward.replay()
        return recorded.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        recorded: Recorded = ctx.recorded
        recorded.grad_out.copy_(grad_outputs[0])
        recorded.backward.replay()
        of_first, *of_parameters = recorded.grads
        # Handed to autograd one by one, hundreds of gradients take a host ten times as long.
        for parameter, grad in zip(recorded.parameters, of_parameters, strict=True):
            parameter.grad = grad
        return None, of_first.detach(), *[None] * (len(recorded.inputs) - 1)
