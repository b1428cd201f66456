import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelquant.geometry import theta_to_yaw_det3d, wrap_to_pi, yaw_det3d_to_theta

ANGLES = st.floats(-50, 50, allow_nan=False)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def test_known_directions() -> None:
    # det3d's yaw' of a box that looks along +x, +y, -x, -y.
    theta = torch.tensor([0.0, 0.5, 1.0, -0.5], dtype=torch.float64) * math.pi
    yaw_det3d = torch.tensor([-0.5, -1.0, 0.5, 0.0], dtype=torch.float64) * math.pi
    torch.testing.assert_close(theta_to_yaw_det3d(theta), yaw_det3d)


@given(ANGLES)
def test_the_map_is_its_own_inverse(theta_rad: float) -> None:
    theta = torch.tensor([theta_rad], dtype=torch.float64)
    for there, back in (
        (theta_to_yaw_det3d, yaw_det3d_to_theta),
        (yaw_det3d_to_theta, theta_to_yaw_det3d),
        (theta_to_yaw_det3d, theta_to_yaw_det3d),
    ):
        error = wrap_to_pi(back(there(theta)) - theta)
        assert error.abs() < 1e-12


@given(ANGLES)
def test_sine_and_cosine_swap_with_a_sign(theta_rad: float) -> None:
    theta = torch.tensor(theta_rad, dtype=torch.float64)
    yaw_det3d = theta_to_yaw_det3d(theta)
    torch.testing.assert_close(yaw_det3d.sin(), -theta.cos(), rtol=0, atol=1e-12)
    torch.testing.assert_close(yaw_det3d.cos(), -theta.sin(), rtol=0, atol=1e-12)


@given(ANGLES, DTYPES)
def test_wrapping_keeps_the_direction_and_the_half_open_range(
    angle_rad: float, dtype: torch.dtype
) -> None:
    angle = torch.tensor([angle_rad], dtype=dtype)
    wrapped = wrap_to_pi(angle)
    pi = torch.tensor(math.pi, dtype=dtype)
    assert -pi <= wrapped < pi
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(wrapped.sin(), angle.sin(), rtol=0, atol=tolerance)
    torch.testing.assert_close(wrapped.cos(), angle.cos(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapping_at_the_seam(dtype: torch.dtype) -> None:
    pi = torch.tensor(math.pi, dtype=dtype)
    below = torch.nextafter(-pi, torch.tensor(-10.0, dtype=dtype))
    seam = torch.stack((pi, -pi, 3 * pi, below))
    assert (wrap_to_pi(seam) < pi).all()
    assert (wrap_to_pi(seam) >= -pi).all()
