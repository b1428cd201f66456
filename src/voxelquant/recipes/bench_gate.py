"""The gate before every measurement: what is timed must compute what the reference computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voxelquant.errors import GateError
from voxelquant.numerics import relative_l2, sqnr_db

# Two fp16 executions of one network sum in different orders and part where a sum falls on two sides
# of a tie. One unit in the last place in every value of one layer is 63 dB; the reference itself,
# summed in two orders, is 70 dB apart on a real frame (`benchmarks/summation_order.py`).
FP16_SQNR_DB, FP16_RELATIVE_L2 = 55.0, 1.8e-3
# A foreign engine may sum in fp16 and round between convolution, sum and activation.
PEER_SQNR_DB, PEER_RELATIVE_L2 = 40.0, 1e-2
# Eight bits, free-running: a code on a tie that falls on its other side changes all that follows,
# so two right executions may be as far apart as quantization itself; on a frame of exact sums
# (`on_lattice`) they must be equal.
DECORRELATED_DB = 4.0


@dataclass(frozen=True)
class GateCheck:
    """One comparison of dense maps that held.

    Attributes:
        what: which plan on which frame.
        rule: what was asked.
        sqnr_db: infinite if equal.
        relative_l2: 0 if equal.
        differing: share of the values that differ.
    """

    what: str
    rule: str
    sqnr_db: float
    relative_l2: float
    differing: float


def require_equal(what: str, found: Tensor, expected: Tensor) -> GateCheck:
    """Equal bit for bit.

    Raises:
        GateError: they are not.
    """
    check = _compare(what, "equal bit for bit", found, expected)
    if check.differing > 0:
        raise GateError(
            f"{what}: got {check.differing:.2e} of the values unlike the reference's "
            f"({_distance(check)}), need equal bits; nothing was timed"
        )
    return check


def require_close(
    what: str, found: Tensor, expected: Tensor, *, least_db: float, most_l2: float
) -> GateCheck:
    """Near in SQNR and in relative L2.

    Raises:
        GateError: they are not.
    """
    rule = f"SQNR at least {least_db:.1f} dB, relative L2 at most {most_l2:.1e}"
    check = _compare(what, rule, found, expected)
    # Written so that NaN fails.
    if not (check.sqnr_db >= least_db and check.relative_l2 <= most_l2):
        raise GateError(
            f"{what}: got {_distance(check)} to the reference, need {rule}; nothing was timed"
        )
    return check


def require_fp16(what: str, found: Tensor, expected: Tensor) -> GateCheck:
    """As near as fp16 executions of one network are.

    Raises:
        GateError: they are not.
    """
    return require_close(what, found, expected, least_db=FP16_SQNR_DB, most_l2=FP16_RELATIVE_L2)


def require_quantized(what: str, found: Tensor, expected: Tensor, in_fp16: Tensor) -> GateCheck:
    """No farther from the reference than its own quantization takes it from fp16.

    Raises:
        GateError: it is.
    """
    least_db = sqnr_db(expected, in_fp16) - DECORRELATED_DB
    return require_close(
        what, found, expected, least_db=least_db, most_l2=10.0 ** (-least_db / 20.0)
    )


def require_peer(what: str, found: Tensor, expected: Tensor) -> GateCheck:
    """As near as another fp16 engine is.

    Raises:
        GateError: it is not.
    """
    return require_close(what, found, expected, least_db=PEER_SQNR_DB, most_l2=PEER_RELATIVE_L2)


def _compare(what: str, rule: str, found: Tensor, expected: Tensor) -> GateCheck:
    if found.shape != expected.shape:
        raise GateError(
            f"{what}: got a map of {list(found.shape)}, need {list(expected.shape)}; nothing was "
            "timed"
        )
    if not bool(found.any()) and bool(expected.any()):
        raise GateError(
            f"{what}: got a map of zeros, need that of the reference; nothing was timed"
        )
    differing = float(torch.ne(found, expected).double().mean())
    return GateCheck(what, rule, sqnr_db(expected, found), relative_l2(expected, found), differing)


def _distance(check: GateCheck) -> str:
    return f"SQNR {check.sqnr_db:.1f} dB, relative L2 {check.relative_l2:.1e}"
