"""The law of numbers, in one place: formats, scales, rounding, the integer epilogue."""

from voxelquant.numerics.constants import constant_on
from voxelquant.numerics.error_measures import relative_l2, sqnr_db
from voxelquant.numerics.formats import (
    FP8_E4M3,
    INT4,
    INT8,
    Float8Format,
    IntFormat,
    NumberFormat,
    format_of_codes,
    scale_from_amax,
)
from voxelquant.numerics.quantize import (
    add_dequantized,
    dequantize,
    dequantize_accumulator,
    epilogue_multiplier,
    fake_quantize,
    fake_quantize_learned,
    quantize,
    requantize_in_turn,
    round_to_float16,
)

__all__ = [
    "FP8_E4M3",
    "INT4",
    "INT8",
    "Float8Format",
    "IntFormat",
    "NumberFormat",
    "add_dequantized",
    "constant_on",
    "dequantize",
    "dequantize_accumulator",
    "epilogue_multiplier",
    "fake_quantize",
    "fake_quantize_learned",
    "format_of_codes",
    "quantize",
    "relative_l2",
    "requantize_in_turn",
    "round_to_float16",
    "scale_from_amax",
    "sqnr_db",
]
