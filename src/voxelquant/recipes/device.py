"""Which device a run uses."""

import re

import torch

from voxelquant.errors import BadInputError


def choose_device(name: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        BadInputError: another kind of device, or a GPU that is not there.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if gpus else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise BadInputError(f"got device {name!r}, need auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(found[1] or 0) >= gpus:
        raise BadInputError(f"got device {name!r}, but torch sees {gpus} GPUs here; try cpu")
    return name
