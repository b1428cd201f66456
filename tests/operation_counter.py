"""Counts tensor operations, and those that make the host wait for a GPU; on any device."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What answers with a number or a size that only the device knows.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"}
FREE = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "t", "transpose"}
FREE |= {"unbind", "unsqueeze", "view", "_unsafe_view", "empty", "empty_strided", "new_empty"}


class OperationCounter(TorchDispatchMode):
    """Counts the tensor operations of a block by name; kernels of Triton are none."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.convolutions_waited_for = 0
        self.is_paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.is_paused:
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name in WAITING:
            self.convolutions_waited_for += self.counts["convolution"]
        if name in ("index", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            self.counts["indexed with a mask"] += len(masks)
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> int:
        """Operations that do something: on a GPU each is a launch or more."""
        return sum(count for name, count in self.counts.items() if name not in FREE)

    @property
    def waits(self) -> dict[str, int]:
        """Operations after which the host goes on only when the device has come so far."""
        return {
            name: count
            for name, count in self.counts.items()
            if count and (name in WAITING or "unique" in name or "mask" in name)
        }
