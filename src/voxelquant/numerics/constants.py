"""Small constant tensors, sent to a device once.

A list from the host makes a GPU's whole queue wait each time that it becomes a tensor there.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def constant_on(
    device: torch.device, values: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A vector `[len(values)]` that all callers share; not to be changed.

    Example:
        >>> constant_on(torch.device("cpu"), (1, 2), torch.int64)
        tensor([1, 2])
    """
    with torch.inference_mode(False):  # whoever asks first may not need gradients, others do
        return torch.tensor(values, dtype=dtype, device=device)
