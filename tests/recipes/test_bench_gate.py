import math

import pytest
import torch

from voxelquant.errors import GateError
from voxelquant.recipes.bench_gate import (
    require_equal,
    require_fp16,
    require_peer,
    require_quantized,
)

torch.manual_seed(0)
TRUTH = torch.randn(1, 4, 30, 30).half()


def noisy(level_db: float) -> torch.Tensor:
    """The truth with noise so many dB below it."""
    noise = torch.randn_like(TRUTH.float()) * 10 ** (-level_db / 20)
    return TRUTH.float() + noise


def test_equal_is_equal() -> None:
    check = require_equal("x", TRUTH.clone(), TRUTH)
    assert math.isinf(check.sqnr_db)
    assert check.differing == check.relative_l2 == 0


def test_one_value_of_many_is_not_equal() -> None:
    other = TRUTH.clone()
    other[0, 1, 2, 3] += 2.0**-10
    with pytest.raises(GateError, match=r"x: got 2\.78e-04 of the values .* nothing was timed"):
        require_equal("x", other, TRUTH)


@pytest.mark.parametrize(("require", "limit_db"), [(require_fp16, 55), (require_peer, 40)])
def test_limits_of_floats(require, limit_db: float) -> None:
    assert require("x", noisy(limit_db + 2), TRUTH).differing > 0
    with pytest.raises(GateError, match=f"need SQNR at least {limit_db}"):
        require("x", noisy(limit_db - 2), TRUTH)


def test_quantized_plans_may_be_as_far_as_quantization_is() -> None:
    in_fp16 = noisy(30)
    require_quantized("x", noisy(28), TRUTH, in_fp16)
    with pytest.raises(GateError, match="relative L2"):
        require_quantized("x", noisy(24), TRUTH, in_fp16)


@pytest.mark.parametrize("require", [require_equal, require_fp16, require_peer])
@pytest.mark.parametrize(
    "broken", [torch.full_like(TRUTH, math.nan), torch.zeros_like(TRUTH), TRUTH[:, :2]]
)
def test_unusable_maps_never_pass(require, broken: torch.Tensor) -> None:
    with pytest.raises(GateError):
        require("x", broken, TRUTH)


def test_a_scaled_map_does_not_pass() -> None:
    """Cosine similarity would let it."""
    with pytest.raises(GateError):
        require_fp16("x", 7 * TRUTH.float(), TRUTH)
