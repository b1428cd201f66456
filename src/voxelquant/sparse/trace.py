"""Record what a sparse network computes: a graph of convs, norms, sums and scatters.

The trace watches modules, not names: every sparse module that computes (of this package or of
spconv) and every BatchNorm1d or ReLU that acts on features becomes a node, and so does what a
forward computes with tensors: sums, ReLUs, the dense map. Tensors are told apart by identity, so
two consumers of one tensor are seen as such, whatever the model's Python looks like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voxelquant.errors import GraphError
from voxelquant.sparse import feature_ops
from voxelquant.sparse.backends import spconv
from voxelquant.sparse.graph import SparseGraph
from voxelquant.sparse.recognize import features_of, is_sparse_tensor, kind_of
from voxelquant.sparse.recorder import Recorder

_ON_FEATURES = ("batchnorm", "relu")
_VIEWS = ("view", "reshape", "flatten")


@dataclass
class _Call:
    """A module that is running, and the operations that its own code has computed so far."""

    path: str
    module: nn.Module
    kind: str | None
    computed: Counter[str] = field(default_factory=Counter)


class _Watch(TorchFunctionMode):
    """Follows features through the code of forwards."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.calls: list[_Call] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function; record it if it is an operation of the graph in a forward's code."""
        out = func(*args, **(kwargs or {}))
        # What happens inside of a traced module is one operation.
        if self.calls and self.calls[-1].kind is None:
            self._follow(func, args, kwargs, out)
        return out

    def _follow(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, out: Any
    ) -> None:
        total = feature_ops.feature_sum(func, args, kwargs)
        if total is not None:
            self._follow_sum(total, out)
            return
        first = args[0] if args else None
        if feature_ops.name_of(func) == "copy_" and self.recorder.knows(args[1]):
            self.recorder.alias(args[0], args[1])
        elif self.recorder.knows(first):
            self._follow_value(func, args, out)
        elif isinstance(out, Tensor):
            self.recorder.note_descent(out, _tensors(args), self._describe(func))
            self.recorder.note_reading(_tensors(args))

    def _follow_sum(self, total: feature_ops.FeatureSum, out: Tensor) -> None:
        # Counted even if it is none of the graph's: a quantized model finds its sums by number.
        path = self._member_path("add")
        operands = (total.first, total.second)
        known = [self.recorder.knows(operand) for operand in operands]
        if all(known):
            self.recorder.record(path, "add", None, operands, out)
        elif any(known):
            self.recorder.note_origin(out, f"the sum with other numbers in {path!r}")
            self.recorder.note_reading(operands)

    def _follow_value(self, func: Any, args: Sequence[Any], out: Any) -> None:
        value = args[0]
        if value.ndim > 2:  # the dense map
            if feature_ops.name_of(func) in _VIEWS and isinstance(out, Tensor):
                self.recorder.fold_height(value, out)
        elif feature_ops.is_relu(func):
            self.recorder.record(self._member_path("relu"), "relu", None, [value], out)
        elif feature_ops.is_copy(func, args):
            self.recorder.alias(out, value)
        elif feature_ops.writes_first_argument(func):
            raise GraphError(
                f"{self._describe(func)} changes features in place: the sparse graph has no such "
                "operation, need convolutions, sums of two, ReLUs and batch norms"
            )
        elif isinstance(out, Tensor):
            self.recorder.note_origin(out, self._describe(func))
            if out is not value and feature_ops.reads_values(func):
                self.recorder.note_reading([value])

    def on_dense(self, x: Any, make_dense: Callable[[], Tensor], channels_first: bool) -> Tensor:
        """`x.dense()` of a spconv tensor: one operation of the forward that calls it."""
        if not self.calls or self.calls[-1].kind is not None or not self.recorder.nodes:
            return make_dense()
        path = self._member_path("to_dense")
        if not channels_first:
            raise GraphError(f"{path}: got dense(channels_first=False), need channels first")
        self.calls.append(_Call(path, nn.Identity(), "to_dense"))
        try:
            dense = make_dense()
        finally:
            self.calls.pop()
        self.recorder.record(path, "to_dense", None, [x], dense)
        return dense

    def _member_path(self, kind: str) -> str:
        call = self.calls[-1]
        name = feature_ops.member_name(call.module, kind, call.computed[kind])
        call.computed[kind] += 1
        return feature_ops.join_path(call.path, name)

    def _describe(self, func: Any) -> str:
        return f"{feature_ops.name_of(func)} in {self.calls[-1].path or 'the model'!r}"


@contextmanager
def _hooks(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        kind = kind_of(module)

        def begin(m: nn.Module, args: Any, path: str = path, kind: str | None = kind) -> None:
            watch.calls.append(_Call(path, m, kind))

        def end(m: nn.Module, args: Any, named: Any, out: Any) -> None:
            call = watch.calls.pop()
            while call.module is not m:  # left by an exception that the model caught
                call = watch.calls.pop()
            _record_module(watch.recorder, call, [*args, *named.values()], out)

        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_module(recorder: Recorder, call: _Call, operands: Sequence[Any], out: Any) -> None:
    if call.kind is None:
        if is_sparse_tensor(out) and recorder.nodes:
            origin = f"{type(call.module).__name__} at {call.path!r}"
            recorder.note_origin(out.features, origin)
    elif call.kind in _ON_FEATURES:
        # A BatchNorm1d or ReLU of the dense part of a detector is none of this graph, and
        # neither is one on the dense map that left it.
        features = features_of(operands[0])
        if isinstance(features, Tensor) and features.ndim == 2 and recorder.knows(features):
            recorder.record(call.path, call.kind, call.module, operands, out)
    else:
        recorder.record(call.path, call.kind, call.module, operands, out)


def _tensors(args: Sequence[Any]) -> Iterator[Tensor]:
    """Tensors among the arguments, those in lists too (`torch.cat`)."""
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def trace_sparse_graph(model: nn.Module, *arguments: Any) -> SparseGraph:
    """Run the model once and record its sparse part.

    Args:
        model: any module built of sparse convolutions, of this package or of spconv.
        arguments: its positional arguments, with many voxels: one voxel can vanish in a strided
            conv. The graph's input is the first argument where that is a sparse tensor, else what
            the first convolution reads.

    Returns:
        The graph; its outputs are the values that no node consumes, that the model returns (in
        tuples, lists and dicts too), or that its own code computes with otherwise.

    Raises:
        GraphError: features were computed by what the graph cannot express, or nothing was
            recorded.
    """
    recorder = Recorder()
    if arguments and is_sparse_tensor(arguments[0]):
        recorder.begin(arguments[0])
    watch = _Watch(recorder)
    training_of = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with (
            torch.no_grad(),
            _hooks(model, watch),
            spconv.watching_dense(watch.on_dense),
            watch,
        ):
            returned = model(*arguments)
    finally:
        for module, training in training_of:  # one by one: some may be frozen in eval mode
            module.training = training
    return recorder.finish(returned)
