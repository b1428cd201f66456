"""Names in the quantized checkpoints of NVIDIA's CUDA-CenterPoint (`ptq.pth`, `qat.pth`).

Batch norms are fused into the convolutions, except that of conv_input, so every module behind one
in a container stands one place earlier than in det3d. Each convolution has two ranges, each
residual block one more for its sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

INPUT_AMAX = "._input_quantizer._amax"
WEIGHT_AMAX = "._weight_quantizer._amax"
BACKBONE = "backbone."
# Layers that the package always runs unquantized, although it stores their ranges.
ALWAYS_FP16 = (
    "backbone.conv_input.0",
    "backbone.conv1.0.conv1",
    "backbone.conv1.0.conv2",
    "backbone.conv1.0.add",
)
NORM_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class NvidiaLayer:
    """One convolution or sum.

    Attributes:
        ours: its path in our detector, which is det3d's.
        theirs: its path in the file.
        kind: `conv` or `add`.
        norm: path of the batch norm that is not fused, the same in both; None for most.
    """

    ours: str
    theirs: str
    kind: Literal["conv", "add"]
    norm: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its tensors in the file, in the order of a state dict."""
        if self.kind == "add":
            return (self.theirs + INPUT_AMAX,)
        bias = () if self.norm else (f"{self.theirs}.bias",)
        ranges = (self.theirs + INPUT_AMAX, self.theirs + WEIGHT_AMAX)
        norm = tuple(f"{self.norm}.{key}" for key in NORM_STATE) if self.norm else ()
        return (f"{self.theirs}.weight", *bias, *ranges, *norm)


def _block(stage: str, ours: int, theirs: int) -> list[NvidiaLayer]:
    a, b = f"backbone.{stage}.{ours}", f"backbone.{stage}.{theirs}"
    return [
        NvidiaLayer(f"{a}.conv1", f"{b}.conv1", "conv"),
        NvidiaLayer(f"{a}.conv2", f"{b}.conv2", "conv"),
        NvidiaLayer(f"{a}.add", f"{b}.quant_add", "add"),
    ]


def _layers() -> list[NvidiaLayer]:
    first = "backbone.conv_input"
    layers = [NvidiaLayer(f"{first}.0", f"{first}.0", "conv", norm=f"{first}.1")]
    layers += _block("conv1", 0, 0) + _block("conv1", 1, 1)
    for stage in ("conv2", "conv3", "conv4"):
        strided = f"backbone.{stage}.0"
        layers += [NvidiaLayer(strided, strided, "conv")]
        layers += _block(stage, 3, 2) + _block(stage, 4, 3)
    return [*layers, NvidiaLayer("backbone.extra_conv.0", "backbone.extra_conv.0", "conv")]


LAYERS = tuple(_layers())  # in the order of their state dict
THEIR_NAME = {layer.ours: layer.theirs for layer in LAYERS}


def is_nvidia_checkpoint(names: Iterable[str]) -> bool:
    """Whether tensors of these names are a quantized checkpoint in this layout."""
    return any(name.endswith("_quantizer._amax") for name in names)


def short_name(ours: str) -> str:
    """What their package calls one of our layers, without the container all of them share.

    >>> short_name("backbone.conv2.3.add")
    'conv2.2.quant_add'
    """
    return THEIR_NAME.get(ours, ours).removeprefix(BACKBONE)
